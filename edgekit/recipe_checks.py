"""Whether the parts of a recipe fit together: everything that would fail after the training is said before it.

Each function returns one sentence for each problem, naming file, key, what was found and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgekit.benchmarking.limits import misplaced_limits
from edgekit.data.stage import PrepareConfig
from edgekit.distillation.config import TrainingConfig
from edgekit.exporters.oldest_reader import CODED_TABLE, EIGHT_BITS, MASKED_ATTENTION, PREPACKED, TWO_BITS, Need
from edgekit.formats import FORMATS
from edgekit.pruning.stage import PruneConfig
from edgekit.quantization.stage import QuantizeConfig
from edgekit.recipe_formats import Stages, Targets, overridden_autotune, unfit_formats
from edgekit.recipe_parts import ExportEntry, Frame, RecipeStage
from edgekit.recipe_prompts import prompt_problems
from edgekit.runtimes.generation import list_generation_runtimes, load_generation_runtime
from edgekit.runtimes.protocol import list_runtimes, load_runtime
from edgekit.spelling import did_you_mean
from edgekit.target import READERS_OF_ONNX


def find_problems(frame: Frame, stages: Stages, targets: Targets, data: PrepareConfig | None, where: str) -> list[str]:
    """Returns every problem of sections that are valid by themselves; those that are not are None."""
    problems = out_of_order(stages, where) + unknown_runtimes(frame, targets, where)
    problems += unfit_formats(frame, stages, targets, where) + old_runtimes(frame, stages, targets, where)
    problems += repeated_exports(frame.export, targets, where)
    problems += misplaced_limits(frame.budget, frame.task.kind, f"{where}: budget")
    for index, entry in enumerate(frame.export):
        problems += misplaced_limits(entry.budget, frame.task.kind, f"{where}: export.{index}.budget")
    problems += [] if data is None else unknown_splits(frame, data, stages, where)
    problems += [] if data is None else prompt_problems(frame, data, stages, where)
    problems += overridden_autotune(frame, where)
    if frame.task.kind == "causal-lm":
        problems += beyond_context(frame, stages, where)
    return problems + misplaced_questions(frame, where) + misplaced_device(frame, where)


def given_twice(frame: Frame, where: str) -> list[str]:
    """Returns a problem for each key that `[task]` sets for all sections."""
    return [
        f"{where}: {section}.{key}: found a second one, expected it in [task] alone. Remove it."
        for section, key, values in (("teacher", "task", frame.teacher), ("data", "labels", frame.data))
        if key in values
    ]


def out_of_order(stages: Stages, where: str) -> list[str]:
    """Returns a problem for each stage after `quantize`: every stage that makes a model needs its floats."""
    kinds = [None if stage is None else stage.kind for stage in stages]
    if "quantize" not in kinds:
        return []
    first = kinds.index("quantize")
    return [
        f"{where}: stage.{index} ({kind}): found after 'quantize' (stage.{first}), expected before it: it changes "
        "floats, and codes are final. Move it."
        for index, kind in enumerate(kinds)
        if index > first and kind is not None
    ]


def unknown_runtimes(frame: Frame, targets: Targets, where: str) -> list[str]:
    """Returns a problem for each runtime that is unknown, that a target does not ship, or that opens other formats.

    A target may ship runtimes that edgekit does not have: what they run could not be verified.
    """
    formats = _formats_of(frame)
    named = {"evaluate.runtime": frame.evaluate.runtime, "parity.runtime": frame.parity.runtime}
    problems = [
        f"{where}: {key}: found '{name}', which is unknown.{did_you_mean(name, formats)} Known: {', '.join(formats)}."
        for key, name in named.items()
        if name is not None and name not in formats
    ]
    for index, entry in enumerate(frame.export):
        key = f"{where}: export.{index}.runtime"
        for target in (targets[name] for name in entry.targets if name in targets):
            ships = [runtime.name for runtime in target.runtimes]
            if entry.runtime not in ships:
                problems.append(
                    f"{key}: found '{entry.runtime}', which '{target.name}' does not ship."
                    f"{did_you_mean(entry.runtime, ships)} It ships: {', '.join(ships)}.{_not_here(ships, formats)}"
                )
            elif entry.runtime not in formats:
                problems.append(
                    f"{key}: found '{entry.runtime}' for '{target.name}', which edgekit cannot run for the task "
                    f"'{frame.task.kind}': nothing would be verified. It runs: {', '.join(formats)}. Leave "
                    f"'{target.name}' out, or install a package that adds the runtime."
                )
        if entry.runtime in formats and entry.format not in formats[entry.runtime]:
            fitting = [name for name, opened in formats.items() if entry.format in opened]
            problems.append(
                f"{key}: found '{entry.runtime}', which does not open {entry.format}. Use {' or '.join(fitting)}."
            )
    return problems


def old_runtimes(frame: Frame, stages: Stages, targets: Targets, where: str) -> list[str]:
    """Returns a problem for each target whose onnxruntime is older than what the export will hold asks for.

    What the recipe does not tell is found in the file, before it is checked.
    """
    problems = []
    for index, entry in enumerate(frame.export):
        needs = [MASKED_ATTENTION] if frame.task.kind == "causal-lm" else []
        needs += _coded_needs(stages, entry) if entry.precision == "as-is" else []
        known = [targets[name] for name in entry.targets if name in targets]
        for target in known if FORMATS[entry.format].has_versions else []:
            shipped = [runtime for runtime in target.runtimes if runtime.name in READERS_OF_ONNX]
            problems += [
                f"{where}: export.{index}.targets: found '{target.name}', which promises {runtime.name} "
                f"{runtime.version}; expected at least {need.version} for {need.what}. Raise the version in the "
                f"target's file, or {need.remedy}."
                for runtime in shipped
                for need in needs
                if runtime.is_older_than(need.version)
            ]
    return problems


def repeated_exports(exports: Sequence[ExportEntry], targets: Targets, where: str) -> list[str]:
    """Returns a problem for each target that gets the same export twice: the bundles would overwrite each other."""
    seen: set[tuple[str, str, str]] = set()
    problems = []
    for index, entry in enumerate(exports):
        for name in entry.targets:
            target = targets[name].name if name in targets else name
            key = (entry.format, entry.precision, target)
            if key in seen:
                spelled = "" if name == target else f", which is '{target}',"
                problems.append(
                    f"{where}: export.{index}.targets: found '{name}'{spelled} again for the same export. Remove it."
                )
            seen.add(key)
    return problems


def unknown_splits(frame: Frame, data: PrepareConfig, stages: Stages, where: str) -> list[str]:
    """Returns a problem for each split that the data will not have."""
    judged = ["test", "validation", "train", *data.extra_tests]
    any_text = judged if data.unlabelled is None else [*judged, "unlabelled"]
    is_labelled = frame.task.kind == "text-classification"
    labelled = ("Labelled splits", judged) if is_labelled else ("Splits", any_text)
    asked = [("evaluate.splits", name, *labelled) for name in frame.evaluate.splits]
    asked.append(("parity.split", frame.parity.split, "Splits", any_text))
    written = [] if frame.write is None or frame.write.splits is None else frame.write.splits
    asked += [("write.splits", name, "Splits", any_text) for name in written]
    for index, stage in enumerate(stages):
        asked += [(f"stage.{index}.{key}", name, "Splits", any_text) for key, name in _splits_read(stage)]
    return [
        f"{where}: {key}: found '{name}', which the data does not have.{did_you_mean(name, known)} "
        f"{what}: {', '.join(known)}."
        for key, name, what, known in asked
        if name not in known
    ]


def beyond_context(frame: Frame, stages: Stages, where: str) -> list[str]:
    """Returns a problem for each length that a person set above the tokens that the task's models read."""
    longest = frame.task.max_length
    asked: list[tuple[str, int]] = []
    for index, stage in enumerate(stages):
        config = None if stage is None else stage.config
        if isinstance(config, TrainingConfig) and "sequence_length" in config.language.model_fields_set:
            asked.append((f"stage.{index}.language.sequence_length", config.language.sequence_length))
        if isinstance(config, QuantizeConfig) and "calibration_length" in config.model_fields_set:
            asked.append((f"stage.{index}.calibration_length", config.calibration_length))
    for section in ("evaluate", "parity"):
        part = getattr(frame, section)
        if "max_tokens" in part.model_fields_set:
            asked.append((f"{section}.max_tokens", part.max_tokens))
    if frame.bench.depths is not None:
        asked.append(("bench.depths and new_tokens together", max(frame.bench.depths) + frame.bench.new_tokens + 1))
    return [
        f"{where}: {key}: found {length}, expected at most {longest}, which is task.max_length. Lower it, or raise "
        "that where the teacher has the positions."
        for key, length in asked
        if length > longest
    ]


