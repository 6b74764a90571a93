"""Runs ONNX files with onnxruntime's JavaScript packages in Node.js, in a process that speaks JSON lines.

`onnxruntime-node` is what desktop apps on Electron and servers ship; `onnxruntime-web` is the WebAssembly build that
browsers run, here in Node's engine, which is Chromium's. Both are measured by `node_worker.mjs` itself, so that no
time of another process is in a sample; only results, for parity and quality, come through the pipe.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from edgekit.errors import EnvironmentLacksError
from edgekit.runtimes.process_session import ProcessSession
from edgekit.runtimes.protocol import ModelOnDisk, Session, SessionConfig, model_file

LOCATION_VARIABLE = "EDGEKIT_NODE_MODULES"
"""Names the directory `node_modules` that is looked into instead of those of the working directory and above."""

WORKER = Path(__file__).with_name("node_worker.mjs")


class NodeRuntime:
    """What the runtimes of this module share; each is the name of an npm package."""

    name: str
    formats: tuple[str, ...] = ("onnx", "ort")
    libraries: tuple[str, ...] = ()

    def unavailable_reason(self) -> str | None:
        """Returns None when Node.js and the package are at hand, else how to install what is not."""
        if shutil.which("node") is None:
            return "the program 'node' is not installed. Install Node.js 18 or newer: apt-get install nodejs npm"
        if find_package(self.name) is not None:
            return None
        return (
            f"found no npm package '{self.name}'. Install it here: npm install {self.name} - or name the directory "
            f"node_modules that holds it in the environment variable {LOCATION_VARIABLE}."
        )

    def version(self) -> str:
        """Returns the version that the package's own file names."""
        return str(json.loads((self._package() / "package.json").read_text(encoding="utf-8"))["version"])

    def open(self, model: ModelOnDisk, config: SessionConfig) -> Session:
        """Returns a session in a Node process of its own, which ends with it.

        Raises:
            ModelError: onnxruntime cannot open the file.
            EnvironmentLacksError: Node.js or the package is missing.
        """
        settings = {"threads": config.threads, "graph_optimization": config.graph_optimization}
        return ProcessSession(self.program(), {**settings, **self.describe(model)})

    def program(self) -> list[str]:
        """Returns the command of a process that answers what `edgekit.benchmarking.worker` answers."""
        node = shutil.which("node")
        if node is None:
            raise EnvironmentLacksError(f"runtime '{self.name}': {self.unavailable_reason()}")
        return [node, "--expose-gc", str(WORKER)]

    def describe(self, model: ModelOnDisk) -> dict[str, Any]:
        """Returns what `open` is asked with, besides what every worker gets.

        Raises:
            EnvironmentLacksError: the package is missing.
        """
        package = self._package()
        return {"package": self.name, "modules": str(package.parent), "file": str(model_file(model).resolve())}

    def _package(self) -> Path:
        found = find_package(self.name)
        if found is None:
            raise EnvironmentLacksError(f"runtime '{self.name}' is not available: {self.unavailable_reason()}")
        return found


class OnnxRuntimeNode(NodeRuntime):
    """The runtime `onnxruntime-node`."""

    name = "onnxruntime-node"


class OnnxRuntimeWeb(NodeRuntime):
    """The runtime `onnxruntime-web`: WebAssembly with SIMD, in Node."""

    name = "onnxruntime-web"


def find_package(name: str) -> Path | None:
    """Returns the directory of an npm package, or None."""
    named = os.environ.get(LOCATION_VARIABLE)
    here = Path.cwd()
    places = [Path(named).expanduser()] if named else [parent / "node_modules" for parent in (here, *here.parents)]
    return next((place / name for place in places if (place / name / "package.json").is_file()), None)
