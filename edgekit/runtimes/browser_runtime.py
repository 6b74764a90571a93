"""Runs ONNX files with onnxruntime-web in a headless Chromium: the page, the threads and the memory that an app has.

The program `browser_worker.py` starts the browser, serves the page and hands on what is asked; the page times its own
calls. This module finds the browser and the npm package and says what is missing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import lru_cache
from typing import Any

from edgekit.errors import EnvironmentLacksError
from edgekit.runtimes.npm_packages import missing_package, package_version, require_package
from edgekit.runtimes.own_process import Program, open_session
from edgekit.runtimes.protocol import ModelOnDisk, Session, SessionConfig, model_file, model_files

BROWSER_VARIABLE = "EDGEKIT_CHROMIUM"
"""Names the browser, a program or a path to one, that is used instead of those that are looked for."""

_PROGRAMS = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser")
_MODULE = "edgekit.runtimes.browser_worker"
_SCRIPT = "ort.wasm.min.mjs"
_VERSION_S = 60.0


class OnnxRuntimeWeb:
    """The runtime `onnxruntime-web`: WebAssembly with SIMD, in a page of Chromium."""

    name = "onnxruntime-web"
    formats: tuple[str, ...] = ("onnx", "ort")
    libraries: tuple[str, ...] = ()

    def unavailable_reason(self) -> str | None:
        """Returns None when a browser and the package are at hand, else how to install what is not."""
        return missing_browser() or missing_package(self.name)

    def version(self) -> str:
        """Returns the version of the package, and the browser with its own.

        Raises:
            EnvironmentLacksError: one of them is missing.
        """
        return f"{package_version(self.name)} in {browser_version(_require_browser())}"

    def open(self, model: ModelOnDisk, config: SessionConfig) -> Session:
        """Returns a session in a page of a browser of its own, which ends with it.

        Raises:
            ModelError: onnxruntime-web cannot open the file.
            EnvironmentLacksError: the browser or the package is missing, or the page cannot have so many threads.
            MeasurementError: the browser does not start, or ended.
        """
        return open_session(self, model, config)

    def program(self) -> list[str]:
        """Returns the command of a process that answers what `edgekit.benchmarking.worker` answers.

        Raises:
            EnvironmentLacksError: there is no browser.
        """
        return browser_program()

    def describe(self, model: ModelOnDisk) -> dict[str, Any]:
        """Returns what `open` is asked with, besides what every worker gets.

        Raises:
            EnvironmentLacksError: the package is missing.
        """
        first = model_file(model).resolve()
        files = [first, *(file.resolve() for file in model_files(model) if file.resolve() != first)]
        dist = require_package(self.name).resolve() / "dist"
        return {"dist": str(dist), "script": _SCRIPT, "files": [str(file) for file in files], "isolated": True}


def find_browser() -> str | None:
    """Returns the path of the browser that is used, or None."""
    named = os.environ.get(BROWSER_VARIABLE)
    found = (shutil.which(name) for name in ((named,) if named else _PROGRAMS))
    return next((path for path in found if path is not None), None)


def missing_browser() -> str | None:
    """Returns None when a browser is at hand, else how to install one."""
    if find_browser() is not None:
        return None
    named = os.environ.get(BROWSER_VARIABLE)
    found = f"found no program '{named}', which {BROWSER_VARIABLE} names" if named else "found no Chromium or Chrome"
    advice = f"apt-get install chromium - or name one in the environment variable {BROWSER_VARIABLE}."
    return f"{found}. Install it: {advice}"


def browser_program() -> list[str]:
    """Returns the command of the program that starts the browser and speaks for its page.

    Raises:
        EnvironmentLacksError: there is no browser.
    """
    return [sys.executable, "-P", "-m", _MODULE, _require_browser()]


@lru_cache
def browser_version(program: str) -> str:
    """Returns what a browser calls itself: name and version.

    Raises:
        EnvironmentLacksError: it does not tell.
    """
    try:
        ran = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=_VERSION_S)
        told = re.search(r"(\w[\w ]*?) (\d[\d.]+)", ran.stdout)
    except (OSError, subprocess.TimeoutExpired):
        told = None
    if told is None:
        raise EnvironmentLacksError(
            f"{program}: found no answer to --version, expected the version of Chromium or Chrome. Run it by hand to "
            f"see why, or name another one in {BROWSER_VARIABLE}."
        )
    return f"{told[1]} {told[2]}"


def ask_browser() -> dict[str, Any]:
    """Returns what a page finds in the browser: isolation, the clock's resolution, WebGPU; it starts one for that.

    Raises:
        EnvironmentLacksError: there is no browser, or it does not start (as MeasurementError).
    """
    program = Program(browser_program())
    try:
        return program.ask("about")
    finally:
        program.end()


def _require_browser() -> str:
    found = find_browser()
    if found is None:
        raise EnvironmentLacksError(str(missing_browser()))
    return found
