"""Language models under load: on clocks that only the sessions move, and on real runtimes."""

from __future__ import annotations

import numpy as np
import pytest

import edgekit
from edgekit.benchmarking.generation_load import NUMBERS, Load, serve_prompts, write_sustained, write_together
from edgekit.benchmarking.generation_process import GenerationSubject
from edgekit.benchmarking.load import make_arrivals
from edgekit.benchmarking.result_files import read_measurement
from edgekit.benchmarking.stage import BenchConfig, bench
from edgekit.cli import run
from edgekit.contract import StageContext, StageInputs
from edgekit.errors import UnsupportedError
from edgekit.events import ignore
from edgekit.reporting.load import lines
from edgekit.results import GenerationDepth, Interval
from edgekit.runtimes.generation import get_generation_runtime
from tests.benchmarking import fakes
from tests.benchmarking.test_load import queue_of
from tests.pico import publish_model
from tests.pico_decoders import pico_decoder
from tests.runtimes.tiny import tiny_onnx_artifact

LOAD = Load(depth=10, new_tokens=4, context_length=15, seed=0, timeout_s=60, min_runs=6, min_seconds=0.01)
PROMPTS = [list(range(first, first + 10)) for first in range(8)]
QUICK = {"new_tokens": 3, "min_seconds": 0.01, "max_seconds": 0.1, "min_runs": 2, "depths": [4, 9, 20]}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Any file will do for a runtime that does not read it."""
    return tiny_onnx_artifact(tmp_path_factory.mktemp("tiny") / "onnx")


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    directory = tmp_path_factory.mktemp("export")
    loaded = pico_decoder("llama", layers=1, hidden_size=64, head_dim=16)
    return edgekit.export(publish_model(loaded, directory / "model"), out=directory / "onnx")


def fake(tiny, runtime) -> GenerationSubject:
    return GenerationSubject(tiny, runtime, PROMPTS[0])


def alone(first_token_ms: float, tokens_per_s: float) -> GenerationDepth:
    """Returns what the usual measurement would have found."""
    spot = Interval(low=1.0, high=1.0, confidence=0.95)
    names = ("first_token", "inter_token_p50", "inter_token_p95", "inter_token_p99")
    intervals = {f"{name}_interval_ms": spot for name in names}
    return GenerationDepth(
        context_tokens=10,
        new_tokens=4,
        first_token_ms=first_token_ms,
        prefill_tokens_per_s=500,
        prefill_tokens_per_s_interval=spot,
        decode_tokens_per_s=tokens_per_s,
        decode_tokens_per_s_interval=spot,
        inter_token_p50_ms=10,
        inter_token_p95_ms=10,
        inter_token_p99_ms=10,
        first_token_samples_ms=[first_token_ms],
        inter_token_samples_ms=[10.0],
        **intervals,
    )


def test_conversations_share_what_a_step_costs(tiny):
    found = write_together(fake(tiny, fakes.WritingTogether()), "offline", PROMPTS, LOAD, ignore)
    assert [each.conversations for each in found.numbers] == list(NUMBERS)
    for each in found.numbers[1:]:
        step_ms = 10 + 2 * each.conversations
        assert each.tokens_per_s == pytest.approx(1e3 * each.conversations / step_ms)
        assert each.first_token_ms == pytest.approx(2 * 10 * each.conversations)
        assert each.inter_token_p50_ms == each.inter_token_p99_ms == pytest.approx(step_ms)
        assert each.peak_rss_bytes > 1e6
    assert found.best.conversations == 8
    assert found.rounds >= LOAD.min_runs
    first, second = lines(found)
    assert "in 8 conversations" in first
    assert "4: 222 tokens/s, first token 80.0 ms, between tokens p50 18.0 ms p99 18.0 ms" in second


def test_multi_stream_is_one_conversation_and_as_many_as_asked_for(tiny):
    found = write_together(fake(tiny, fakes.WritingTogether()), "multi-stream", PROMPTS[:3], LOAD, ignore)
    assert [each.conversations for each in found.numbers] == [1, 3]


def test_a_runtime_of_one_conversation_is_refused(tiny):
    with pytest.raises(UnsupportedError, match=r"runtime 'fake': found 3 conversations at once, expected 1"):
        write_together(fake(tiny, fakes.Writing()), "multi-stream", PROMPTS[:3], LOAD, ignore)


def test_prompts_wait_for_the_answers_before_them(tiny):
    """10 tokens at 2 ms, then 4 steps of about 10.1 ms: 60.4 ms for each, of which 20 until its first token."""
    found = serve_prompts(fake(tiny, fakes.Writing()), alone(20.0, 4e3 / 40.5), 240.0, LOAD, ignore)
    assert found.rate_per_s is not None
    for place, trial in enumerate(found.trials):
        waits = queue_of(make_arrivals(trial.rate_per_s, trial.queries, seed=place), 60.5) - 60.5 + 20
        if trial.p99_ms < 1000:
            assert trial.p99_ms == pytest.approx(np.quantile(waits, 0.99), rel=0.05)
        assert trial.queries <= 800
    assert 0.25 <= found.utilization < 1
    assert found.trials[0].rate_per_s == pytest.approx(0.25e3 / 60.5, rel=0.01)


def test_a_bound_below_the_first_token_is_met_at_no_rate(tiny):
    found = serve_prompts(fake(tiny, fakes.Writing()), alone(20.0, 4e3 / 40.5), 15.0, LOAD, ignore)
    assert found.rate_per_s is None
    assert len(found.trials) == 1


def test_heat_shows_in_the_time_between_tokens(tiny):
    found = write_sustained(fake(tiny, fakes.WritingHot()), 40, LOAD, ignore)
    assert found.slowdown == pytest.approx(1.5, rel=0.02)
    assert found.windows[0].p50_ms == pytest.approx(10, rel=0.02)
    assert sum(window.calls for window in found.windows) > 2000


@pytest.mark.parametrize("scenario", [{"scenario": "multi-stream", "batch": 3}, {"scenario": "offline"}])
def test_real_conversations_are_measured_beside_the_usual(export, tmp_path, scenario):
    config = BenchConfig(**QUICK, **scenario)
    made = bench(StageInputs(model=export), config, StageContext(tmp_path / "m"))
    found = read_measurement(made)
    assert found.under_load.scenario == scenario["scenario"]
    assert found.under_load.context_tokens == 9, "the middle one"
    assert all(each.tokens_per_s > 0 for each in found.under_load.numbers)


def test_the_other_scenarios_run_too(export, tmp_path, capsys):
    quick = ["--new-tokens", "2", "--min-seconds", "0.01", "--max-seconds", "0.1", "--min-runs", "2"]
    place = str(tmp_path / "server")
    arguments = ["bench", str(export.path), place, *quick, "--depths", "4", "--scenario", "server"]
    assert run([*arguments, "--p99-bound-ms", "10000"]) == 0
    assert "queries/s with a p99 of at most" in capsys.readouterr().out
    config = BenchConfig(**QUICK, scenario="sustained", sustained_s=2)
    made = bench(StageInputs(model=export), config, StageContext(tmp_path / "m"))
    assert read_measurement(made).under_load.windows


def test_genai_writes_one_conversation(export, tmp_path):
    config = BenchConfig(**QUICK, scenario="offline", runtime="onnxruntime-genai")
    with pytest.raises(UnsupportedError, match=r"Use onnxruntime, llama\.cpp or torch"):
        bench(StageInputs(model=export), config, StageContext(tmp_path / "m"))
    assert not (tmp_path / "m").exists()
    assert get_generation_runtime("onnxruntime-genai")
