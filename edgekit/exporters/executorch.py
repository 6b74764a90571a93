"""The `executorch` branch of the stage `export`: an ExecuTorch program (.pte) for XNNPACK, weights as codes.

torch.export traces the model with its linears and tables on codes written as `executorch_lowering.py` says, for one
text of any length up to the longest; ExecuTorch's partitioner gives what it can to XNNPACK, and the rest to its own
kernels. No code is chosen here: ExecuTorch's and torchao's quantizers are not used. What was written is read back and
compared with the codes, and a linear on codes that XNNPACK did not take is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgekit.artifact import Artifact, publish
from edgekit.contract import StageContext, StageInputs, lineage_of
from edgekit.errors import ModelError, UnsupportedError
from edgekit.events import Event
from edgekit.exporters.description import ExecuTorchDescription, write_description
from edgekit.exporters.executorch_codes import coded_weights, require_codes
from edgekit.exporters.executorch_lowering import CodedLinear, lower_codes
from edgekit.exporters.executorch_needs import require_converter
from edgekit.formats import FORMATS
from edgekit.runtimes.executorch_runtime import METHOD, NAMES_METHOD, open_program
from edgekit.runtimes.silence import silent_library

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekit.exporters.stage import ExportConfig
    from edgekit.models.source import LoadedModel

EXECUTORCH_FILE = FORMATS["executorch"].file
_SAMPLE_TOKENS = 7
"""Of the text that is traced: no other size of a model is likely to be as long."""


def export_executorch_artifact(inputs: StageInputs, config: ExportConfig, context: StageContext) -> Artifact:
    """Writes a classifier as an `executorch` artifact: `model.pte`.

    Raises:
        UnsupportedError: the model cannot be traced or lowered, ExecuTorch has no kernel for a scheme or an operator,
            XNNPACK did not take a linear on codes, or the precision is float16.
        ModelError: the model cannot be read, a weight is not finite, or the file does not hold the codes.
        EnvironmentLacksError: ExecuTorch is not installed.
    """
    from edgekit.exporters.onnx_stage import copy_parts
    from edgekit.exporters.precision import apply_precision, require_finite
    from edgekit.models.source import load_model

    require_converter()
    _require_precision(config)
    model = inputs.require("model", "export")
    loaded = load_model(model)
    require_finite(loaded.model, str(model.path))
    apply_precision(loaded.model, config.precision)
    codes = coded_weights(loaded.model)
    context.events(Event("progress", stage="export", text="converting"))
    content = convert(loaded)
    require_codes(content, codes)
    with publish(context.out, kind="executorch", lineage=lineage_of("export", inputs, config, context)) as directory:
        (directory / EXECUTORCH_FILE).write_bytes(content)
        require_kernels(directory / EXECUTORCH_FILE)
        copy_parts(directory, model)
        write_description(directory, _describe(config, loaded, sorted(codes), model.digest))
    return Artifact.open(context.out)


def convert(loaded: LoadedModel) -> bytes:
    """Returns a classifier as the content of a .pte file: int64 inputs (1, T), T up to the longest, logits (1, C).

    The modules of `loaded` are changed.

    Raises:
        UnsupportedError: it cannot be traced or lowered, or XNNPACK did not take a linear on codes; names it.
    """
    from edgekit.exporters.onnx import input_names
    from edgekit.exporters.substitution import can_fuse_attention

    names = input_names(loaded)
    if can_fuse_attention(loaded.model):
        loaded.model.set_attn_implementation("eager")  # matrix products and a softmax, which XNNPACK has
    lower_codes(loaded.model)
    with silent_library():
        try:
            edge = lower(Logits(loaded.model, names).eval(), names, loaded.task.max_length, delegate=True)
            require_delegated(edge)
            return bytes(edge.to_executorch().buffer)
        except UnsupportedError:
            raise
        except Exception as error:  # torch.export's and ExecuTorch's have no common base
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            found = lines[0][:300] if lines else type(error).__name__
            raise UnsupportedError(f"executorch: the model cannot be lowered: {found}. Export it as onnx.") from error


def lower(network: nn.Module, names: Sequence[str], longest: int, *, delegate: bool) -> Any:
    """Returns a network of positional inputs `(1, T)` as ExecuTorch's edge program, parts given to XNNPACK or none."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    tokens = torch.export.Dim("tokens", min=1, max=longest)
    samples = tuple(torch.ones(1, min(_SAMPLE_TOKENS, longest), dtype=torch.int64) for _ in names)
    shapes = {"arrays": tuple({1: tokens} for _ in names)}
    program = torch.export.export(network, samples, dynamic_shapes=shapes, strict=False)
    return to_edge_transform_and_lower(
        {METHOD: program},
        partitioner=[XnnpackPartitioner()] if delegate else [],
        constant_methods={NAMES_METHOD: " ".join(names)},
        # Its list of allowed operators lacks those of codes, which the partitioner takes away afterwards.
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
    )


def require_delegated(edge: Any) -> None:
    """Does nothing where no operator of a linear on codes is left for ExecuTorch's own kernels.

    Raises:
        UnsupportedError: one is; names the linear.
    """
    for node in edge.exported_program(METHOD).graph.nodes:
        modules = list(node.meta.get("nn_module_stack", {}).values())
        if node.op != "call_function" or not modules or not _is_coded_linear(modules[-1][1]):
            continue
        if "executorch_call_delegate" not in str(node.target) and "quantized_decomposed" in str(node.target):
            name = str(modules[-1][0]).removeprefix("network.")
            raise UnsupportedError(
                f"executorch: XNNPACK did not take the linear '{name}', which would be slow. Exclude the module from "
                "quantization, or export the model as onnx."
            )


def require_kernels(file: Path) -> None:
    """Does nothing where ExecuTorch opens and runs the file that was written.

    Raises:
        UnsupportedError: it does not.
    """
    try:
        session = open_program(file, threads=1)
        ones = torch.ones(1, 1, dtype=torch.int64).numpy()
        session.run(dict.fromkeys(session.input_names, ones))
    except (ModelError, RuntimeError) as error:
        raise UnsupportedError(
            f"executorch: the runtime cannot run what was written ({error}). Export it as onnx."
        ) from error


class Logits(nn.Module):
    """A classifier as a function of arrays in the order of `names`, `(1, T)` int64 each, to logits (1, C)."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.names = tuple(names)

    def forward(self, *arrays: Tensor) -> Tensor:
        """Returns the logits alone."""
        logits: Tensor = self.network(**dict(zip(self.names, arrays, strict=True))).logits
        return logits


def _is_coded_linear(kind: object) -> bool:
    """Returns whether an entry of torch's module stack, a class or its name, is a linear on codes."""
    return kind is CodedLinear or str(kind).endswith(f".{CodedLinear.__name__}")


def _describe(config: ExportConfig, loaded: LoadedModel, coded: list[str], digest: str) -> ExecuTorchDescription:
    longest = loaded.task.max_length
    return ExecuTorchDescription(
        format="executorch",
        file=EXECUTORCH_FILE,
        precision=config.precision,
        notes=[f"One text at a time, of 1 to {longest} tokens."],
        model_digest=digest,
        longest=longest,
        coded_weights=coded,
    )


def _require_precision(config: ExportConfig) -> None:
    if config.precision == "float16":
        raise UnsupportedError(
            "executorch: precision: found float16, expected as-is or float32. Export float32, or as onnx."
        )
