"""The HTML report: one page that holds everything it needs, reads without JavaScript, and fetches nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.reporting import agreement, estimate_errors, findings, matrix, metric, speed, wording
from edgekit.reporting.plots import budget, front, generation, latency, matrix_front, memory, recall, splits, waterfall
from edgekit.reporting.plots.latency import Curve
from edgekit.results import AnyMeasurement, BuildResult, ExportResult, GenerationMeasurement, Matrix

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATE = "report.html.j2"
MATRIX_TEMPLATE = "matrix.html.j2"
STYLE = "report.css"
_MOST_DEPTHS = 4


@dataclass(frozen=True)
class Tile:
    """One headline figure."""

    title: str
    value: str
    details: list[str]


@dataclass(frozen=True)
class MeasuredFigures:
    """The plots and rows of one distinct measurement and of what it was interleaved with."""

    measured: findings.Measured
    rows: str
    """In whose rows it stands."""
    curves: list[Curve]
    latency_svg: str
    memory_svg: str
    written: GenerationMeasurement | None = None
    """What was measured, where it is writing: the table then has a row for each depth."""
    decode_svg: str = ""
    prefill_svg: str = ""


def render_html(result: BuildResult) -> str:
    """Returns the whole page."""
    environment = _environment()
    measured = findings.distinct_measurements(result)
    figures = [_figures(entry, index, measured) for index, entry in enumerate(measured)]
    return environment.get_template(TEMPLATE).render(
        result=result,
        verdict=findings.verdict(result),
        notes=findings.notes(result),
        teacher_stage=findings.teacher_stage(result),
        teacher_bytes=findings.teacher_bytes(result),
        metric=metric.build_metric(result),
        tiles=headline_tiles(result),
        figures=figures,
        size_front=front.quality_against_size(result),
        latency_front=front.quality_against_latency(result),
        waterfall=waterfall.quality_waterfall(result),
        talks=findings.talks(result),
        recall=recall.recall_by_label(result),
        splits=splits.metric_by_split(result),
        recipe_text=json.dumps(result.recipe, indent=2, ensure_ascii=False),
        work=findings.work(result),
        total_seconds=sum(findings.step_seconds(result)),
        longest_seconds=max(findings.step_seconds(result), default=0) or 1,
    )


def render_matrix(found: Matrix) -> str:
    """Returns the page of a matrix: its fronts where accuracies are known, every row, and what was left out."""
    first = matrix.fastest(found)
    return (
        _environment()
        .get_template(MATRIX_TEMPLATE)
        .render(
            title=wording.join_words(list(dict.fromkeys(row.model for row in found.rows))),
            fastest=matrix.name(first),
            fastest_time=wording.milliseconds(first.measurement.p50_ms),
            conditions=matrix.conditions(found),
            columns=matrix.COLUMNS,
            rows=matrix.rows(found),
            left_out=[matrix.left_out(each) for each in found.left_out],
            size_front=matrix_front.quality_against_size(found),
            latency_front=matrix_front.quality_against_latency(found),
        )
    )


def headline_tiles(result: BuildResult) -> list[Tile]:
    """Returns quality, size, speed and memory of the export that ships, each with what it compares to."""
    export = findings.headline_export(result)
    if export is None:
        return []
    tiles = [_quality_tile(export), _size_tile(export, findings.teacher_bytes(result))]
    if export.measurement is not None:
        tiles += [_speed_tile(export, export.measurement), _memory_tile(export, export.measurement)]
    return [tile for tile in tiles if tile is not None]


def _quality_tile(export: ExportResult) -> Tile | None:
    quality = export.quality
    if quality is None:
        return None
    judged = metric.metric_of(quality)
    details = [f"95 % interval {metric.value_range(quality)}, {metric.evidence(quality)}"]
    if quality.headline.change is not None:
        details.append(f"{metric.change_in_words(quality)}{judged.against_teacher}")
    if quality.parts:
        details.append(metric.values_by_split(quality))
    if metric.answers(quality):
        details.append(metric.answers(quality))
    if metric.answered(quality):
        details.append(metric.answered(quality))
    return Tile(judged.title, metric.value(quality), details)


def _size_tile(export: ExportResult, teacher_bytes: int) -> Tile:
    details = [f"{export.format}, {export.bytes:,} bytes"]
    if teacher_bytes and export.bytes:
        ratio = wording.times(teacher_bytes / export.bytes)
        details.append(f"{ratio} smaller than the teacher ({wording.mebibytes(teacher_bytes)})")
    return Tile("Model files", wording.mebibytes(export.bytes), details)


def _speed_tile(export: ExportResult, found: AnyMeasurement) -> Tile:
    title, value, details = speed.headline(found)
    for other, comparison in findings.comparisons(export):
        interval = comparison.ratio_interval
        details.append(wording.speed_up(comparison.ratio_p50, interval.low, interval.high, other))
    return Tile(title, value, details)


def _memory_tile(export: ExportResult, found: AnyMeasurement) -> Tile:
    details = ["of the whole process, interpreter included"]
    for other, comparison in findings.comparisons(export)[:1]:
        details.append(f"{wording.mebibytes(comparison.second.peak_rss_bytes)} with {other}")
    return Tile("Peak memory", wording.mebibytes(found.peak_rss_bytes), details)


def _figures(measured: findings.Measured, index: int, every: list[findings.Measured]) -> MeasuredFigures:
    """Returns the plots of one measurement among `every` one of the build."""
    curves = [Curve(f"{measured.export.format} export", "export", measured.measurement)]
    for other, comparison in measured.comparisons:
        kind = "float" if "teacher" not in other else "teacher"
        curves.append(Curve(other.removeprefix("its ").removeprefix("the "), kind, comparison.second))
    written = speed.as_generation(measured.measurement)
    timed = curves if written is None else [_depth_curve(written, index) for index in _drawn_depths(written)]
    limits = [check.limit for check in measured.export.budget.checks if check.name == "peak_memory_bytes"]
    return MeasuredFigures(
        measured,
        findings.rows_of(measured, every),
        timed,
        latency.latency_distribution(f"latency-{index}", timed, speed.noun(measured.measurement)),
        memory.memory_split(f"memory-{index}", curves, next(iter(limits), None)),
        written,
        "" if written is None else generation.decode_by_depth(f"decode-{index}", written),
        "" if written is None else generation.prefill_by_depth(f"prefill-{index}", written),
    )


def _drawn_depths(found: GenerationMeasurement) -> list[int]:
    """Returns the positions of the depths to draw: the first, the last and those that fit in between."""
    last = len(found.depths) - 1
    return sorted({round(last * part / (_MOST_DEPTHS - 1)) for part in range(_MOST_DEPTHS)})


def _depth_curve(found: GenerationMeasurement, index: int) -> Curve:
    """Returns the times of tokens at one depth; the deepest has the colour of what ships."""
    depth = found.depths[index]
    kind = "export" if depth == found.deepest else f"depth-{_drawn_depths(found).index(index) + 1}"
    return Curve(speed.depth_title(depth), kind, found, depth.timing)


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("edgekit.reporting", "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        finalize=wording.printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        words=wording,
        quality=metric,
        speed=speed,
        agreement=agreement,
        errors=estimate_errors,
        place=findings.place,
        sentence=lambda words: f"{words[:1].upper()}{words[1:]}.",
        budget_bar=lambda check: Markup(budget.budget_bar(check)),
        style=lambda: Markup(_read_style()),
    )
    return environment


def _read_style() -> str:
    from importlib.resources import files

    return (files("edgekit.reporting") / "templates" / STYLE).read_text(encoding="utf-8")
