"""The plots put points where the numbers say, on any data."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.reporting.findings import distinct_measurements, rows_of, teacher_bytes, teacher_stage
from edgekit.reporting.plots.budget import budget_bar
from edgekit.reporting.plots.front import Point, frontier, quality_against_latency, quality_against_size
from edgekit.reporting.plots.generation import decode_by_depth, prefill_by_depth, roofline_points
from edgekit.reporting.plots.latency import Curve, latency_distribution
from edgekit.reporting.plots.memory import memory_split
from edgekit.reporting.plots.recall import recall_by_label
from edgekit.reporting.plots.splits import metric_by_split
from edgekit.reporting.plots.svg import Axis, Box, element, place_label, text, widest
from edgekit.reporting.plots.waterfall import quality_waterfall
from edgekit.results import BudgetCheck, Interval
from tests.reporting.examples import HOSTILE, build, failing_build, measurement, minimal_build, quality
from tests.reporting.language_examples import (
    failing_language_build,
    generation,
    language_build,
    language_quality,
)

PLOTS = [quality_against_size, quality_against_latency, quality_waterfall, recall_by_label, metric_by_split]
SHARED = PLOTS[:3]


@pytest.mark.parametrize("plot", PLOTS)
def test_plots_of_nothing_are_nothing(plot: object) -> None:
    assert plot(minimal_build()) == ""
    assert latency_distribution("x", []) == ""
    assert memory_split("x", [], None) == ""


@pytest.mark.parametrize(
    ("plot", "result"),
    [(plot, result) for plot in [*SHARED, recall_by_label] for result in (build(), failing_build())]
    + [(plot, result) for plot in [*SHARED, metric_by_split] for result in (language_build(), failing_language_build())]
    + [(lambda result: decode_by_depth("d", result.exports[0].measurement), language_build())],
)
def test_plots_are_well_formed_and_inside_their_frame(plot: object, result: object) -> None:
    root = ElementTree.fromstring(plot(result))
    width, height = (float(part) for part in root.get("viewBox").split()[2:])
    for shape in root.iter():
        for key, most in (("x", width), ("cx", width), ("x1", width), ("x2", width), ("y", height), ("cy", height)):
            if shape.get(key) is not None:
                assert -1 <= float(shape.get(key)) <= most + 1


def test_axis_places_and_ticks() -> None:
    axis = Axis(0, 10, 50, 150)
    assert [axis.place(value) for value in (0, 5, 10, 99, -99)] == [50, 100, 150, 150, 50]
    assert axis.ticks(5) == [0, 2, 4, 6, 8, 10]
    logarithmic = Axis(1, 100, 0, 200, logarithmic=True)
    assert logarithmic.place(10) == pytest.approx(100)
    assert logarithmic.ticks() == [1, 2, 5, 10, 20, 50, 100]
    assert Axis(24, 46, 0, 200, logarithmic=True).ticks() == [25, 30, 35, 40, 45]
    assert Axis(37.4, 40.4, 0, 200, logarithmic=True).ticks(3) == [38, 39, 40]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 8))
def test_ticks_are_within_the_axis_and_not_too_many(low: float, extent: float, wanted: int) -> None:
    axis = Axis(low, low + extent, 0, 100)
    ticks = axis.ticks(wanted)
    assert len(ticks) <= 2 * wanted + 2
    assert all(low - extent * 1e-6 <= tick <= low + extent * (1 + 1e-6) for tick in ticks)


def test_frontier_keeps_what_nothing_beats() -> None:
    def point(x: float, accuracy: float) -> Point:
        return Point(f"{x}", "stage", x, quality(accuracy), "")

    points = [point(3, 0.9), point(1, 0.7), point(2, 0.6), point(2.5, 0.8), point(4, 0.85)]
    assert [entry.x for entry in frontier(points)] == [1, 2.5, 3]


def test_frontier_of_perplexity_keeps_the_lower() -> None:
    points = [Point(f"{x}", "stage", x, language_quality(value), "") for x, value in ((1, 60), (2, 70), (3, 30))]
    assert [entry.x for entry in frontier(points)] == [1, 3]


def test_up_is_better_whatever_the_metric() -> None:
    """The teacher stands above the pruned student: by accuracy, and by perplexity, where it has the lower value."""
    for result in (build(), language_build()):
        root = ElementTree.fromstring(quality_against_size(result))
        teacher = root.find("polygon[@class='marker teacher']").get("points").split()
        height = float(teacher[1].split(",")[1])
        pruned = next(shape for shape in root.iter("circle") if "prune" in shape[0].text)
        assert height < float(pruned.get("cy"))
        axis = root.find("line[@class='axis']")
        assert float(axis.get("y1")) > float(pruned.get("cy")), "the x axis is at the bottom"


def test_a_rise_of_perplexity_is_a_loss() -> None:
    root = ElementTree.fromstring(quality_waterfall(language_build()))
    bars = {bar[0].text.split(":")[0]: bar.get("class") for bar in root.iter("rect") if "change" in bar.get("class")}
    assert bars == {
        "prune": "change loss",
        "distill": "change gain",
        "quantize": "change loss",
        "onnx file": "change none",
    }


def test_classifiers_have_no_plot_by_split_and_language_models_no_recall() -> None:
    assert recall_by_label(language_build()) == ""
    assert metric_by_split(build()) == ""
    one_split = language_build().exports[0].model_copy(update={"quality": language_quality(38.9)})
    assert metric_by_split(language_build().model_copy(update={"exports": [one_split]})) == ""


def test_decoding_is_drawn_under_its_roofline() -> None:
    found = generation()
    for depth, (context, limit) in zip(found.depths, roofline_points(found), strict=True):
        assert context == depth.context_tokens
        assert limit * depth.roofline_share == pytest.approx(depth.decode_tokens_per_s)
    root = ElementTree.fromstring(decode_by_depth("d", found))
    heights = [float(step.split()[1]) for step in root.find("path[@class='roofline']").get("d")[1:].split("L")]
    markers = [float(shape.get("y")) for shape in root.iter("rect")]
    assert len(markers) == 3
    assert max(heights) < min(markers)
    assert ElementTree.fromstring(prefill_by_depth("p", found)).find("path[@class='roofline']") is None
    unknown = found.model_copy(update={"memory_bandwidth_bytes_per_s": None})
    assert roofline_points(unknown) == []


def test_one_depth_can_be_drawn() -> None:
    assert ElementTree.fromstring(decode_by_depth("d", generation(contexts=(64,)))).find("rect") is not None


def test_labels_avoid_each_other() -> None:
    taken: list[Box] = []
    bounds = Box(0, 0, 480, 300)
    places = [place_label("quantize", (200, 150), taken, bounds) for _ in range(5)]
    assert len(set(places)) == 5
    assert not any(one.overlaps(other) for index, one in enumerate(taken) for other in taken[:index])


@pytest.mark.parametrize("target", ["a", "raspberry-pi-5", "a-board-with-a-long-name-" * 2, "x" * 300])
@pytest.mark.parametrize(("low", "high"), [(0.0001, 0.0002), (3.17, 21.1), (5000.0, 9000.0), (0.0001, 9000.0)])
def test_the_label_of_an_estimate_is_inside_whatever_its_length(target: str, low: float, high: float) -> None:
    export = build().exports[1]
    estimate = export.estimates[0].model_copy(update={"low": low, "high": high})
    phone = export.model_copy(update={"target": target, "estimates": [estimate]})
    root = ElementTree.fromstring(quality_against_latency(build().model_copy(update={"exports": [phone] * 2})))
    labels = root.findall("text[@class='estimate-text']")
    assert labels
    for label in labels:
        assert label.text.startswith("~ ")
        assert label.text.endswith(" (estimate)")
        assert float(label.get("x")) >= 0
        assert float(label.get("x")) + widest(label.text) <= 480


@settings(max_examples=60, deadline=None)
@given(st.text("mW", min_size=1, max_size=20), st.floats(50, 460), st.floats(20, 260), st.integers(1, 4))
def test_labels_of_points_stay_inside_their_bounds(content: str, x: float, y: float, count: int) -> None:
    taken: list[Box] = []
    bounds = Box(44, 14, 466, 270)
    for _ in range(count):
        place_label(content, (x, y), taken, bounds)
    for box in taken:
        assert bounds.left <= box.left
        assert box.right <= bounds.right
        assert bounds.top <= box.top
        assert box.bottom <= bounds.bottom


def test_many_targets_make_the_drawing_higher_not_the_plot_lower() -> None:
    phone = build().exports[1]
    many = [phone.model_copy(update={"target": f"board-{index}"}) for index in range(12)]
    root = ElementTree.fromstring(quality_against_latency(build().model_copy(update={"exports": many})))
    height = float(root.get("viewBox").split()[3])
    assert all(float(bar.get("y")) < height - 40 for bar in root.findall("rect[@class='estimate-bar']"))
    axis = float(root.find("line[@class='axis']").get("y1"))
    assert axis > 200


def test_markup_is_escaped() -> None:
    assert "<script" not in text(HOSTILE, 0, 0) + element("rect", class_=HOSTILE)
    assert ElementTree.fromstring(element("rect", class_='"><b>')).get("class") == '"><b>'


def test_the_teachers_own_stage_is_not_drawn_twice() -> None:
    result = build()
    assert teacher_stage(result).kind == "finetune"
    labels = re.findall(r'class="label">([^<]+)', quality_waterfall(result))
    assert [label for label in labels if "%" not in label] == ["finetune", "prune", "distill", "quantize", "onnx file"]
    taken_as_it_was = result.model_copy(update={"stages": result.stages[1:], "teacher_bytes": 0})
    assert teacher_bytes(taken_as_it_was) == 0
    assert ">teacher<" in quality_waterfall(taken_as_it_was)


def test_exports_that_share_a_measurement_share_a_plot() -> None:
    measured = distinct_measurements(build())
    assert [entry.targets for entry in measured] == [["laptop-x86", "pixel-8", "raspberry-pi-5"]]


def test_two_measurements_of_one_format_are_told_apart_by_target_with_the_reason() -> None:
    result = build()
    phone = result.exports[1].model_copy(
        update={"measurement": result.exports[1].measurement.model_copy(update={"threads": 4, "p50_ms": 2.0})}
    )
    apart = result.model_copy(update={"exports": [result.exports[0], phone, *result.exports[2:]]})
    labels = re.findall(r'class="label">([^<]+)', quality_against_latency(apart))
    assert {"laptop-x86", "pixel-8"} <= set(labels)
    every = distinct_measurements(apart)
    assert rows_of(every[1], every).endswith(
        "Measured apart from laptop-x86 and raspberry-pi-5: another number of threads."
    )
    alone = distinct_measurements(result)
    assert rows_of(alone[0], alone) == "In the rows of laptop-x86, pixel-8 and raspberry-pi-5."
    assert "onnx" in re.findall(r'class="label">([^<]+)', quality_against_latency(result))


def test_cumulative_curves_rise_to_everything_and_outliers_are_counted() -> None:
    slow = measurement(4.0, 8_000_000)
    outlier = slow.model_copy(update={"samples_ms": [*slow.samples_ms, 500.0]})
    drawn = latency_distribution("x", [Curve("export", "export", outlier)])
    assert "1 slower not drawn, up to 500 ms" in drawn
    curve = re.search(r'<path d="M([^"]+)" class="curve export">', drawn).group(1)
    heights = [float(step.split()[1]) for step in curve.split("L")]
    assert heights == sorted(heights, reverse=True)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(1e-3, 1e4), min_size=2, max_size=60))
def test_any_samples_can_be_drawn(samples: list[float]) -> None:
    found = measurement(4.0, 8_000_000, count=30).model_copy(update={"samples_ms": samples})
    root = ElementTree.fromstring(latency_distribution("x", [Curve("export", "export", found)]))
    assert root.find("path") is not None


def test_memory_rows_split_pages_and_show_the_limit() -> None:
    found = measurement(4.0, 8_000_000)
    root = ElementTree.fromstring(memory_split("m", [Curve("export", "export", found)], 1e9))
    widths = {shape.get("class"): float(shape.get("width")) for shape in root.iter("rect")}
    assert widths["anonymous"] / widths["file"] == pytest.approx(
        found.rss_anonymous_bytes / found.rss_file_bytes, rel=0.02
    )
    assert root.find("line[@class='limit']") is not None


def test_budget_bars_show_the_limit_and_what_was_not_measured() -> None:
    check = BudgetCheck(
        name="p95_ms", limit=10, value=5, interval=Interval(low=4, high=6), status="met", explanation=""
    )
    bar = ElementTree.fromstring(budget_bar(check))
    assert bar.get("aria-label") == "p95 latency: found 5.00 ms (4.00 to 6.00), limit 10.0 ms"
    found, limit = bar.find("rect[@class='found met']"), bar.find("line[@class='limit']")
    assert float(found.get("width")) == pytest.approx(float(limit.get("x1")) / 2, abs=0.02)
    unmeasured = check.model_copy(update={"value": None, "interval": None, "status": "not-measured"})
    bar = ElementTree.fromstring(budget_bar(unmeasured))
    assert bar.find("rect[@class='unmeasured']") is not None
    assert "not measured" in bar.get("aria-label")
