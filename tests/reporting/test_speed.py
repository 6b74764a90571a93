"""The speed of a call and of writing, in words."""

from __future__ import annotations

import io

from rich.console import Console

from edgekit.reporting import agreement, findings, speed, terminal_measurements
from edgekit.results import Conditions, Interval
from tests.reporting.examples import build, measurement, parity
from tests.reporting.language_examples import generation, language_build, language_parity

TIMES = "\N{MULTIPLICATION SIGN}"


def test_scenarios() -> None:
    assert speed.scenario(measurement(3.8, 8)) == f"onnxruntime 1.32.0, 1 {TIMES} 64 tokens, 1 thread"
    assert speed.scenario(generation()) == (
        "onnxruntime-genai 0.18.0, 64 tokens written after 64, 512 and 2,048, 2 threads"
    )


def test_the_deepest_context_speaks_for_a_model() -> None:
    found = generation(contexts=(2048, 64))
    assert found.deepest.context_tokens == 2048
    assert found.timing.samples_ms == found.depths[0].inter_token_samples_ms
    assert speed.summary(found) == "6,505 ms / 64.8 tokens/s"
    assert speed.headline(found)[:2] == ("Decode speed", "64.8 tokens/s")
    assert speed.noun(found) == "token"


def test_columns_are_named_by_what_was_measured() -> None:
    assert speed.column_title(build()) == "Latency, p50 / p95"
    assert speed.column_title(language_build()) == "Speed, first token / decode"


def test_the_roofline_is_told_only_where_it_is_known() -> None:
    found = generation()
    assert speed.roofline(found) == (
        "37.7 % of the roofline at 31.0 GB/s; a token takes its bytes at 15.0 GB/s plus 3.40 ms"
    )
    assert speed.roofline(found.model_copy(update={"memory_bandwidth_bytes_per_s": None, "fit": None})) == ""


def test_loading_is_cold_and_warm() -> None:
    assert speed.loading(generation()) == "412 ms cold, 188 ms warm"
    assert speed.loading(generation(load_cold_ms=None)) == "188 ms warm"
    assert speed.loading(measurement(3.8, 8)) == "61.5 ms"


def test_a_language_models_parity_in_a_sentence() -> None:
    assert agreement.sentence(language_parity()) == (
        "8,192 tokens of 16 texts under onnxruntime-genai 0.18.0 (one buffer for past and present) against torch: "
        "largest logit difference 0.021, mean 0.0011, KL 4.2e-06 nats (p99 5.1e-05), same likeliest token on 99.9 %; "
        "greedy text equal for 61.5 of 64 tokens, whole after 87.5 % of 8 prompts; "
        "tokenizer: 0 of 292 texts differ; chat template: 0 of 24 conversations differ."
    )


def test_what_a_parity_check_did_not_try_is_left_out() -> None:
    bare = language_parity().model_copy(update={"greedy_prompts": 0, "template_texts": 0})
    assert "greedy" not in agreement.sentence(bare)
    assert "template" not in agreement.sentence(bare)
    titles = dict(agreement.rows(bare))
    assert "equal greedy text" not in titles
    assert "chat templates that differ" not in titles
    assert agreement.same_choice(bare) == "top-1 99.9 %"
    assert agreement.same_choice(parity()) == "labels 100.0 %"


def test_a_busy_machine_is_told_in_one_sentence() -> None:
    quiet = measurement(4.0, 8)
    assert speed.doubts(quiet) == ""
    assert speed.doubts(quiet.model_copy(update={"load_average": 1.5})) == "", "one of two cores was idle, or nearly"
    busy = quiet.model_copy(update={"load_average": 3.22})
    assert speed.doubts(busy) == (
        "The machine was not quiet: the load average before it was 3.22 on 2 cores, of which it needs 1 for itself. "
        "Measure again when nothing else runs."
    )
    both_cores = quiet.model_copy(update={"load_average": 0.6, "threads": 2})
    assert "of which it needs 2 for itself" in speed.doubts(both_cores)