def misplaced_questions(frame: Frame, where: str) -> list[str]:
    """Returns a problem where a classifier is to answer multiple-choice questions."""
    if frame.evaluate.multiple_choice is None or frame.task.kind == "causal-lm":
        return []
    return [
        f"{where}: evaluate.multiple_choice: found questions for the task '{frame.task.kind}', expected causal-lm. "
        "Remove it: a classifier is judged on labelled splits."
    ]


def misplaced_device(frame: Frame, where: str) -> list[str]:
    """Returns a problem where a build is to measure or check elsewhere, whose results would count as this machine's."""
    named = {"bench": (frame.bench.device, "measures"), "check": (frame.parity.device, "checks")}
    return [
        f"{where}: {'parity' if command == 'check' else command}.device: found '{device}', expected 'local': a build "
        f"{does} where it runs. Give its exports to `edgekit {command} EXPORT OUT --device` afterwards."
        for command, (device, does) in named.items()
        if device != "local"
    ]


def _formats_of(frame: Frame) -> dict[str, tuple[str, ...]]:
    """Returns the name of each runtime of the task to the artifact kinds that it opens."""
    if frame.task.kind == "causal-lm":
        return {name: load_generation_runtime(place).formats for name, place in list_generation_runtimes().items()}
    return {name: load_runtime(place).formats for name, place in list_runtimes().items()}


