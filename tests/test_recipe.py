from __future__ import annotations

import re
import shutil

import pytest

from edgekit.benchmarking.limits import TASK_LIMITS, merge_budgets
from edgekit.distillation.config import WriteConfig
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
from edgekit.target import Budget, load_target, target_directory

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


def write_old_target(tmp_path, version: str) -> None:
    """Writes `old.toml`: the target `laptop-x86` with another onnxruntime."""
    text = (target_directory() / "laptop-x86.toml").read_text()
    shipped = load_target("laptop-x86").runtime("onnxruntime").version
    old = text.replace(f'version = "{shipped}"', f'version = "{version}"').replace("laptop-x86", "old")
    (tmp_path / "old.toml").write_text(old)


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
    text = VALID.replace("layers = 3", "layer = 3").replace("bits = 8", "bit = 8").replace("pixel-8", "pixel-88")
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


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'format = "onnx"',
            'runtime = "onnxruntme"',
            "export.0.runtime: found 'onnxruntme', which 'laptop-x86' does not",
        ),
        ('format = "onnx"', 'runtime = "onnxruntme"', "Did you mean 'onnxruntime'?"),
        (
            "[budget]",
            '[parity]\nruntime = "onnxruntme"\n[budget]',
            "parity.runtime: found 'onnxruntme', which is unknown.",
        ),
        ("[budget]", '[evaluate]\nruntime = "torhc"\n[budget]', "unknown. Did you mean 'torch'?"),
        (
            "[budget]",
            '[parity]\nsplit = "validaton"\n[budget]',
            "parity.split: found 'validaton', which the data does not",
        ),
        ("[budget]", '[parity]\nsplit = "unlabelled"\n[budget]', "parity.split: found 'unlabelled'"),
        ("[data]", '[data]\nlabels = ["bad", "good"]', "data.labels: found a second one, expected it in [task] alone."),
        ("[teacher]", '[teacher]\ntask = {labels = ["a", "b"]}', "teacher.task: found a second one"),
        ("bits = 8", 'bits = 8\n[[stage]]\nkind = "distill"', "stage.2 (distill): found after 'quantize' (stage.1)"),
        ("bits = 8", 'bits = 8\n[[stage]]\nkind = "quantize"', "stage.2 (quantize): found after 'quantize' (stage.1)"),
    ],
)
def test_what_would_fail_after_the_training_fails_at_once(tmp_path, old, new, message):
    assert message in problem(tmp_path, VALID.replace(old, new, 1))


def test_parity_may_be_checked_on_unlabelled_text(tmp_path):
    split = '[data.unlabelled]\nsource = "more.csv"\n[parity]\nsplit = "unlabelled"\n[[stage]]'
    assert load_recipe(write(tmp_path, VALID.replace("[[stage]]", split, 1))).parity.split == "unlabelled"


def test_a_target_by_name_and_by_path_is_the_same_target(tmp_path):
    path = target_directory() / "pixel-8.toml"
    text = VALID.replace('"laptop-x86"', f'"{path}"')
    assert "found 'pixel-8' again for the same export" in problem(tmp_path, text)
    swapped = VALID.replace('"laptop-x86", "pixel-8"', f'"pixel-8", "{path}"')
    assert f"found '{path}', which is 'pixel-8', again for the same export" in problem(tmp_path, swapped)


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


WRITING = """
name = "chat"
[task]
kind = "causal-lm"
max_length = 256
[teacher]
source = "some/teacher"
[data]
source = "text.txt"
form = "text"
[data.extra_tests.news]
source = "news.txt"
[[stage]]
kind = "distill"
[[stage]]
kind = "quantize"
bits = 4
group_size = 32
[[export]]
format = "onnx"
targets = ["laptop-x86"]
[[export]]
format = "gguf"
targets = ["laptop-x86", "pixel-8"]
[evaluate]
splits = ["test", "news"]
"""


