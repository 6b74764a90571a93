"""What a build says before it trains: sources that are not there, and limits that its test rows cannot decide."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.artifact import Artifact, Lineage, publish
from edgekit.cli import run
from edgekit.data.prepared import DataDescription, write_description
from edgekit.events import Event
from edgekit.preflight import check_quality_limits
from edgekit.recipe import Recipe, load_recipe


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """The recipe that `init` writes."""
    path = tmp_path / "reviews.toml"
    assert run(["init", str(path)]) == 0
    return path


def data(directory: Path, **splits: int) -> Artifact:
    with publish(directory, kind="data", lineage=Lineage(stage="prepare")) as staging:
        write_description(staging, DataDescription(labels=["negative", "positive"], splits=splits))
    return Artifact.open(directory)


def told(recipe: Recipe, prepared: Artifact) -> list[str]:
    events: list[Event] = []
    check_quality_limits(recipe, prepared, events.append)
    assert {event.kind for event in events} <= {"message"}
    return [event.text for event in events]


def test_a_template_without_its_files_names_recipe_and_keys_at_once(template: Path, tmp_path: Path, capsys) -> None:
    capsys.readouterr()
    assert run(["build", str(template), "--out", str(tmp_path / "build")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    advice = "Put it there, or correct the key; paths are looked up beside the recipe."
    assert first.startswith(f"edgekit: {template}: data.source: reviews.csv: not found; expected a file, ")
    assert second.startswith(f"edgekit: {template}: teacher.source: path/to/a/transformers/model: not found; ")
    assert first.endswith(advice)
    assert second.endswith(advice)


def test_a_nested_source_is_named_by_its_key(template: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "reviews.csv").write_text("text,label\na,negative\n")
    overrides = ["--set", "data.extra_tests.other.source=other.csv", "--set", "teacher.source=owner/name"]
    assert run(["build", str(template), "--out", str(tmp_path / "build"), *overrides]) == 2
    assert f"{template}: data.extra_tests.other.source: other.csv: not found" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("limit", "rows", "is_told"), [(0.05, 80, True), (0.05, 90, False), (0.02, 240, True), (0.02, 320, False)]
)
def test_a_limit_that_the_test_rows_cannot_decide_is_told(
    template: Path, tmp_path: Path, limit: float, rows: int, is_told: bool
) -> None:
    recipe = load_recipe(str(template), {"budget.quality_drop": limit})
    assert bool(told(recipe, data(tmp_path / "data", train=5000, validation=500, test=rows))) is is_told


def test_a_warning_says_the_rows_and_how_many_would_do(template: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(template), {"budget.quality_drop": 0.02})
    (text,) = told(recipe, data(tmp_path / "data", train=400, validation=50, test=50))
    assert text.startswith("quality_drop = 0.02 will be inconclusive on the 50 rows of test: even if the student ")
    assert "differed from its teacher on 2% of them alone, the 95 % interval of the change would reach 6." in text
    assert text.endswith("Take about 300 rows, or raise the limit.")


def test_the_rows_are_those_that_are_evaluated(template: Path, tmp_path: Path) -> None:
    prepared = data(tmp_path / "data", train=400, validation=60, test=60)
    assert told(load_recipe(str(template)), prepared)
    assert not told(load_recipe(str(template), {"evaluate.splits": ["validation", "test"]}), prepared)
    most = {"evaluate.splits": ["validation", "test"], "evaluate.max_rows": 20}
    assert "on the 40 rows of validation + test" in told(load_recipe(str(template), most), prepared)[0]
    assert not told(load_recipe(str(template), {"budget.quality_drop": 0.3}), data(tmp_path / "few", test=20))
    assert told(load_recipe(str(template), {"budget.quality_drop": 0}), prepared)[0].endswith("Raise the limit.")
