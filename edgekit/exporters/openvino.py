"""The `openvino` branch of the stage `export`: OpenVINO's intermediate representation (IR), weights as codes.

OpenVINO reads edgekit's ONNX graph, whose codes become constants of 4 or 8 bits that its CPU plugin decodes while it
multiplies. No code is chosen here: OpenVINO's own compression (NNCF) is not used, and what was written is read back and
compared with the codes.

Where the student rounds activations to 8 bits, the file asks the plugin to round them as well, which it does in blocks
of 32 with a scale of their own, more finely than onnxruntime; where the student does not, the file forbids it.
"""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from edgekit.artifact import Artifact, publish
from edgekit.contract import StageContext, StageInputs, lineage_of
from edgekit.errors import EnvironmentLacksError, ModelError, UnsupportedError
from edgekit.exporters.block_types import BLOCK
from edgekit.exporters.description import write_description
from edgekit.exporters.onnx_stage import copy_parts, describe_onnx, prepare
from edgekit.formats import FORMATS
from edgekit.models.quantized import QuantizedLinear

if TYPE_CHECKING:
    from torch import nn

    from edgekit.exporters.onnx import OnnxExport
    from edgekit.exporters.stage import ExportConfig

IR_FILE = FORMATS["openvino"].file

_CODES = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4)


def export_openvino_artifact(inputs: StageInputs, config: ExportConfig, context: StageContext) -> Artifact:
    """Writes a classifier as an `openvino` artifact: `openvino_model.xml` and `.bin`, as optimum-intel names them.

    Raises:
        UnsupportedError: the model cannot be traced, a scheme has no operator, or OpenVINO cannot run the graph.
        ModelError: the model cannot be read, a weight is not finite, or the file does not hold the codes.
        EnvironmentLacksError: OpenVINO is not installed.
    """
    from edgekit.exporters.lowering import StandardOperators
    from edgekit.exporters.onnx import export_onnx
    from edgekit.runtimes.openvino_runtime import OpenVinoRuntime

    reason = OpenVinoRuntime().unavailable_reason()
    if reason is not None:
        raise EnvironmentLacksError(f"openvino: {reason}")
    model = inputs.require("model", "export")
    loaded, settings = prepare(model, config, context, StandardOperators(round_activations=False))
    exported = export_onnx(loaded, settings)
    with publish(context.out, kind="openvino", lineage=lineage_of("export", inputs, config, context)) as directory:
        write_ir(exported, directory / IR_FILE, round_activations=rounds_activations(loaded.model))
        require_codes(exported, directory / IR_FILE)
        require_kernels(directory / IR_FILE)
        copy_parts(directory, model)
        write_description(directory, describe_onnx(exported, model, config, IR_FILE))
    return Artifact.open(context.out)


def rounds_activations(network: nn.Module) -> bool:
    """Returns whether a linear on codes rounds its input to 8 bits."""
    linears = (module for module in network.modules() if isinstance(module, QuantizedLinear))
    return any(linear.scheme.activations == "dynamic-int8" for linear in linears)


def write_ir(exported: OnnxExport, file: Path, *, round_activations: bool) -> None:
    """Writes the graph as IR: `file`, and its weights in a `.bin` of the same name.

    Raises:
        UnsupportedError: OpenVINO does not read the graph.
    """
    import openvino

    from edgekit.exporters.onnx import save_onnx

    with TemporaryDirectory(dir=file.parent) as scratch:
        graph = Path(scratch) / "model.onnx"
        save_onnx(exported, graph)
        try:
            read = openvino.Core().read_model(graph)
        except RuntimeError as error:
            raise UnsupportedError(f"openvino: {openvino.__version__} cannot read the graph: {error}") from error
        group = BLOCK if round_activations else 0
        read.set_rt_info(str(group), ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
        _number_names(read)
        openvino.save_model(read, file, compress_to_fp16=False)


def _number_names(model: Any) -> None:
    """Gives operators that OpenVINO named by counting since the process began names that count from 0, in place."""
    for index, operator in enumerate(model.get_ordered_ops()):
        kind = operator.get_type_name()
        if re.fullmatch(rf"{re.escape(kind)}_\d+", operator.get_friendly_name()):
            operator.set_friendly_name(f"{kind}_{index}")


def require_codes(exported: OnnxExport, file: Path) -> None:
    """Does nothing where the IR holds every code of the graph, under its name and in its place.

    Raises:
        ModelError: it holds others, or none.
    """
    import openvino

    operators = openvino.Core().read_model(file).get_ops()
    constants = {each.get_friendly_name(): each for each in operators if each.get_type_name() == "Constant"}
    for name, value in exported.model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype not in _CODES:
            continue
        if name not in constants or not _is_equal(constants[name], tensor.numpy()):
            raise ModelError(f"openvino: {file.name} does not hold the codes '{name}'. Nothing was exported.")


def require_kernels(file: Path) -> None:
    """Does nothing where OpenVINO opens the IR that it wrote.

    Raises:
        UnsupportedError: its CPU plugin cannot compile it.
    """
    import openvino

    from edgekit.runtimes.openvino_runtime import DEVICE, reason, session_settings

    core = openvino.Core()
    try:
        core.compile_model(core.read_model(file), DEVICE, session_settings("openvino"))
    except Exception as error:  # RuntimeError, and what its frontends raise
        raise UnsupportedError(
            f"openvino: {openvino.__version__} writes this model but cannot run it ({reason(error)}). Nothing was "
            "exported. Export it as onnx."
        ) from error


def _is_equal(constant: Any, codes: np.ndarray) -> bool:
    if list(constant.get_output_shape(0)) != list(codes.shape):
        return False
    return np.array_equal(read_integers(constant), codes.astype(np.int16))


def read_integers(constant: Any) -> np.ndarray:
    """Returns the values of an OpenVINO constant of 4 or 8 bits as int16, in its shape."""
    kind, shape = constant.get_element_type().get_type_name(), list(constant.get_output_shape(0))
    found: np.ndarray = constant.data
    if kind in ("i8", "u8"):
        return found.astype(np.int16)
    packed = found.view(np.uint8).reshape(-1)  # two a byte, the first in the low half
    halves = np.stack([packed & 15, packed >> 4], axis=-1).astype(np.int16)
    numbers = (halves ^ 8) - 8 if kind == "i4" else halves
    return numbers.reshape(-1)[: int(np.prod(shape))].reshape(shape)
