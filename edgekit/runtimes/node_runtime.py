"""Runs ONNX files with onnxruntime's JavaScript packages in Node.js, in a process that speaks JSON lines.

`onnxruntime-node` is what desktop apps on Electron and servers ship; `onnxruntime-web-node` is the package
onnxruntime-web, the WebAssembly that browsers run, in Node's engine, which is Chromium's: for machines without a
browser (`browser_runtime.py` has one). Both are measured by `node_worker.mjs` itself, so that no time of another
process is in a sample; only results, for parity and quality, come through the pipe. `transformers.js` runs
its models on the first of them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from edgekit.errors import EnvironmentLacksError
from edgekit.runtimes.npm_packages import missing_package, package_version, require_package
from edgekit.runtimes.own_process import open_session
from edgekit.runtimes.protocol import ModelOnDisk, Session, SessionConfig, model_file

WORKER = Path(__file__).with_name("node_worker.mjs")


class NodeRuntime:
    """What the runtimes of this module share: each runs one npm package."""

    name: str
    reads_directory = False
    """Whether it opens a whole export, configuration included, and not the file alone."""
    package: str
    """The npm package."""
    formats: tuple[str, ...] = ("onnx", "ort")
    libraries: tuple[str, ...] = ()

    def unavailable_reason(self) -> str | None:
        """Returns None when Node.js and the package are at hand, else how to install what is not."""
        if shutil.which("node") is None:
            return "the program 'node' is not installed. Install Node.js 18 or newer: apt-get install nodejs npm"
        return missing_package(self.package)

    def version(self) -> str:
        """Returns the version that the package's own file names.

        Raises:
            EnvironmentLacksError: the package is missing.
        """
        return package_version(self.package)

    def open(self, model: ModelOnDisk, config: SessionConfig) -> Session:
        """Returns a session in a Node process of its own, which ends with it.

        Raises:
            ModelError: onnxruntime cannot open the file.
            EnvironmentLacksError: Node.js or the package is missing.
            MeasurementError: its process ended.
        """
        return open_session(self, model, config)

    def program(self) -> list[str]:
        """Returns the command of a process that answers what `edgekit.benchmarking.worker` answers.

        Raises:
            EnvironmentLacksError: there is no Node.js.
        """
        node = shutil.which("node")
        if node is None:
            raise EnvironmentLacksError(f"runtime '{self.name}': {self.unavailable_reason()}")
        return [node, "--expose-gc", str(WORKER)]

    def describe(self, model: ModelOnDisk) -> dict[str, Any]:
        """Returns what `open` is asked with, besides what every worker gets.

        Raises:
            EnvironmentLacksError: the package is missing.
        """
        modules = require_package(self.package).parents[self.package.count("/")]
        file = model_file(model).resolve()
        return {
            "package": self.package,
            "modules": str(modules),
            "file": str(file),
            "directory": str(model.path.resolve()),
        }


class OnnxRuntimeNode(NodeRuntime):
    """The runtime `onnxruntime-node`."""

    name = package = "onnxruntime-node"


class OnnxRuntimeWebNode(NodeRuntime):
    """The runtime `onnxruntime-web-node`: WebAssembly with SIMD, in Node."""

    name = "onnxruntime-web-node"
    package = "onnxruntime-web"


class TransformersJs(NodeRuntime):
    """The runtime `transformers.js` in Node: its own class of models, which finds and opens `onnx/model.onnx` itself.

    It is given ids: whether its tokenizer makes the same of a text is for `tests/peers` to say.
    """

    name = "transformers.js"
    package = "@huggingface/transformers"
    reads_directory = True
    formats = ("onnx",)
