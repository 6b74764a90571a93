"""Values are spelled with units and signs, and rounding never changes a verdict."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.reporting import wording
from edgekit.results import BudgetCheck, Estimate, Interval

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"


@pytest.mark.parametrize(
    ("spell", "value", "expected"),
    [
        (wording.mebibytes, 8_640_000, "8.2 MiB"),
        (wording.mebibytes, 2_048, "2.0 KiB"),
        (wording.mebibytes, 1_234 * 2**20, "1,234.0 MiB"),
        (wording.milliseconds, 3.8712, "3.87 ms"),
        (wording.milliseconds, 0.0561, "0.056 ms"),
        (wording.milliseconds, 61.53, "61.5 ms"),
        (wording.milliseconds, 12_345.0, "12.3 s"),
        (wording.seconds, 3.44, "3.4 s"),
        (wording.seconds, 725.1, "12 min 05 s"),
        (wording.seconds, 119.7, "2 min 00 s"),
        (wording.percent, 0.8372, "83.7 %"),
        (wording.points, -0.0021, f"{MINUS}0.2"),
        (wording.points, -0.0001, "0.0"),
        (wording.points, 0.0132, "+1.3"),
        (wording.count, 22_713_728, "22.7 M"),
        (wording.count, 8_540, "8,540"),
        (wording.join_words, ["a", "b", "c"], "a, b and c"),
        (wording.join_words, ["a"], "a"),
        (wording.join_words, [], ""),
    ],
)
def test_spelling(spell: object, value: object, expected: str) -> None:
    assert spell(value) == expected


@pytest.mark.parametrize(
    ("ratio", "low", "high", "expected"),
    [
        (3.1, 3.0, 3.2, f"3.10{TIMES} faster than float32 (3.00 to 3.20)"),
        (0.8, 0.75, 0.85, f"1.25{TIMES} slower than float32 (1.18 to 1.33)"),
        (1.05, 0.98, 1.1, "no clear difference from float32 (0.980 to 1.10)"),
    ],
)
def test_a_speed_is_claimed_only_when_its_interval_clears_one(
    ratio: float, low: float, high: float, expected: str
) -> None:
    assert wording.speed_up(ratio, low, high, "float32") == expected


def test_an_estimate_is_never_spelled_like_a_measurement() -> None:
    value = Estimate(quantity="latency", low=2.1, high=8.4, unit="ms", formula="f", assumptions=[])
    assert wording.estimate(value) == "~ 2.10 to 8.40 ms (estimate)"
    assert wording.estimated(value, "pixel-8") == "latency on pixel-8"
    named = value.model_copy(update={"quantity": "latency of 1 x 64 tokens on pixel-8"})
    assert wording.estimated(named, "pixel-8") == named.quantity
    size = value.model_copy(update={"unit": "bytes", "low": 2**20, "high": 2**21})
    assert wording.estimate(size) == "~ 1.0 MiB to 2.0 MiB (estimate)"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("file_bytes", 9_000_000, "8.6 MiB"),
        ("p95_ms", 12.0, "12.0 ms"),
        ("quality_drop", 0.02, "2.0 points"),
        ("quality_drop", -0.004, f"{MINUS}0.4 points"),
        ("perplexity_ratio", 1.42, f"1.42{TIMES}"),
        ("decode_tokens_per_s", 87.12, "87.1 tokens/s"),
        ("first_token_ms", 212.0, "212 ms"),
        ("something_new", 3.0, "3.00"),
        ("p95_ms", None, "\N{EN DASH}"),
    ],
)
def test_checks_carry_the_unit_in_their_name(name: str, value: float | None, expected: str) -> None:
    assert wording.check_amount(name, value) == expected


def test_check_ranges_do_not_repeat_the_unit() -> None:
    check = BudgetCheck(
        name="p95_ms", limit=5, value=4, interval=Interval(low=3.9, high=4.2), status="met", explanation=""
    )
    assert wording.check_range(check) == "3.90 to 4.20"
    assert wording.check_range(check.model_copy(update={"interval": None})) == ""


@given(st.text())
def test_printable_text_has_no_control_characters_and_keeps_everything_else(text: str) -> None:
    shown = wording.printable(text)
    assert len(shown) == len(text)
    assert all(character >= " " or character in "\t\n\r" for character in shown)
    assert all(new in (old, "\N{REPLACEMENT CHARACTER}") for old, new in zip(text, shown, strict=True))
