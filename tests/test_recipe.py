from __future__ import annotations

import re
import shutil

import pytest

from edgekit.benchmarking.limits import TASK_LIMITS, merge_budgets
from edgekit.errors import RecipeError
from edgekit.recipe import (
    bundle_name,
    export_config,
    find_recipe,
    list_recipes,
    load_recipe,
    merged_budget,
    parse_recipe,
)
from edgekit.target import Budget, target_directory

VALID = """
name = "reviews"
seed = 5
[task]
labels = ["negative", "positive"]
[teacher]
source = "some/teacher"
[data]
source = "reviews.csv"
[[stage]]
kind = "prune"
layers = 3
[[stage]]
kind = "quantize"
bits = 8
[[export]]
format = "onnx"
targets = ["laptop-x86", "pixel-8"]
[budget]
file_bytes = 9000000
"""


def write(tmp_path, text: str):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return str(path)


def problem(tmp_path, text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, text))
    return str(caught.value)


def test_valid_recipe_is_typed_throughout(tmp_path):
    recipe = load_recipe(write(tmp_path, VALID))
    assert [stage.kind for stage in recipe.stages] == ["prune", "quantize"]
    assert recipe.stages[0].config.layers == 3
    assert recipe.data.labels == ["negative", "positive"]
    assert recipe.teacher.task == recipe.task
    assert set(recipe.targets) == {"laptop-x86", "pixel-8"}


@pytest.mark.parametrize("name", list_recipes())
def test_built_in_recipes_are_valid(name):
    assert load_recipe(name).name == name


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("layers = 3", "layer = 3", "stage.0 (prune): layer: unknown key. Did you mean 'layers'?"),
        ('kind = "quantize"', 'kind = "quantise"', "stage.1.kind: found 'quantise'. Did you mean 'quantize'?"),
        ("bits = 8", 'bits = "eight"', "stage.1 (quantize): bits: found 'eight' (str), expected"),
        ("seed = 5", "seed = -1", "seed: found -1 (int), expected greater than or equal to 0."),
        ("[budget]", "[budgets]", "budgets: unknown key. Did you mean 'budget'?"),
        ("file_bytes", "file_byte", "budget.file_byte: unknown key. Did you mean 'file_bytes'?"),
        ('source = "reviews.csv"', "", "data: source: missing, and it has no default. Add it."),
        ('"pixel-8"', '"pixel8"', "target 'pixel8' is unknown. Did you mean 'pixel-8'?"),
        ('format = "onnx"', 'format = "onx"', "export.0.format: found 'onx' (str), expected 'onnx'"),
        ('kind = "prune"', "", "stage.0.kind: missing."),
        ("[task]", "[task", "is not valid TOML"),
        ('labels = ["negative", "positive"]', 'labels = ["negative"]', "task.labels: found 1 label"),
    ],
)
def test_every_mistake_names_file_key_and_remedy(tmp_path, old, new, message):
    found = problem(tmp_path, VALID.replace(old, new, 1))
    assert message in found
    assert found.startswith(str(tmp_path / "recipe.toml"))


def test_all_problems_are_reported_at_once(tmp_path):
    text = VALID.replace("layers = 3", "layer = 3").replace("bits = 8", "bit = 8").replace("pixel-8", "pixel-9")
    assert len(problem(tmp_path, text).splitlines()) >= 3


def test_overrides_reach_into_lists_and_are_validated(tmp_path):
    path = write(tmp_path, VALID)
    recipe = load_recipe(path, {"stage.0.layers": 2, "seed": 9, "bench.length": 16})
    assert (recipe.stages[0].config.layers, recipe.seed, recipe.bench.length) == (2, 9, 16)
    with pytest.raises(RecipeError, match="'7' is not one of the positions 0 to 1"):
        load_recipe(path, {"stage.7.layers": 2})
    with pytest.raises(RecipeError, match="'seed' holds a value, not keys"):
        load_recipe(path, {"seed.x": 2})
    with pytest.raises(RecipeError, match="layerz: unknown key"):
        load_recipe(path, {"stage.0.layerz": 2})


def test_files_are_found_beside_the_recipe(tmp_path):
    (tmp_path / "reviews.csv").write_text("text,label\n")
    shutil.copy(target_directory() / "pixel-8.toml", tmp_path / "mine.toml")
    text = (tmp_path / "mine.toml").read_text().replace('name = "pixel-8"', 'name = "mine"')
    (tmp_path / "mine.toml").write_text(text)
    recipe = load_recipe(write(tmp_path, VALID.replace('"pixel-8"', '"mine.toml"')))
    assert recipe.data.source == str(tmp_path / "reviews.csv")
    assert recipe.targets["mine.toml"].name == "mine"


