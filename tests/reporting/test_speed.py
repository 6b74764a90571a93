"""The speed of a call and of writing, in words."""

from __future__ import annotations

from edgekit.reporting import agreement, speed
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