def _not_here(ships: Sequence[str], formats: dict[str, tuple[str, ...]]) -> str:
    """Returns what to say where edgekit has none of the runtimes that a target ships."""
    return "" if set(ships) & set(formats) else " edgekit cannot run any of these here: leave the target out."


def _splits_read(stage: RecipeStage | None) -> Iterable[tuple[str, str]]:
    """Yields key and name of each split that a stage's configuration names."""
    config = None if stage is None else stage.config
    if isinstance(config, QuantizeConfig) and config.calibrates:
        yield "calibration_split", config.calibration_split
    if isinstance(config, PruneConfig):
        for name in config.splits_counted or []:
            yield "splits_counted", name


def _coded_needs(stages: Stages, entry: ExportEntry) -> list[Need]:
    """Returns what codes ask of onnxruntime, as far as the recipe tells; `exclude` may keep a part float."""
    needs = []
    for stage in stages:
        config = None if stage is None else stage.config
        if not isinstance(config, QuantizeConfig) or config.exclude:
            continue
        if config.bits == 2:
            needs.append(TWO_BITS)
        has_eight_in_groups = config.bits == 8 and config.group_size is not None
        is_block_product = config.bits < 8 or (has_eight_in_groups and config.activations == "dynamic-int8")
        if is_block_product and config.bits == 8:
            needs.append(EIGHT_BITS)
        if is_block_product and entry.format == "ort":
            needs.append(PREPACKED)
        # a head that multiplies floats with 8-bit codes is laid out otherwise, and a tied table reads it plainly
        is_plain = config.embeddings == 8 and config.activations == "float"
        if config.embeddings is not None and config.embeddings_group_size is not None and not is_plain:
            needs.append(CODED_TABLE)
    return needs