def test_budgets_merge_from_target_over_recipe_to_export(tmp_path):
    recipe = load_recipe(write(tmp_path, VALID))
    entry = recipe.exports[0].model_copy(update={"budget": Budget(p95_ms=7)})
    merged = merged_budget(recipe, entry, recipe.targets["pixel-8"])
    assert merged.file_bytes == 9000000
    assert merged.p95_ms == 7
    assert merged.peak_memory_bytes == recipe.targets["pixel-8"].budget.peak_memory_bytes


def test_two_exports_cannot_overwrite_each_others_bundle(tmp_path):
    twice = VALID.replace('targets = ["laptop-x86", "pixel-8"]', 'targets = ["pixel-8", "pixel-8"]')
    assert "export.0.targets: found 'pixel-8' again for the same export" in problem(tmp_path, twice)
    variant = '[[export]]\nprecision = "float16"\ntargets = ["pixel-8"]\n[budget]'
    recipe = load_recipe(write(tmp_path, VALID.replace("[budget]", variant)))
    phone = recipe.targets["pixel-8"]
    assert len({bundle_name(recipe, entry, phone) for entry in recipe.exports}) == 2


def test_targets_cap_operator_set_and_ir_version(tmp_path):
    recipe = load_recipe(write(tmp_path, VALID))
    target = recipe.targets["pixel-8"]
    config = export_config(recipe.exports[0], target)
    assert config.opset <= target.runtime("onnxruntime").opset
    assert config.ir_version <= target.runtime("onnxruntime").ir_version


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(RecipeError, match="Did you mean 'review-sentiment'"):
        find_recipe("review-sentimant")
    with pytest.raises(RecipeError, match=re.escape("nowhere.toml: not found")):
        find_recipe("nowhere.toml")


def test_parse_recipe_names_what_it_was_given(tmp_path):
    with pytest.raises(RecipeError, match="my recipe: task: missing"):
        parse_recipe({"name": "x"}, where="my recipe", directory=tmp_path)


def test_a_split_to_judge_on_that_the_data_lacks_is_found_before_any_training(tmp_path):
    (tmp_path / "r.toml").write_text(VALID + '[evaluate]\nsplits = ["test", "tset"]\n')
    with pytest.raises(RecipeError, match=r"evaluate.splits: found 'tset'.*Did you mean 'test'"):
        load_recipe(str(tmp_path / "r.toml"))


LANGUAGE = VALID.replace('labels = ["negative", "positive"]', 'kind = "causal-lm"')


@pytest.mark.parametrize(
    ("text", "limit", "message"),
    [
        (LANGUAGE, "quality_drop = 0.02", "budget.quality_drop: found a limit that does not fit the task 'causal-lm'."),
        (LANGUAGE, "quality_drop = 0.02", "Use perplexity_ratio instead."),
        (LANGUAGE, "p95_ms = 20", "Use first_token_ms and decode_tokens_per_s instead."),
        (VALID, "perplexity_ratio = 1.5", "does not fit the task 'text-classification'. Use quality_drop instead."),
        (VALID, "decode_tokens_per_s = 50", "Use p95_ms instead."),
        (VALID, "first_token_ms = 50", "Use p95_ms instead."),
    ],
)
def test_a_limit_of_another_task_is_refused_and_the_right_one_named(tmp_path, text, limit, message):
    assert message in problem(tmp_path, f"{text}{limit}\n")
    moved = text.replace("[budget]\n", f"[export.budget]\n{limit}\n[budget]\n")
    assert f"export.0.budget.{limit.split()[0]}" in problem(tmp_path, moved)


def test_a_targets_own_limits_of_another_task_are_left_out(tmp_path):
    target = load_recipe(write(tmp_path, VALID)).targets["laptop-x86"]
    assert target.budget.p95_ms is not None
    mine = Budget(decode_tokens_per_s=60, perplexity_ratio=1.5)
    merged = merge_budgets([target.budget, mine], "causal-lm")
    assert merged == Budget(
        file_bytes=target.budget.file_bytes,
        peak_memory_bytes=target.budget.peak_memory_bytes,
        decode_tokens_per_s=60,
        perplexity_ratio=1.5,
    )


def test_every_limit_belongs_to_a_task():
    assert set().union(*TASK_LIMITS.values()) == set(Budget.model_fields)