def test_a_language_models_recipe_is_valid_and_gguf_ships_with_llama_cpp(tmp_path):
    recipe = load_recipe(write(tmp_path, WRITING))
    assert [entry.runtime for entry in recipe.exports] == ["onnxruntime", "llama.cpp"]
    laptop, phone = recipe.targets["laptop-x86"], recipe.targets["pixel-8"]
    assert bundle_name(recipe, recipe.exports[0], laptop) == "chat-laptop-x86"
    assert bundle_name(recipe, recipe.exports[1], laptop) == "chat-laptop-x86-gguf"
    assert export_config(recipe.exports[1], laptop) == export_config(recipe.exports[1], phone), "one file for both"
    assert export_config(recipe.exports[0], laptop).opset == 21


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("bits = 4", "bits = 3", "export.1.format: stage.1.bits: gguf: found 3-bit symmetric codes, for which it has"),
        ("group_size = 32", "group_size = 16", "stage.1.bits: gguf: found 4-bit symmetric codes in groups of 16"),
        (
            "group_size = 32",
            'group_size = 32\noverrides = [{ pattern = "*.down_proj", bits = 2 }]',
            "stage.1.overrides.0: gguf: found 2-bit symmetric codes",
        ),
        (
            "group_size = 32",
            "group_size = 32\nembeddings = 4\nembeddings_group_size = 16",
            "stage.1.embeddings: gguf: found 4-bit symmetric codes in groups of 16",
        ),
        (
            "[[stage]]",
            '[[stage]]\nkind = "prune"\nintermediate_size = 100\n[[stage]]',
            "stage.0.intermediate_size: found 100, expected a multiple of 32",
        ),
        (
            'format = "gguf"',
            'format = "gguf"\nruntime = "onnxruntime"',
            "'onnxruntime', which does not open gguf",
        ),
        (
            'format = "onnx"',
            'format = "onnx"\nruntime = "llama.cpp"',
            "'llama.cpp', which does not open onnx. Use",
        ),
        ('splits = ["test", "news"]', 'splits = ["nws"]', "evaluate.splits: found 'nws'"),
        (
            "bits = 4",
            'bits = 4\nalgorithm = "gptq"\ncalibration_split = "tarin"',
            "stage.1.calibration_split: found",
        ),
        (
            'kind = "distill"',
            'kind = "distill"\nlanguage = { sequence_length = 512 }',
            "stage.0.language.sequence_length: found 512, expected at most 256, which is task.max_length",
        ),
        ("[evaluate]", "[evaluate]\nmax_tokens = 300", "evaluate.max_tokens: found 300, expected at most 256"),
        ("[evaluate]", "[parity]\nmax_tokens = 300\n[evaluate]", "parity.max_tokens: found 300, expected at most 256"),
        (
            "[evaluate]",
            "[bench]\ndepths = [16, 250]\n[evaluate]",
            "depths and new_tokens together: found 283",
        ),
        ("[evaluate]", '[parity]\nruntime = "lama.cpp"\n[evaluate]', "unknown. Did you mean 'llama.cpp'?"),
        ('form = "text"', "", "labels, form: found neither"),
        (
            'kind = "causal-lm"',
            'labels = ["a", "b"]',
            "export.1.format: found 'gguf' for the task 'text-cl",
        ),
        (
            "[evaluate]",
            '[evaluate]\nmultiple_choice = { sauce = "x" }',
            "evaluate.multiple_choice.sauce: unknown key. Did you mean 'source'?",
        ),
    ],
)
def test_what_a_language_model_would_fail_by_after_the_training_fails_at_once(tmp_path, old, new, message):
    assert message in problem(tmp_path, WRITING.replace(old, new, 1))


@pytest.mark.parametrize(
    ("version", "codes", "message"),
    [
        ("1.21.1", "bits = 4\ngroup_size = 32", "expected at least 1.22.0 for GroupQueryAttention"),
        ("1.22.1", "bits = 4\ngroup_size = 32\nembeddings_group_size = 32", "expected at least 1.23.0 for GatherBlock"),
        ("1.23.2", "bits = 2\ngroup_size = 32", "expected at least 1.24.1 for MatMulNBits of 2 bits"),
        ("1.22.0", "bits = 4\ngroup_size = 32", None),
        ("1.24.1", "bits = 2\ngroup_size = 32\nembeddings_group_size = 32", None),
    ],
)
def test_a_target_with_too_old_an_onnxruntime_is_named_before_the_training(tmp_path, version, codes, message):
    write_old_target(tmp_path, version)
    recipe = WRITING.replace("bits = 4\ngroup_size = 32", codes).replace(
        '[[export]]\nformat = "gguf"\ntargets = ["laptop-x86", "pixel-8"]', ""
    )
    recipe = recipe.replace('targets = ["laptop-x86"]', 'targets = ["old.toml"]')
    if message is None:
        load_recipe(write(tmp_path, recipe))
        return
    found = problem(tmp_path, recipe)
    assert f"export.0.targets: found 'old', which promises onnxruntime {version}; {message}" in found
    assert "Raise the version in the target's file, or" in found


