"""The HTML report: one page that needs nothing, says everything, and never passes an estimate for a measurement."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from edgekit.reporting.html import render_html
from edgekit.results import BuildResult, StepResult
from tests.reporting.examples import HOSTILE, build, failing_build, minimal_build
from tests.reporting.language_examples import failing_language_build, generation, language_build
from tests.reporting.page import Page

BUILDS = {
    "good": build(),
    "failing": failing_build(),
    "minimal": minimal_build(),
    "language": language_build(),
    "failing-language": failing_language_build(),
}


@pytest.fixture(params=list(BUILDS))
def result(request: pytest.FixtureRequest) -> BuildResult:
    return BUILDS[request.param]


def test_page_nests_and_has_unique_ids(result: BuildResult) -> None:
    page = Page(render_html(result))
    ids = [element.attributes["id"] for element in page.elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    for element in page.elements:
        for reference in element.attributes.get("aria-labelledby", "").split():
            assert reference in ids


def test_page_fetches_nothing(result: BuildResult) -> None:
    text = render_html(result)
    page = Page(text)
    ids = {element.attributes.get("id") for element in page.elements}
    for reference in page.references():
        assert reference == "data:," or reference.removeprefix("#") in ids
    assert not page.all("script")
    assert not re.search(r"@import|url\((?!#hatch\))|https?://|//[a-z]+\.", "".join(e.text for e in page.all("style")))
    assert "http://" not in text
    assert "https://" not in text


def test_every_section_and_plot_is_there() -> None:
    page = Page(render_html(BUILDS["good"]))
    sections = [element.attributes["id"] for element in page.all("section")]
    assert sections == ["front", "stages", "exports", "budget", "latency", "method"]
    titles = [svg.children[0].text for svg in page.all("svg") if svg.attributes.get("class") == "plot"]
    assert titles == [
        "Accuracy against size",
        "Accuracy against latency",
        "Accuracy after each step",
        "Recall by label",
        "Latency distribution",
        "Memory",
    ]


def test_a_language_models_page_has_its_own_plots_and_no_recall() -> None:
    page = Page(render_html(BUILDS["language"]))
    titles = [svg.children[0].text for svg in page.all("svg") if svg.attributes.get("class") == "plot"]
    assert titles == [
        "Perplexity against size",
        "Perplexity against latency",
        "Perplexity after each step",
        "Perplexity by split",
        "Latency distribution",
        "Memory",
        "Decode speed by context",
        "Prefill speed by context",
    ]
    text = page.visible_text().lower()
    assert "accuracy" not in text
    assert "label" not in text


def test_a_language_models_page_says_what_was_measured() -> None:
    page = Page(render_html(BUILDS["language"]))
    tiles = {tile.children[0].text: tile.text for tile in page.elements if tile.attributes.get("class") == "tile"}
    assert list(tiles) == ["Perplexity", "Model files", "Decode speed", "Peak memory"]
    assert "1.45 times the teacher's (1.41 to 1.49)" in tiles["Perplexity"]
    assert "first token 6,505 ms (6,375 to 6,635), prefill 310 tokens/s" in tiles["Decode speed"]
    assert "37.7 % of the roofline at 31.0 GB/s" in tiles["Decode speed"]
    table = next(table for table in page.all("table") if "Of the roofline" in table.text)
    rows = [[" ".join(cell.text.split()) for cell in row.children] for row in _below(table) if row.name == "tr"]
    assert [row[0] for row in rows[1:]] == ["after 64 tokens", "after 512 tokens", "after 2,048 tokens"]
    assert all(len(row) == len(rows[0]) for row in rows)
    assert "412 ms cold, 188 ms warm" in page.visible_text()


def test_what_was_not_measured_of_writing_is_not_claimed() -> None:
    bare = generation(contexts=(64,), memory_bandwidth_bytes_per_s=None, fit=None, load_cold_ms=None)
    depth = bare.depths[0].model_copy(update={"bytes_per_token": None, "roofline_share": None})
    bare = bare.model_copy(update={"depths": [depth]})
    result = BUILDS["language"]
    exports = [export.model_copy(update={"measurement": bare}) for export in result.exports]
    text = Page(render_html(result.model_copy(update={"exports": exports}))).visible_text()
    assert "GB/s plus" not in text
    assert "% of the roofline" not in text
    assert "cold" not in text


def test_every_row_of_the_stage_table_has_every_column() -> None:
    for name in ("good", "language"):
        table = next(table for table in Page(render_html(BUILDS[name])).all("table") if "Parameters" in table.text)
        widths = {len(row.children) for row in _below(table) if row.name == "tr"}
        assert len(widths) == 1


def test_all_steps_are_listed_in_the_order_they_ran() -> None:
    steps = [
        StepResult(kind=kind, of=of, seconds=10.0, cached=kind == "prepare", digest=f"{index:064x}")
        for index, (kind, of) in enumerate(
            [
                *(("prepare", ""), ("import", ""), ("finetune", "import"), ("evaluate", "finetune")),
                *(("capture", "finetune"), ("distill", "prune"), ("export", "quantize")),
                ("package", "export of quantize"),
            ]
        )
    ]
    page = Page(render_html(BUILDS["good"].model_copy(update={"steps": steps})))
    table = next(table for table in page.all("table") if "Run on" in table.text)
    rows = [[" ".join(cell.text.split()) for cell in row.children] for row in _below(table) if row.name == "tr"][1:]
    assert [row[0] for row in rows] == [step.kind for step in steps]
    assert rows[-1] == ["package", "export of quantize", "10.0 s"]
    facts = next(element for element in page.all("ul") if element.attributes.get("class") == "facts")
    assert "work 1 min 20 s in 8 steps, cached ones with the time of their first run" in " ".join(facts.text.split())


def test_a_build_of_an_older_version_says_which_times_it_does_not_tell() -> None:
    text = " ".join(Page(render_html(BUILDS["good"])).visible_text().split())
    assert "12 min 05 s in 6 steps, cached ones with the time of their first run (evaluations and exports not" in text
    assert "Every step of the build" not in text


def test_on_a_phone_every_figure_of_a_table_keeps_its_title(result: BuildResult) -> None:
    """There the header is hidden and each row is a list, so each cell must name its column."""
    for table in Page(render_html(result)).all("table"):
        assert table.attributes["class"] in ("stack", "steps"), "a table that must be scrolled sideways hides figures"
        if table.attributes["class"] == "stack":
            rows = [row for row in _below(table) if row.name == "tr"]
            titles = [" ".join(cell.text.split()) for cell in rows[0].children]
            for row in rows[1:]:
                labels = [cell.attributes.get("data-label", "") for cell in row.children]
                assert all(label in ("", title) for label, title in zip(labels[1:], titles[1:], strict=True))
                assert all(label for label, cell in zip(labels[1:], row.children[1:], strict=True) if cell.text.strip())


def test_pictures_and_tables_are_announced(result: BuildResult) -> None:
    page = Page(render_html(result))
    assert page.all("html")[0].attributes["lang"] == "en"
    for svg in page.all("svg"):
        if svg.attributes.get("aria-hidden") != "true":
            assert svg.attributes["role"] == "img"
            assert svg.attributes.get("aria-label") or svg.attributes["aria-labelledby"]
    for table in page.all("table"):
        headers = [element for element in _below(table) if element.name == "th"]
        assert headers
        assert all(header.attributes.get("scope") in ("col", "row") for header in headers)
    levels = [int(element.name[1]) for element in page.elements if re.fullmatch(r"h[1-6]", element.name)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_hostile_text_stays_text() -> None:
    page = Page(render_html(BUILDS["failing"]))
    assert not page.all("script")
    assert HOSTILE.replace("\x07", "\N{REPLACEMENT CHARACTER}") in page.all("h1")[0].text
    assert "\x07" not in page.visible_text()


def test_failures_and_notes_come_before_the_figures() -> None:
    text = Page(render_html(BUILDS["failing"])).visible_text()
    assert "Parity failed" in text
    assert text.index("What failed") < text.index("Worth knowing") < text.index("p50 latency")
    assert "int8 is slower than float32" in text
    assert "1.09\N{MULTIPLICATION SIGN} slower than its float32 export" in text


def test_a_phones_row_leads_with_the_estimate_and_names_the_machine_that_was_measured() -> None:
    page = Page(render_html(BUILDS["good"]))
    table = next(table for table in page.all("table") if "Parity with torch" in table.text)
    rows = {row.children[0].text.split()[0]: row for row in _below(table) if row.name == "tr"}
    laptop = _cell(rows["laptop-x86"], "Latency")
    phone = _cell(rows["pixel-8"], "Latency")
    assert phone.startswith("estimate ~ 3.10 to 9.40 ms")
    assert "on this machine (Intel(R) Xeon(R) Processor @ 2.70GHz, x86_64), not on pixel-8" in phone
    assert "estimate" not in laptop
    assert laptop.startswith("3.87 / 4.10 ms measured on Intel")


def test_every_estimate_is_marked_with_its_formula_and_assumptions() -> None:
    page = Page(render_html(BUILDS["good"]))
    boxes = [element for element in page.elements if element.attributes.get("class") == "estimate-box"]
    beside, alone = ([box for box in boxes if (box.text.split()[1] == "measured") is found] for found in (True, False))
    assert (len(beside), len(alone)) == (1, 2)
    for box in alone:
        assert box.text.split()[:2] == ["estimate", "~"]
        assert "Nobody measured this" in box.text
        assert "/ efficiency 1 to 0.25" in box.text
        assert "no throttling" in box.text
    bars = [element for element in page.elements if element.attributes.get("class") == "estimate-bar"]
    assert len(bars) == 2
    assert all("estimate, not measured" in bar.text for bar in bars)


def test_one_measurement_in_three_rows_is_drawn_once() -> None:
    page = Page(render_html(BUILDS["good"]))
    assert "In the rows of laptop-x86, pixel-8 and raspberry-pi-5." in page.visible_text()
    assert sum("Latency distribution" in svg.text for svg in page.all("svg")) == 1


def test_checks_show_their_status_in_words() -> None:
    page = Page(render_html(BUILDS["failing"]))
    words = {
        " ".join(element.text.split())
        for element in page.all("span")
        if "status" in element.attributes.get("class", "")
    }
    assert {"\N{CHECK MARK} met", "\N{BALLOT X} missed", "? inconclusive", "\N{EN DASH} not measured"} <= words


def _below(element: object) -> list:
    return [inner for child in element.children for inner in [child, *_below(child)]]


def _cell(row: object, label: str) -> str:
    cell = next(cell for cell in row.children if cell.attributes.get("data-label", "").startswith(label))
    return " ".join(cell.text.split())
