"""The `ort` branch of the stage `export`: onnxruntime's own format, for builds of it that are cut for mobile apps.

The ONNX graph is optimized once, here, and stored as onnxruntime executes it. Layouts that only x86 has are left out,
so that the file runs on any processor. onnxruntime writes some of its tables in an order of chance: files of equal
models behave alike, but their bytes differ. `required_operators.config` beside it lists operators and element types:
what a reduced build of onnxruntime must hold (`build.py --include_ops_by_config FILE
--enable_reduced_operator_type_support`).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact, publish
from edgekit.contract import StageContext, StageInputs, lineage_of
from edgekit.errors import UnsupportedError
from edgekit.exporters.description import write_description
from edgekit.exporters.onnx_stage import copy_parts, describe_onnx, prepare
from edgekit.formats import FORMATS

if TYPE_CHECKING:
    from edgekit.exporters.stage import ExportConfig

ORT_FILE = FORMATS["ort"].file
OPERATORS_FILE = "required_operators.config"

_OTHER_LAYOUTS = ["NchwcTransformer"]
"""Optimizers whose result runs on x86 alone."""


def export_ort_artifact(inputs: StageInputs, config: ExportConfig, context: StageContext) -> Artifact:
    """Writes a classifier as an `ort` artifact: `model.ort`, and the operators that it needs.

    Raises:
        UnsupportedError: the model cannot be traced, a scheme has no operator, or a ceiling is too low.
        ModelError: the model cannot be read, or a weight is not finite.
    """
    from edgekit.exporters.lowering import StandardOperators
    from edgekit.exporters.onnx import export_onnx, save_onnx

    model = inputs.require("model", "export")
    standard = StandardOperators(round_activations=True) if config.dialect == "standard" else None
    loaded, settings = prepare(model, config, context, standard)
    exported = export_onnx(loaded, settings)
    with publish(context.out, kind="ort", lineage=lineage_of("export", inputs, config, context)) as directory:
        with TemporaryDirectory(dir=directory) as scratch:
            graph = Path(scratch) / "model.onnx"
            save_onnx(exported, graph, external_data=config.external_data)
            convert(graph, directory / ORT_FILE)
        write_required_operators(directory / ORT_FILE, directory / OPERATORS_FILE)
        copy_parts(directory, model)
        write_description(directory, describe_onnx(exported, model, config, ORT_FILE))
    return Artifact.open(context.out)


def convert(graph: Path, file: Path) -> None:
    """Writes the ONNX file `graph` as onnxruntime executes it.

    Raises:
        UnsupportedError: onnxruntime cannot open or write it.
    """
    import onnxruntime

    from edgekit.runtimes.onnxruntime_runtime import PROVIDER, session_options
    from edgekit.runtimes.protocol import SessionConfig

    options = session_options(SessionConfig())
    options.optimized_model_filepath = str(file)
    options.add_session_config_entry("session.save_model_format", "ORT")
    try:
        onnxruntime.InferenceSession(str(graph), options, providers=[PROVIDER], disabled_optimizers=_OTHER_LAYOUTS)
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise UnsupportedError(f"ort: onnxruntime {onnxruntime.__version__} cannot write it: {error}") from error


def write_required_operators(model: Path, file: Path) -> None:
    """Writes what a reduced build of onnxruntime must hold to run `model`: operators, and their element types.

    The types are left out where onnxruntime's tool does not know one, as that of 4-bit constants in 1.32.
    """
    with _quiet_tools():
        from onnxruntime.tools.ort_format_model import create_config_from_models

        try:
            create_config_from_models([model], file, enable_type_reduction=True)
        except KeyError:  # the tool's table of element types
            create_config_from_models([model], file, enable_type_reduction=False)
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    # its comments name the directory that the file was written in
    file.write_text("".join(line for line in lines if not line.startswith("#")), encoding="utf-8")


@contextmanager
def _quiet_tools() -> Iterator[None]:
    """Keeps onnxruntime's tools from setting up the root logger, and from telling of files that they leave open."""
    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)  # `basicConfig` leaves a logger alone that has a handler
    previous = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            yield
    finally:
        logging.disable(previous)
        root.removeHandler(silent)
