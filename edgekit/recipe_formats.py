"""Whether the formats of a recipe hold what it makes: their kernels, blocks, systems, and ways of writing codes.

Each function returns one sentence for each problem, naming file, key, what was found and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.errors import UnsupportedError
from edgekit.exporters import coreml_needs, executorch_needs, litert_needs
from edgekit.exporters.block_types import BLOCK, block_type
from edgekit.exporters.stage import LOWERED
from edgekit.formats import FORMATS
from edgekit.packaging.manifest import require_system
from edgekit.pruning.stage import PruneConfig
from edgekit.quantization.stage import QuantizeConfig, coded_parts
from edgekit.recipe_parts import ExportEntry, Frame, RecipeStage
from edgekit.runtimes.protocol import list_runtimes, load_runtime, reads_directory
from edgekit.target import Target

Stages = Sequence[RecipeStage | None]
Targets = dict[str, Target]

# Row lengths of real models are multiples of it; whether a model's are is seen when it is exported.
_USUAL_COLUMNS = 256
_DERIVED = ("runtime", "threads", "batch", "length", "first_token")
"""Keys of `[autotune]` that an export of a recipe gives."""


def unfit_formats(frame: Frame, stages: Stages, targets: Targets, where: str) -> list[str]:
    """Returns a problem for each export whose format cannot hold the task's models, or the codes of `quantize`."""
    problems = []
    for index, entry in enumerate(frame.export):
        key = f"{where}: export.{index}"
        written = FORMATS[entry.format]
        if entry.lengths is not None and (not written.fixed_lengths or max(entry.lengths) > frame.task.max_length):
            problems.append(
                f"{key}.lengths: found {entry.lengths} for {entry.format}, expected them for litert alone, each at "
                f"most {frame.task.max_length}, which is task.max_length. Lower them, or remove the key."
            )
        problems += _unmeasured_lowering(frame, entry, stages, key)
        if frame.task.kind not in written.tasks:
            problems.append(
                f"{key}.format: found '{entry.format}' for the task '{frame.task.kind}', expected "
                f"{' or '.join(written.tasks)}: {written.limitation}. Use onnx."
            )
        elif entry.format == "gguf" and entry.precision == "as-is":
            problems += _without_block(stages, key)
        elif entry.format in ("litert", "executorch"):
            problems += _without_kernel(entry, stages, key)
        elif entry.format == "coreml":
            problems += _old_systems(entry, stages, targets, key)
    return problems


def overridden_autotune(frame: Frame, where: str) -> list[str]:
    """Returns a problem for each key of `[autotune]` that would not be heeded."""
    return [
        f"{where}: autotune.{key}: found {getattr(frame.autotune, key)!r}, expected none: in a build it is the "
        "export's own. Remove it."
        for key in _DERIVED
        if key in frame.autotune.model_fields_set
    ]


def _unmeasured_lowering(frame: Frame, entry: ExportEntry, stages: Stages, key: str) -> list[str]:
    """Returns a problem where ways of writing linears are to be measured and there is one way only."""
    if entry.lowering == "scheme":
        return []
    is_quantized = any(stage is not None and stage.kind == "quantize" for stage in stages)
    known = list_runtimes()  # an unknown one is told elsewhere
    opens_files = entry.runtime not in known or not reads_directory(load_runtime(known[entry.runtime]))
    fits = entry.format in LOWERED and entry.precision == "as-is" and opens_files
    if fits and frame.task.kind != "causal-lm" and is_quantized:
        return []
    return [
        f"{key}.lowering: found 'measured', expected it for a quantized classifier in {' or '.join(LOWERED)} with the "
        "precision as-is, in a runtime that opens single files: anything else is written in one way. Remove it."
    ]


def _without_block(stages: Stages, key: str) -> list[str]:
    """Returns a problem for each part of a model whose codes no GGUF block holds."""
    problems = []
    for index, stage in enumerate(stages):
        config = None if stage is None else stage.config
        if isinstance(config, PruneConfig) and (config.intermediate_size or 0) % BLOCK:
            problems.append(
                f"{key}.format: stage.{index}.intermediate_size: found {config.intermediate_size}, expected a multiple "
                f"of {BLOCK}: gguf stores codes in blocks of so many."
            )
        if not isinstance(config, QuantizeConfig):
            continue
        for name, codes in coded_parts(config).items():
            try:
                block_type(codes, _USUAL_COLUMNS)
            except UnsupportedError as error:
                problems.append(f"{key}.format: stage.{index}.{name}: {error}")
    return problems


def _without_kernel(entry: ExportEntry, stages: Stages, key: str) -> list[str]:
    """Returns a problem for a precision that a format has not, and for each part whose codes it has no kernel for."""
    if entry.precision == "float16":
        return [f"{key}.precision: found float16, expected as-is or float32 for {entry.format}."]
    problems = []
    for index, stage in enumerate(stages):
        config = None if stage is None or entry.precision != "as-is" else stage.config
        for name, codes in coded_parts(config).items() if isinstance(config, QuantizeConfig) else ():
            try:
                if entry.format == "litert":
                    litert_needs.require_kernel(codes, is_table=name == "embeddings")
                elif name != "head":  # a classifier has none
                    executorch_needs.require_kernel(codes, is_table=name == "embeddings")
            except UnsupportedError as error:
                problems.append(f"{key}.format: stage.{index}.{name}: {error}")
    return problems


def _old_systems(entry: ExportEntry, stages: Stages, targets: Targets, key: str) -> list[str]:
    """Returns a problem for each target whose system is too old for the codes in a Core ML package."""
    configs = [stage.config for stage in stages if stage is not None and isinstance(stage.config, QuantizeConfig)]
    codes = [part for config in configs for part in coded_parts(config).values()]
    oldest = coreml_needs.oldest_system(codes if entry.precision == "as-is" else [])
    problems = []
    for target in (targets[name] for name in entry.targets if name in targets):
        shipped = next((runtime for runtime in target.runtimes if runtime.name == entry.runtime), None)
        if shipped is None:
            continue  # told elsewhere
        try:
            require_system(oldest, target, shipped, f"{key}.format")
        except UnsupportedError as error:
            problems.append(str(error))
    return problems
