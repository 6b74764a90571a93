"""Language models that took turns, as tables."""

from __future__ import annotations

import io

from rich.console import Console

from edgekit.reporting.generation import DEPTH_COLUMNS, PROCESS_COLUMNS, conditions, depth_rows, process_rows
from edgekit.reporting.terminal_measurements import show_generation_comparison
from edgekit.results import GenerationComparison, GenerationRatio, Interval
from tests.reporting.language_examples import generation, near


def comparison() -> GenerationComparison:
    """Returns two models at different depths; the second takes 1.25 times as long at 512 tokens."""
    return GenerationComparison(
        names=["int4, onnxruntime-genai, 2T", "[bold], llama.cpp, 1T"],
        measurements=[
            generation(contexts=(64, 512)),
            generation(
                contexts=(512, 2048), runtime="llama.cpp", threads=1, memory_bandwidth_bytes_per_s=20e9, fit=None,
                load_cold_ms=None,
            ),
        ],
        ratios=[
            GenerationRatio(
                measurement=1,
                context_tokens=512,
                token_time=1.25,
                token_time_interval=Interval(low=1.2, high=1.31),
                first_token_time=0.9,
                first_token_time_interval=near(0.9),
            )
        ],
        rounds=7,
    )  # fmt: skip


def test_each_depth_has_those_that_were_measured_there():
    rows = dict(depth_rows(comparison()))
    assert list(rows) == ["after 64 tokens", "after 512 tokens", "after 2,048 tokens"]
    assert [len(cells) for cells in rows.values()] == [1, 2, 1]
    assert all(len(cells) == len(DEPTH_COLUMNS) for lines in rows.values() for cells in lines)
    first, second = rows["after 512 tokens"]
    assert first[0] == "int4\nonnxruntime-genai, 2T"
    assert (first[-1], second[-1]) == ("1×", "1.25×\n1.20 to 1.31")
    assert rows["after 2,048 tokens"][0][-1] == ""  # the first was not measured there


def test_a_verdict_is_said_of_the_row_that_it_stands_in():
    (ratio,) = comparison().ratios
    judged = comparison().model_copy(update={"ratios": [ratio.model_copy(update={"verdict": "better"})]})
    assert dict(depth_rows(judged))["after 512 tokens"][1][-1] == "1.25×\n1.20 to 1.31\nslower"


def test_a_process_shows_what_is_known_of_it():
    first, second = process_rows(comparison())
    assert len(first) == len(second) == len(PROCESS_COLUMNS)
    assert (first[1], second[1]) == ("412 ms cold\n188 ms warm", "188 ms warm")
    assert (first[-1], second[-1]) == ("15.0 GB/s\n3.40 ms", "–")


def test_the_conditions_name_the_bandwidth_for_each_number_of_threads():
    found = conditions(comparison())
    assert found.startswith("7 rounds in turn, 64 tokens after the first; ")
    assert "memory is read at 20.0 GB/s with 1 thread and 31.0 GB/s with 2 threads" in found


def test_the_terminal_shows_all_of_it_and_takes_no_name_for_markup():
    console = Console(file=io.StringIO(), width=120)
    show_generation_comparison(comparison(), console)
    shown = console.file.getvalue()
    for words in (
        "Measured in turn",
        "after 2,048 tokens",
        "[bold]",
        "1.20 to 1.31",
        "188 ms warm",
        "7 rounds in turn",
    ):
        assert words in shown