def test_a_wide_interval_is_told() -> None:
    wide = measurement(4.0, 8).model_copy(update={"p50_ms": 8.91, "p50_interval_ms": Interval(low=5.41, high=12.4)})
    assert "the interval of its p50, 5.41 to 12.4, spans 78.5 % of it" in speed.doubts(wide)
    narrow = wide.model_copy(update={"p50_interval_ms": Interval(low=8.1, high=9.8)})
    assert speed.doubts(narrow) == ""


def test_a_build_does_not_take_its_own_work_for_anothers() -> None:
    after_training = measurement(4.0, 8).model_copy(update={"load_average": 2.1})
    assert speed.doubts(after_training)
    assert speed.doubts(after_training, in_build=True) == ""
    crowded = after_training.model_copy(update={"load_average": 3.2})
    assert speed.doubts(crowded, in_build=True).endswith("with edgekit bench.")
    result = build()
    exports = [export.model_copy(update={"measurement": crowded}) for export in result.exports]
    found = [note for note in findings.notes(result.model_copy(update={"exports": exports})) if "not quiet" in note]
    assert len(found) == 1, "three targets, one sentence"
    assert not [note for note in findings.notes(result) if "not quiet" in note]


def test_writing_is_judged_by_its_decode_speed() -> None:
    found = generation()
    assert speed.doubts(found) == ""
    deep = found.deepest.model_copy(update={"decode_tokens_per_s_interval": Interval(low=30, high=90)})
    unsteady = found.model_copy(update={"depths": [*found.depths[:-1], deep]})
    assert "the interval of its decode speed, 30.0 to 90.0" in speed.doubts(unsteady)


def test_bench_prints_the_doubt() -> None:
    stream = io.StringIO()
    busy = measurement(4.0, 8).model_copy(update={"load_average": 3.22})
    terminal_measurements.show_measurement(busy, Console(file=stream, width=100))
    assert "The machine was not quiet" in stream.getvalue()


def disturbed(**changes: float) -> Conditions:
    values = {"load_average_after": 0.3, "other_work_share": 0.01, "stolen_share": 0.0}
    return Conditions.model_validate({**values, **changes})


def test_work_beside_a_measurement_is_told() -> None:
    found = measurement(4.0, 8).model_copy(update={"load_average": 0.1, "conditions": disturbed()})
    assert speed.doubts(found) == ""
    for changes, words in (
        ({"other_work_share": 0.12}, "other work took 12.0 % of its cores' time"),
        ({"stolen_share": 0.03}, "the host took 3.0 % of its cores' time"),
        (
            {"frequency_before_mhz": 3000, "frequency_low_mhz": 2100, "frequency_high_mhz": 3000},
            "its cores' frequency fell from 3,000 to 2,100 MHz",
        ),
    ):
        spoilt = found.model_copy(update={"conditions": disturbed(**changes)})
        assert words in speed.doubts(spoilt)


def test_outliers_and_what_went_on_are_shown() -> None:
    found = measurement(4.0, 8).model_copy(update={"mad_ms": 0.1234, "outliers": 7, "conditions": disturbed()})
    rows = dict(speed.rows([found]))
    assert rows["spread"] == ["MAD 0.123 ms, 7 outliers, kept"]
    assert rows["on its cores"] == ["other work 1.0 %, stolen 0.0 %, frequency not told"]
    assert rows["load average"] == [f"{found.load_average:.2f} before, 0.30 after"]
    assert "the page itself, as the browser counts" not in rows
    in_a_page = found.model_copy(update={"calls_per_sample": 40, "page_bytes": 19 * 2**20})
    rows = dict(speed.rows([in_a_page]))
    assert rows["spread"] == ["MAD 0.123 ms, 7 outliers, kept; each sample the mean of up to 40 calls"]
    assert rows["the page itself, as the browser counts"] == ["19.0 MiB"]
    told = disturbed(frequency_before_mhz=2600, frequency_low_mhz=2400, frequency_high_mhz=2600)
    assert speed.beside(told).endswith("2,400 to 2,600 MHz")


def test_a_comparison_says_its_verdict() -> None:
    export = next(export for export in build().exports if export.float_comparison is not None)
    found = export.float_comparison.model_copy(update={"verdict": "better", "margin": 0.03})
    console = Console(file=io.StringIO(), width=200)
    terminal_measurements.show_comparison(found, console)
    assert "Verdict: better (margin 3.0 %)." in console.file.getvalue()
