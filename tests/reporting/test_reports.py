"""JSON, Markdown, JUnit and the terminal say the same as the HTML page."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from edgekit.reporting import terminal, terminal_measurements
from edgekit.reporting.files import write_reports
from edgekit.reporting.html import render_html
from edgekit.reporting.json_report import build_schema, render_json
from edgekit.reporting.junit import render_junit
from edgekit.reporting.markdown import render_markdown
from edgekit.results import BuildResult
from tests.reporting.examples import build, failing_build, minimal_build
from tests.reporting.language_examples import failing_language_build, generation, language_build

BUILDS = [build(), failing_build(), minimal_build(), language_build(), failing_language_build()]
DOCS = Path(__file__).parents[2] / "docs"


def shown(result: BuildResult, width: int = 120) -> str:
    """Returns what the terminal shows."""
    stream = io.StringIO()
    terminal.show_build(result, Console(file=stream, width=width, force_terminal=False))
    return stream.getvalue()


@pytest.mark.parametrize("result", BUILDS)
def test_build_json_reads_back_equal(result: BuildResult) -> None:
    text = render_json(result)
    assert BuildResult.model_validate_json(text) == result
    assert json.loads(text)["schema"] == 1


def test_build_json_has_the_keys_that_programs_were_promised() -> None:
    fields = json.loads(render_json(build()))
    stage, export = fields["stages"][-1], fields["exports"][0]
    assert {"name", "seed", "exit_code"} <= fields.keys()
    assert {"kind", "seconds", "cached"} <= stage.keys()
    assert stage["quality"]["accuracy"] == 0.837
    assert export["parity"].keys() >= {"max_abs_diff", "label_agreement"}
    assert export["measurement"].keys() >= {"runtime", "threads", "p50_ms", "p95_ms", "peak_rss_bytes", "samples_ms"}
    assert export["budget"].keys() == {"met", "checks"}


def test_published_schema_is_in_step() -> None:
    assert (DOCS / "build.schema.json").read_text(encoding="utf-8") == build_schema(), "run `make docs`"


@pytest.mark.parametrize("result", BUILDS)
def test_schema_describes_every_key_that_is_written(result: BuildResult) -> None:
    schema = json.loads(build_schema())

    def fitting(value: object, options: list[dict]) -> dict:
        """Returns the option that is not null and, of several objects, the one whose keys `value` has."""
        found = [option for option in options if option.get("type") != "null"]
        if len(found) > 1 and isinstance(value, dict):
            named = {option["$ref"].rsplit("/", 1)[1]: option for option in found}
            return next(named[name] for name in named if set(schema["$defs"][name]["properties"]) == value.keys())
        return found[0]

    def check(value: object, rule: dict, where: str) -> None:
        rule = schema["$defs"][rule["$ref"].rsplit("/", 1)[1]] if "$ref" in rule else rule
        if value is None:
            assert any(option.get("type") == "null" for option in rule.get("anyOf", [])), where
            return
        if "anyOf" in rule:
            check(value, fitting(value, rule["anyOf"]), where)
            return
        if isinstance(value, dict) and "properties" in rule:
            assert value.keys() == set(rule["properties"]) == set(rule["required"]), where
            for key, inner in value.items():
                check(inner, rule["properties"][key], f"{where}.{key}")
        elif isinstance(value, list):
            for inner in value:
                check(inner, rule["items"], f"{where}[]")

    check(json.loads(render_json(result)), schema, "build")


@pytest.mark.parametrize("result", BUILDS)
def test_markdown_tables_are_well_formed(result: BuildResult) -> None:
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(render_markdown(result))
    rows = [cell.count("|") for cell in render_markdown(result).splitlines() if cell.startswith("| ---")]
    tables = [token for token in tokens if token.type == "table_open"]
    assert len(tables) == len(rows)
    widths: list[int] = []
    for token in tokens:
        if token.type == "tr_open":
            widths.append(0)
        elif token.type in ("th_open", "td_open"):
            widths[-1] += 1
    assert 1 not in widths
    assert len(render_markdown(result)) < 65_536, "GitHub refuses longer comments"


def test_markdown_takes_hostile_text_literally() -> None:
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(render_markdown(failing_build()))
    assert "<script" not in html
    assert "&lt;script&gt;alert('x')&lt;/script&gt; | a|b &amp; &quot;q&quot;" in html


def test_markdown_marks_estimates_and_foreign_machines() -> None:
    row = next(line for line in render_markdown(build()).splitlines() if line.startswith("| onnx for pixel-8"))
    assert "3.10 to 9.40 ms (estimate)*<br>3.87 / 4.10 ms<br>on this machine, not the target" in row
    laptop = next(line for line in render_markdown(build()).splitlines() if line.startswith("| onnx for laptop"))
    assert "estimate" not in laptop
    assert "on this machine" not in laptop


def test_every_report_says_how_far_an_estimate_was_off_where_the_target_was_measured() -> None:
    """The range is 1 to 9 ms, so its geometric middle 3; about 3.9 ms were measured."""
    told = "onnx for laptop-x86: latency on laptop-x86 ~ 1.00 to 9.00 ms (estimate), measured 3.87 ms: within the range"
    measured = build().exports[0].measurement.p50_ms
    markdown = render_markdown(build())
    assert "Estimates against measurements" in markdown
    assert f"{told}, {measured / 3:.2f}×" in markdown.replace("\\", "")
    assert told in shown(build(), width=200)
    assert told.partition(": ")[2] in " ".join(render_html(build()).split())


def test_a_language_models_markdown_has_perplexity_and_speed() -> None:
    lines = render_markdown(language_build()).splitlines()
    laptop = next(line for line in lines if line.startswith("| onnx for laptop"))
    assert "| 38.9 | max 0.021 | 6,505 ms / 64.8 tokens/s |" in laptop
    header = next(line for line in lines if line.startswith("| export"))
    assert "| perplexity | parity | first token / decode |" in header
    assert "| distill | 37.6 (36.1 to 39.1) | 1.40 (1.36 to 1.44) | 71.0 % |" in "\n".join(lines)
    assert "accuracy" not in "\n".join(lines)


def test_a_missed_decode_speed_is_a_junit_failure() -> None:
    root = ElementTree.fromstring(render_junit(failing_language_build()))
    laptop = next(suite for suite in root if suite.get("name") == "onnx for laptop-x86")
    assert laptop.find("testcase[@name='decode_tokens_per_s']/failure").get("message") == "Decode speed missed"
    assert laptop.find("testcase[@name='perplexity_ratio']/failure") is None


def test_every_gate_is_a_junit_case() -> None:
    root = ElementTree.fromstring(render_junit(failing_build()))
    suites = {suite.get("name"): suite for suite in root}
    laptop, old, phone = (suites[f"onnx for {name}"] for name in ("laptop-x86", "laptop-old", "pixel-8"))
    names = ["parity", "file_bytes", "peak_memory_bytes", "p95_ms", "quality_drop"]
    assert [case.get("name") for case in laptop.findall("testcase")] == names
    assert laptop.find("testcase[@name='p95_ms']/failure").get("type") == "missed"
    assert old.find("testcase[@name='p95_ms']/failure").get("type") == "inconclusive"
    assert "max_abs_diff 0.61" in phone.find("testcase[@name='parity']/failure").text
    assert phone.find("testcase[@name='p95_ms']/skipped") is not None
    assert (phone.get("tests"), phone.get("failures"), phone.get("skipped")) == ("5", "1", "2")
    assert "exit code 3" in suites["build"].find("testcase/failure").get("message")


def test_junit_of_a_good_build_has_no_failure() -> None:
    root = ElementTree.fromstring(render_junit(build()))
    assert not root.findall(".//failure")
    assert math.isclose(sum(float(suite.get("time")) for suite in root), 725.1)


@pytest.mark.parametrize("width", [80, 100, 160])
def test_terminal_shows_stages_exports_and_the_verdict(width: int) -> None:
    text = shown(build(), width)
    assert max(map(len, text.splitlines())) <= width
    assert width == 80 or "83.7 % (81.4 to 85.9)" in text
    assert "8,640,000" in text
    assert "(estimate)" in " ".join(text.split())
    assert "on this machine" in " ".join(text.split())
    assert "Every gate passed." in text.splitlines()[-1] + text.splitlines()[-2]


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160])
@pytest.mark.parametrize("result", [build(), failing_build(), language_build(), failing_language_build()])
def test_terminal_splits_no_word(result: BuildResult, width: int) -> None:
    text = shown(result, width)
    for word in ("raspberry-pi-5", "inconclusive", "laptop-x86", "8,640,000", "(estimate)", "perplexity", "parity"):
        assert text.count(word) >= shown(result, 400).count(word), f"{word} is split at {width} columns"


def test_terminal_shows_the_exported_files_own_quality_and_each_scenario_once() -> None:
    result = build()
    exported = result.exports[0].quality
    own = exported.model_copy(update={"accuracy": 0.8123})
    exports = [export.model_copy(update={"quality": own}) for export in result.exports]
    other = result.exports[1].measurement.model_copy(update={"p50_ms": 5.05})
    exports[1] = exports[1].model_copy(update={"measurement": other})
    for width in (80, 160):
        text = shown(result.model_copy(update={"exports": exports}), width)
        assert text.count("81.2 %") == len(exports)
        assert text.count("Measured:") == 1, "two measurements in one scenario, on one machine"


def test_sentences_end_in_one_full_stop() -> None:
    result = build()
    phone = result.exports[1]
    ended = [phone.estimates[0].model_copy(update={"assumptions": ["No throttling.", "An idle phone."]})]
    exports = [result.exports[0], phone.model_copy(update={"estimates": ended})]
    text = render_markdown(result.model_copy(update={"exports": exports}))
    assert "Holds only if: No throttling; An idle phone." in text
    assert ".." not in text


def test_terminal_names_what_failed_and_takes_brackets_literally() -> None:
    result = failing_build().model_copy(update={"failures": ["[bold]p95[/bold] missed"]})
    text = shown(result)
    assert "Failed: [bold]p95[/bold] missed" in text
    assert "p95 latency inconclusive" in " ".join(text.split())
    assert "int8 is slower than float32" in text


def test_single_results_have_tables() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=120)
    export = build().exports[0]
    assert export.float_comparison is not None
    terminal_measurements.show_comparison(export.float_comparison, console, first="int8", second="float32")
    for table in (
        terminal.quality_table(export.quality),
        terminal.parity_table(export.parity),
        terminal.budget_table(export.budget),
        terminal.estimate_table(build().exports[1].estimates),
    ):
        console.print(table)
    text = stream.getvalue()
    assert "3.09\N{MULTIPLICATION SIGN} faster than float32 (3.00 to 3.18)" in text
    assert "Xeon" in text
    assert "~ 3.10 to 9.40 ms (estimate)" in text


def test_single_results_of_language_models_have_tables() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=140)
    export = language_build().exports[0]
    for table in (
        terminal.quality_table(export.quality),
        terminal.parity_table(export.parity),
        terminal_measurements.measurement_table({"int4": export.measurement, "short": generation(contexts=(64,))}),
    ):
        console.print(table)
    rows = [" ".join(line.split()) for line in stream.getvalue().splitlines()]
    assert "perplexity on news 43.6 (42.1 to 45.1)" in rows
    assert "equal greedy text 61.5 of 64 tokens, whole after 87.5 % of 8 prompts" in rows
    assert "chat templates that differ 0 of 24" in rows
    assert "after 64 tokens: decode 107 tokens/s (106 to 108) 107 tokens/s (106 to 108)" in rows
    assert "after 2,048 tokens: decode 64.8 tokens/s (64.1 to 65.4)" in rows  # the other has no such depth


@pytest.mark.parametrize("width", [80, 120])
def test_terminal_shows_a_language_models_build(width: int) -> None:
    text = shown(language_build(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "perplexity (95 %)" in text
    assert "64.8 tokens/s" in " ".join(text.split())
    assert "accuracy" not in text


def test_reports_are_written_together(tmp_path: Path) -> None:
    files = write_reports(build(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["build.json", "junit.xml", "report.html", "report.md"]
    assert files.html.read_text(encoding="utf-8").startswith("<!doctype html>")
