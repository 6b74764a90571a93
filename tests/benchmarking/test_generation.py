"""Measuring how language models write: on clocks that only the sessions move, and on real runtimes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit.benchmarking.generation import GenerationSampling, measure_generation
from edgekit.benchmarking.generation_process import GenerationProcess, GenerationSubject, Written
from edgekit.benchmarking.generation_summary import Conditions, fit_decode, summarize_depth
from edgekit.benchmarking.machine import machine_fingerprint
from edgekit.benchmarking.step_bytes import LayerCache, StepBytes
from edgekit.errors import MeasurementError, ModelError, UsageError
from edgekit.events import ignore
from edgekit.runtimes.generation import get_generation_runtime
from edgekit.runtimes.protocol import model_bytes
from tests.benchmarking import fakes
from tests.pico import publish_model
from tests.pico_decoders import pico_decoder
from tests.runtimes.tiny import tiny_onnx_artifact

PROMPT = list(range(5, 69))
QUICK = GenerationSampling(depths=(4, 40), new_tokens=5, min_runs=6, min_seconds=0.01, max_seconds=0.1, timeout_s=60)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Any file will do for a runtime that does not read it."""
    return tiny_onnx_artifact(tmp_path_factory.mktemp("tiny") / "onnx")


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    directory = tmp_path_factory.mktemp("export")
    loaded = pico_decoder("llama", layers=2, hidden_size=64, head_dim=16)
    return edgekit.export(publish_model(loaded, directory / "model"), out=directory / "onnx")


def fake(tiny, runtime, threads=1) -> GenerationSubject:
    return GenerationSubject(tiny, runtime, PROMPT, threads)


def test_prefill_first_token_and_steps_are_told_apart(tiny):
    found = measure_generation([fake(tiny, fakes.Writing())], QUICK, seed=0, events=ignore).measurements[0]
    assert [depth.context_tokens for depth in found.depths] == [4, 40]
    for depth in found.depths:
        tokens = depth.context_tokens
        assert depth.first_token_ms == pytest.approx(2 * tokens)
        assert depth.prefill_tokens_per_s == pytest.approx(500)
        expected = [10 + 0.01 * (tokens + step) for step in range(5)]
        assert depth.inter_token_samples_ms[:5] == pytest.approx(expected)
        assert len(depth.inter_token_samples_ms) == 5 * len(depth.first_token_samples_ms) >= 30
        assert depth.decode_tokens_per_s == pytest.approx(5e3 / sum(expected))
        assert depth.decode_tokens_per_s_interval.low == pytest.approx(depth.decode_tokens_per_s)
        assert depth.inter_token_p50_ms == pytest.approx(expected[2])
    assert found.deepest.context_tokens == 40
    assert found.context_length == 46
    assert found.memory_bandwidth_bytes_per_s > 1e8


def test_models_that_take_turns_are_compared_round_by_round(tiny):
    pair = [fake(tiny, fakes.Writing()), fake(tiny, fakes.WritingThrice())]
    found = measure_generation(pair, QUICK, seed=0, events=ignore)
    assert found.rounds >= 6
    assert [entry.runtime for entry in found.measurements] == ["fake", "fake"]
    assert [(ratio.measurement, ratio.context_tokens) for ratio in found.ratios] == [(1, 4), (1, 40)]
    for ratio in found.ratios:
        assert ratio.token_time == pytest.approx(3)
        assert ratio.first_token_time == pytest.approx(3)
        assert ratio.token_time_interval.low == pytest.approx(3)


def test_models_take_turns_backwards_and_forwards(tiny, monkeypatch):
    order = []
    write = GenerationProcess.write

    def told(self, depth, new_tokens, **options):
        order.append((self.subject.runtime.name, depth))
        return write(self, depth, new_tokens, **options)

    monkeypatch.setattr(GenerationProcess, "write", told)
    pair = [fake(tiny, fakes.Writing()), fake(tiny, fakes.WritingThrice())]
    monkeypatch.setattr(pair[1].runtime, "name", "slow", raising=False)
    found = measure_generation(pair, QUICK, seed=0, events=ignore)
    sampled = order[-4 * found.rounds :]
    assert sampled[:4] == [("fake", 4), ("slow", 4), ("fake", 40), ("slow", 40)]
    assert sampled[4:8] == [("slow", 4), ("fake", 4), ("slow", 40), ("fake", 40)]


def test_a_process_that_dies_while_it_writes_is_an_error(tiny):
    with pytest.raises(MeasurementError, match="in fake: its process ended with exit code 9 during 'write'"):
        measure_generation([fake(tiny, fakes.WritingUntilItDies())], QUICK, seed=0, events=ignore)


def test_a_model_that_cannot_be_opened_is_the_runtimes_error(tiny):
    with pytest.raises(ModelError, match="this file is not for me"):
        measure_generation([fake(tiny, fakes.Refusing())], QUICK, seed=0, events=ignore)


def test_more_threads_than_cores_is_refused(tiny):
    with pytest.raises(UsageError, match="threads: found 1000, expected at most"):
        measure_generation([fake(tiny, fakes.Writing(), threads=1000)], QUICK, seed=0, events=ignore)


