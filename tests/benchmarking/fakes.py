"""Runtimes that misbehave in the measuring process, found by `module:Class` as any plug-in is."""

from __future__ import annotations

import os
import sys
import time

import numpy

from edgekit.errors import ModelError


class Session:
    """Returns at once."""

    input_names = ["input_ids", "attention_mask"]
    output_names = ["logits"]

    def run(self, inputs):
        return {}


class Fake:
    """A runtime that does nothing, for onnx artifacts."""

    name = "fake"
    formats = ("onnx",)
    libraries = ()

    def unavailable_reason(self):
        return None

    def version(self):
        return "1.0"

    def open(self, model, config):
        return Session()


class Killed(Fake):
    def open(self, model, config):
        sys.stderr.write("about to vanish\n")
        sys.stderr.flush()
        os.kill(os.getpid(), 9)


class Exiting(Fake):
    def open(self, model, config):
        os._exit(7)


class Hanging(Fake):
    def open(self, model, config):
        time.sleep(60)


class Refusing(Fake):
    def open(self, model, config):
        raise ModelError("this file is not for me")


class Chatty(Fake):
    def open(self, model, config):
        sys.stdout.write("a library that talks\n")
        sys.stdout.flush()
        os.write(1, b"and one that writes to the descriptor\n")
        return Session()


class FailingSession(Session):
    def run(self, inputs):
        raise RuntimeError("no kernel for this shape\nand many more lines")


class Failing(Fake):
    def open(self, model, config):
        return FailingSession()


class Clock:
    """Replaces this process's clock: time passes only when a session says so, so that durations are known."""

    now_ns = 0

    @classmethod
    def install(cls):
        time.perf_counter_ns = lambda: cls.now_ns
        time.sleep = cls.wait

    @classmethod
    def wait(cls, seconds):
        cls.now_ns += max(1, round(1e9 * seconds))


class ClockedSession(Session):
    """Call number n takes `milliseconds(n)`."""

    def __init__(self, milliseconds):
        self.milliseconds = milliseconds
        self.calls = 0

    def run(self, inputs):
        Clock.now_ns += round(1e6 * self.milliseconds(self.calls))
        self.calls += 1
        return {}


class Steady(Fake):
    """10 ms a call, with a thousandth of a ripple."""

    def open(self, model, config):
        Clock.install()
        return ClockedSession(lambda call: 10 + 0.01 * (call % 3))


class Thrice(Fake):
    """30 ms a call."""

    def open(self, model, config):
        Clock.install()
        return ClockedSession(lambda call: 30 + 0.03 * (call % 3))


class BatchedSession(Session):
    """5 ms a call and 1 ms a row, of more than 16 rows 3 ms each: they no longer fit the cache."""

    def run(self, inputs):
        rows = len(inputs["input_ids"])
        Clock.now_ns += 1_000_000 * (5 + rows * (3 if rows > 16 else 1))
        return {}


class Batched(Fake):
    def open(self, model, config):
        Clock.install()
        return BatchedSession()


class Heating(Fake):
    """10 ms a call, and after 10 s of work 15."""

    def open(self, model, config):
        Clock.install()
        return ClockedSession(lambda call: 10 if call < 1000 else 15)


class Layout(Fake):
    """10 ms a call and up to 2 more, the same for the whole life of a process."""

    def open(self, model, config):
        Clock.install()
        milliseconds = 10 + os.getpid() * 0.618 % 2
        return ClockedSession(lambda call: milliseconds)


class Wavering(Fake):
    """10 to 11 ms a call, evenly, without a pattern that a few calls show."""

    def open(self, model, config):
        Clock.install()
        return ClockedSession(lambda call: 10 + call * 0.618034 * (1 + call % 7) % 1)


class Hiccups(Fake):
    """About 10 ms a call, and 50 every 20th."""

    def open(self, model, config):
        Clock.install()
        return ClockedSession(lambda call: 50 if call % 20 == 19 else 10 + 0.01 * (call % 3))


class Cooling(Fake):
    """Starts at 20 ms and settles at 10 after 40 calls."""

    def open(self, model, config):
        Clock.install()
        return ClockedSession(lambda call: 10 + max(0, 10 - call / 4))


class Restless(Fake):
    """Never settles: every other call takes twice as long."""

    def open(self, model, config):
        Clock.install()
        return ClockedSession(lambda call: 10 if call % 2 else 20)


class WritingSession:
    """A session of a language model of 16 tokens that knows how long things take: ms a token of prompt, ms a step."""

    context_length = 1000

    def __init__(self, prefill_ms, step_ms):
        self.prefill_ms, self.step_ms = prefill_ms, step_ms
        self.position = 0

    def prefill(self, ids):
        Clock.now_ns += round(1e6 * self.prefill_ms * len(ids))
        self.position += len(ids)
        return numpy.eye(16, dtype=numpy.float32)[3]

    def step(self, token):
        assert token == 3  # the likeliest
        Clock.now_ns += round(1e6 * self.step_ms(self.position))
        self.position += 1
        return numpy.eye(16, dtype=numpy.float32)[3]

    def reset(self):
        self.position = 0

    def close(self):
        pass


class Writing(Fake):
    """2 ms a token of the prompt, 10 ms a step and 10 us more for each token before it."""

    def open(self, model, config):
        Clock.install()
        return WritingSession(2, lambda position: 10 + 0.01 * position)


class WritingThrice(Fake):
    """Three times that."""

    def open(self, model, config):
        Clock.install()
        return WritingSession(6, lambda position: 30 + 0.03 * position)


class WritingUntilItDies(Fake):
    def open(self, model, config):
        return WritingSession(2, lambda position: os._exit(9))


class TogetherSession(WritingSession):
    """Reads at 2 ms a token; a step takes 10 ms and 2 ms for each conversation."""

    def __init__(self, conversations):
        super().__init__(2, lambda position: 12)
        self.conversations = conversations

    def take(self, ids):
        rows, tokens = ids.shape
        assert rows == self.conversations
        Clock.now_ns += 1_000_000 * (2 * rows * tokens if tokens > 1 else 10 + 2 * rows)
        return numpy.zeros((rows, 8), dtype=numpy.float32)


class WritingTogether(Fake):
    def open(self, model, config):
        Clock.install()
        return TogetherSession(config.conversations)


class WritingHot(Fake):
    """A step takes 10 ms, and after 10 s of work 15."""

    def open(self, model, config):
        Clock.install()
        return WritingSession(0, lambda position: 10 if Clock.now_ns < 10_000_000_000 else 15)