@pytest.mark.parametrize(
    ("version", "written", "message"),
    [
        ("1.27.0", "ort", "expected at least 1.28.0 for MatMulNBits in onnxruntime's own format"),
        ("1.28.0", "ort", None),
        ("1.27.0", "onnx", None),
    ],
)
def test_a_file_in_onnxruntimes_own_format_asks_for_a_newer_one(tmp_path, version, written, message):
    write_old_target(tmp_path, version)
    recipe = VALID.replace("bits = 8", "bits = 4\ngroup_size = 32").replace('"onnx"', f'"{written}"')
    recipe = recipe.replace('["laptop-x86", "pixel-8"]', '["old.toml"]')
    if message is None:
        load_recipe(write(tmp_path, recipe))
    else:
        assert message in problem(tmp_path, recipe)


def test_a_build_measures_where_it_runs(tmp_path):
    recipe = VALID.replace("[budget]", '[bench]\ndevice = "ssh://pi@board"\n[budget]')
    assert "bench.device: found 'ssh://pi@board', expected 'local'" in problem(tmp_path, recipe)
    recipe = VALID.replace("[budget]", '[parity]\ndevice = "qemu:cortex-a76"\n[budget]')
    assert "parity.device: found 'qemu:cortex-a76', expected 'local': a build checks" in problem(tmp_path, recipe)


def test_lengths_that_nobody_set_are_no_problem(tmp_path):
    recipe = load_recipe(write(tmp_path, WRITING.replace("max_length = 256", "max_length = 64")))
    assert recipe.stages[0].config.language.sequence_length > 64


def test_a_scheme_without_a_block_is_fine_where_gguf_gets_floats_or_none_is_written(tmp_path):
    odd = WRITING.replace("bits = 4", "bits = 3")
    for form, precision in (("gguf", "float16"), ("onnx", "float32")):
        asked = f'format = "{form}"\nprecision = "{precision}"'
        export = load_recipe(write(tmp_path, odd.replace('format = "gguf"', asked))).exports[-1]
        assert (export.format, export.precision) == (form, precision)


def test_questions_are_found_beside_the_recipe_and_are_for_language_models(tmp_path):
    (tmp_path / "questions.jsonl").write_text("{}\n")
    asked = '[evaluate]\nmultiple_choice = { source = "questions.jsonl" }'
    recipe = load_recipe(write(tmp_path, WRITING.replace("[evaluate]", asked)))
    assert recipe.evaluate.multiple_choice.source == str(tmp_path / "questions.jsonl")
    assert "evaluate.multiple_choice: found questions for the task" in problem(tmp_path, f"{VALID}{asked}\n")


ASKING = (
    WRITING.replace('"news"]', '"asked"]')
    + """
[data.unlabelled]
source = "questions.jsonl"
form = "prompt"
[data.extra_tests.asked]
source = "others.jsonl"
form = "prompt"
[budget]
answered = 0.5
"""
)


def test_prompts_are_answered_by_the_teacher_without_being_asked_for(tmp_path):
    assert load_recipe(write(tmp_path, WRITING)).write is None
    asking = load_recipe(write(tmp_path, ASKING))
    assert asking.write == WriteConfig()
    told = load_recipe(write(tmp_path, ASKING + "[write]\nmax_new_tokens = 7\n"))
    assert told.write.max_new_tokens == 7


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (ASKING + '[write]\nsplits = ["asked"]\n', "write.splits: found asked, expected 'unlabelled' as well"),
        (ASKING + '[write]\nsplits = ["askde"]\n', "write.splits: found 'askde', which the data does not have"),
        (ASKING.replace(', "asked"', ""), "budget.answered: found a limit and no prompt to ask"),
        (ASKING.replace('"asked"]', '"asked"]\nanswers = 0'), "budget.answered: found a limit and no prompt to ask"),
        (
            ASKING.replace("answered = 0.5", "answered = 0.8"),
            "found 0.8, which 8 prompts cannot decide: were all answered",
        ),
        (ASKING + '[[stage]]\nkind = "finetune"\n', "found prompts in the split 'asked' and a stage 'finetune'"),
    ],
)
def test_prompts_that_nobody_could_answer_in_time_are_refused(tmp_path, text, complaint):
    assert complaint in problem(tmp_path, text)


def test_a_classifier_writes_nothing(tmp_path):
    assert "write: found for the task 'text-classification'" in problem(tmp_path, VALID + "[write]\n")