def test_a_real_runtime_has_all_that_an_auditor_needs(export):
    told = []
    subjects = [
        GenerationSubject(export, get_generation_runtime(name), PROMPT) for name in ("onnxruntime", "onnxruntime-genai")
    ]
    for found in measure_generation(subjects, QUICK, seed=0, events=told.append).measurements:
        deepest = found.deepest
        assert len(deepest.first_token_samples_ms) >= 6
        assert deepest.first_token_interval_ms.low <= deepest.first_token_ms <= deepest.first_token_interval_ms.high
        assert deepest.inter_token_p50_ms <= deepest.inter_token_p95_ms <= deepest.inter_token_p99_ms
        share = deepest.decode_tokens_per_s * deepest.bytes_per_token / found.memory_bandwidth_bytes_per_s
        assert deepest.roofline_share == pytest.approx(share)
        assert 0 < found.baseline_rss_bytes < found.library_rss_bytes < found.peak_rss_bytes
        assert found.load_warm_ms > 0
        assert found.model_digest == export.digest
        assert found.model_bytes == model_bytes(export)
        assert set(found.pinned_cores) <= os.sched_getaffinity(0)
    assert {event.text.split(" ")[0] for event in told} == {"loading", "warming", "writing"}


def test_it_loads_nothing_that_the_runtime_does_not_need(export):
    """Its peak memory and its load time are the runtime's: no pydantic, no torch, no tokenizer."""
    code = f"""
import sys
from edgekit.benchmarking.generation_worker import _Writing
writing = _Writing()
writing({{"command": "open", "runtime": "edgekit.runtimes.onnxruntime_generation:OnnxRuntimeGeneration", "cores": [],
    "path": {str(export.path)!r}, "kind": "onnx", "threads": 1, "context_length": 20, "conversations": 1}})
written = writing({{"command": "write", "prompt": [5, 6], "new_tokens": 3}})
assert len(written["token_ns"]) == 3
heavy = {{"pydantic", "torch", "transformers", "tokenizers", "pyarrow", "onnx", "scipy"}}
print(sorted(heavy & {{name.split(".")[0] for name in sys.modules}}))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert found.stdout.strip() == "[]"


def test_a_context_that_the_model_does_not_have_is_one_error(export):
    sampling = GenerationSampling(depths=(100,), new_tokens=40)
    subject = GenerationSubject(export, get_generation_runtime("onnxruntime"), [5] * 100)
    with pytest.raises(UsageError, match="context: found 141 tokens, expected 1 to 128, which is what the model"):
        measure_generation([subject], sampling, seed=0, events=ignore)


CONDITIONS = Conditions(machine_fingerprint(), 0.0, 2e9, 0)


def depths_of(step: StepBytes, overhead_s: float, bytes_per_s: float):
    """Returns depths at which a token takes exactly its bytes over a bandwidth and an overhead."""
    found = []
    for context in (16, 128, 512):
        seconds = overhead_s + step.at(context + 5) / bytes_per_s
        run = Written(1000 * context, 1001 * context, [round(seconds * 1e9)] * 10)
        found.append(summarize_depth(context, [run] * 6, step, CONDITIONS))
    return found


def test_the_fit_finds_bandwidth_and_overhead():
    step = StepBytes(100_000_000, (LayerCache(50_000, None),) * 2)
    depths = depths_of(step, 2e-3, 1e9)
    assert depths[0].bytes_per_token == 100_000_000 + 2 * 50_000 * 21
    assert depths[2].roofline_share == pytest.approx(depths[2].decode_tokens_per_s * depths[2].bytes_per_token / 2e9)
    fit = fit_decode(depths)
    assert fit.bytes_per_s == pytest.approx(1e9, rel=1e-4)
    assert fit.overhead_ms == pytest.approx(2, rel=1e-3)


def test_the_fit_is_numpys_least_squares():
    step = StepBytes(10_000, (LayerCache(1_000, None),))
    generator = np.random.default_rng(0)
    depths = depths_of(step, 1e-3, 1e8)
    depths = [
        depth.model_copy(update={"decode_tokens_per_s": depth.decode_tokens_per_s * generator.uniform(0.9, 1.1)})
        for depth in depths
    ]
    slope, overhead = np.polyfit(
        [depth.bytes_per_token for depth in depths], [1 / depth.decode_tokens_per_s for depth in depths], 1
    )
    assert overhead > 0
    fit = fit_decode(depths)
    assert (1 / fit.bytes_per_s, fit.overhead_ms / 1e3) == pytest.approx((slope, overhead))


def test_the_fit_never_has_an_overhead_below_zero_and_needs_two_depths():
    step = StepBytes(0, (LayerCache(1_000, None),))
    depths = [
        depth.model_copy(update={"decode_tokens_per_s": 1 / (1e-8 * depth.bytes_per_token**1.2)})
        for depth in depths_of(step, 0, 1e8)
    ]
    fit = fit_decode(depths)
    sizes = np.array([depth.bytes_per_token for depth in depths], dtype=float)
    seconds = 1e-8 * sizes**1.2
    assert fit.overhead_ms == 0
    assert 1 / fit.bytes_per_s == pytest.approx((sizes @ seconds) / (sizes @ sizes))
    assert fit_decode(depths[:1]) is None
    backwards = [
        depth.model_copy(update={"decode_tokens_per_s": float(speed)})
        for depth, speed in zip(depths, (1, 2, 3), strict=True)
    ]
    assert fit_decode(backwards) is None
