"""`edgekit chat` as a user types it: one question, lines from a pipe, a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgekit.cli import run
from edgekit.cli.chat import _stop_on_interrupt
from tests.pico import publish_model
from tests.pico_decoders import pico_decoder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(publish_model(pico_decoder("llama", layers=1), tmp_path_factory.mktemp("chat") / "model").path)


@pytest.fixture(scope="module")
def base_model(tmp_path_factory):
    loaded = pico_decoder("llama", layers=1)
    loaded.tokenizer.chat_template = None
    return str(publish_model(loaded, tmp_path_factory.mktemp("chat") / "base").path)


def test_one_question_puts_the_answer_alone_on_standard_output(model, capsys):
    assert run(["chat", model, "--prompt", "Hello", "--max-tokens", "5", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["kind"] == "answer"
    assert run(["chat", model, "--prompt", "Hello", "--max-tokens", "5", "--threads", "1"]) == 0
    found = capsys.readouterr()
    assert found.out == answer["text"] + "\n"
    assert "tokens/s" in found.err
    assert "1 threads" not in found.err


def test_each_line_of_a_pipe_is_a_turn(model, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\n\nb\n/new\na\n"))
    assert run(["chat", model, "--max-tokens", "4", "--json"]) == 0
    first, second, again = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["kept_tokens"], again["kept_tokens"]) == (0, 0)
    assert second["kept_tokens"] > 0
    assert again["token_ids"] == first["token_ids"]


def test_sampling_follows_the_seed(model, capsys):
    def drawn(seed: str) -> list[int]:
        flags = ["--temperature", "3", "--top-p", "0.9", "--max-tokens", "12", "--json", "--seed", seed]
        assert run(["chat", model, "--prompt", "Hello", *flags]) == 0
        return json.loads(capsys.readouterr().out)["token_ids"]

    assert drawn("1") == drawn("1") != drawn("2")


def test_a_model_without_template_says_so_once(base_model, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("The old man\nThe king\n"))
    assert run(["chat", base_model, "--max-tokens", "3"]) == 0
    assert capsys.readouterr().err.count("It has no chat template") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt", "word " * 200], "the context is full: the conversation takes"),
        (["--context", "1000"], "context: found 1000 tokens, expected 1 to 128"),
        (["--context", "0"], "--context: found 0, expected at least 1"),
        (["--threads", "0"], "--threads: found 0, expected at least 1"),
        (["--temperature", "-1"], "temperature: found -1.0"),
        (["--top-p", "0"], "--top-p: found 0.0"),
        (["--runtime", "lama.cpp"], "Did you mean 'llama.cpp'"),
    ],
)
def test_what_cannot_be_is_one_error(model, flags, message, capsys):
    question = [] if "--prompt" in flags else ["--prompt", "Hello"]
    assert run(["chat", model, *question, *flags]) == 2
    found = capsys.readouterr()
    assert message in found.err
    assert "Traceback" not in found.err
    assert found.out == ""


def test_an_interrupt_stops_the_answer_and_a_second_one_everything():
    before = signal.getsignal(signal.SIGINT)
    with _stop_on_interrupt() as is_stopped:
        assert not is_stopped()
        os.kill(os.getpid(), signal.SIGINT)
        assert is_stopped()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_on_a_terminal_it_prompts_answers_goes_on_after_a_full_context_and_leaves(model):
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "edgekit.cli", "chat", model, "--max-tokens", "4"]
    with subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, cwd=Path.cwd()) as process:
        os.close(follower)
        assert "Ctrl-D leaves" in read_until(leader, "> ")
        os.write(leader, b"Hello\n")
        assert "tokens/s" in read_until(leader, "\n> ")
        os.write(leader, b"word " * 60 + b"\n")
        assert "the context is full" in read_until(leader, "\n> ")
        os.write(leader, b"\x04")
        assert process.wait(timeout=60) == 0
    os.close(leader)


def read_until(descriptor: int, ending: str, timeout_s: float = 120.0) -> str:
    """Returns what a terminal shows, up to `ending`."""
    shown, deadline = "", time.monotonic() + timeout_s
    while not shown.replace("\r", "").endswith(ending):
        ready, _, _ = select.select([descriptor], [], [], max(deadline - time.monotonic(), 0))
        assert ready, f"waited in vain for {ending!r} after {shown!r}"
        shown += os.read(descriptor, 4096).decode(errors="replace")
    return shown