LITERT = VALID.replace(
    'format = "onnx"\ntargets = ["laptop-x86", "pixel-8"]', 'format = "litert"\ntargets = ["laptop-x86"]'
)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (
            "bits = 8",
            "bits = 4\ngroup_size = 32",
            "export.0.format: stage.1.bits: litert has no kernel for 4-bit symmetric",
        ),
        ("bits = 8", "bits = 8\nsymmetric = false", "litert has no kernel for 8-bit asymmetric codes"),
        (
            "bits = 8",
            "bits = 8\nembeddings = 4\nembeddings_group_size = 32",
            "stage.1.embeddings: litert has no kernel",
        ),
        ('format = "litert"', 'format = "litert"\nprecision = "float16"', "export.0.precision: found float16"),
        (
            'format = "litert"',
            'format = "litert"\nlengths = [32, 4096]',
            "export.0.lengths: found [32, 4096] for litert",
        ),
        ('format = "litert"', 'format = "onnx"\nlengths = [32]', "export.0.lengths: found [32] for onnx"),
        ('targets = ["laptop-x86"]', 'targets = ["pixel-8"]', "found 'litert', which 'pixel-8' does not ship"),
    ],
)
def test_what_litert_cannot_hold_is_said_before_anything_runs(tmp_path, old, new, complaint):
    assert load_recipe(write(tmp_path, LITERT)).exports[0].runtime == "litert"
    assert complaint in problem(tmp_path, LITERT.replace(old, new))


EXECUTORCH = LITERT.replace('format = "litert"', 'format = "executorch"')


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (
            "bits = 8",
            "bits = 4\ngroup_size = 32",
            "stage.1.bits: executorch has no kernel for 4-bit symmetric codes in groups of 32 with wide scales",
        ),
        (
            "bits = 8",
            'bits = 8\noverrides = [{ pattern = "*.dense", activations = "float" }]',
            "stage.1.overrides.0: executorch has no kernel for 8-bit symmetric codes with float activations",
        ),
        (
            "bits = 8",
            "bits = 8\nembeddings = 4\nembeddings_group_size = 32",
            "stage.1.embeddings: executorch has no kernel",
        ),
        ('format = "executorch"', 'format = "executorch"\nprecision = "float16"', "export.0.precision: found float16"),
        ('targets = ["laptop-x86"]', 'targets = ["pixel-8"]', "found 'executorch', which 'pixel-8' does not ship"),
    ],
)
def test_what_executorch_cannot_hold_is_said_before_anything_runs(tmp_path, old, new, complaint):
    assert load_recipe(write(tmp_path, EXECUTORCH)).exports[0].runtime == "executorch"
    narrow = EXECUTORCH.replace("bits = 8", "bits = 4\ngroup_size = 32\nnarrow_scales = true")
    assert load_recipe(write(tmp_path, narrow)).exports[0].format == "executorch"
    assert complaint in problem(tmp_path, EXECUTORCH.replace(old, new))


@pytest.mark.parametrize("key", ['runtime = "onnxruntime"', "threads = 2", "length = 8", "first_token = false"])
def test_what_a_build_gives_autotune_itself_cannot_be_set(tmp_path, key):
    recipe = VALID.replace("[budget]", f"[autotune]\n{key}\n[budget]")
    assert f"autotune.{key.split()[0]}: found" in problem(tmp_path, recipe)
    load_recipe(write(tmp_path, VALID.replace("[budget]", "[autotune]\nmargin = 0.1\n[budget]")))


@pytest.mark.parametrize(
    "export",
    ['format = "ort"\nlowering = "measured"', 'lowering = "measured"\nruntime = "transformers.js"'],
)
def test_lowerings_are_measured_only_where_there_is_more_than_one(tmp_path, export):
    recipe = VALID.replace('format = "onnx"', export)
    expected = "export.0.lowering: found 'measured', expected it for a quantized classifier in onnx"
    assert expected in problem(tmp_path, recipe)
    load_recipe(write(tmp_path, VALID.replace('format = "onnx"', 'lowering = "measured"')))


@pytest.mark.parametrize(
    ("codes", "complaint"),
    [
        ("bits = 8", None),
        ("bits = 4\ngroup_size = 32", "found codes that Core ML reads since iOS 18, but 'old' promises 17.0"),
    ],
)
def test_a_system_too_old_for_the_codes_is_named_before_the_training(tmp_path, codes, complaint):
    text = (target_directory() / "iphone-15.toml").read_text()
    shipped = load_target("iphone-15").runtime("coreml").version
    old = text.replace(f'version = "{shipped}"', 'version = "17.0"').replace("iphone-15", "old")
    (tmp_path / "old.toml").write_text(old)
    recipe = VALID.replace("bits = 8", codes).replace('format = "onnx"', 'format = "coreml"')
    recipe = recipe.replace('["laptop-x86", "pixel-8"]', '["old.toml"]')
    if complaint is None:
        load_recipe(write(tmp_path, recipe))
    else:
        assert complaint in problem(tmp_path, recipe)
