"""Says which machine this is, and which of its cores to measure on.

Standard library only, but for the fingerprint: what runs on a device imports it.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.results import Machine

_X86_NAMES = "sse4_2 avx avx2 fma f16c avx_vnni avx512f avx512bw avx512vl avx512_vnni avx512_bf16 avx512_fp16"
_AMX_NAMES = "amx_int8 amx_bf16"
_ARM_NAMES = "asimd asimdhp asimddp i8mm bf16 sve sve2 sme"
FEATURES = frozenset(f"{_X86_NAMES} {_AMX_NAMES} {_ARM_NAMES}".split())
"""Vector extensions that kernels choose by, as Linux names them in /proc/cpuinfo."""

_MACOS_NAMES = {
    "AdvSIMD": "asimd",
    "arm.FEAT_FP16": "asimdhp",
    "arm.FEAT_DotProd": "asimddp",
    "arm.FEAT_I8MM": "i8mm",
    "arm.FEAT_BF16": "bf16",
    "arm.FEAT_SME": "sme",
}
"""Apple, "Determining instruction set characteristics": what macOS calls them, below `hw.optional`."""

_DEVICE_FILES = ("/proc/device-tree/model", "/sys/class/dmi/id/product_name")
_GETPROP = "/system/bin/getprop"  # Android
_SYSTEM = Path("/sys/devices/system/cpu")


def machine_fingerprint() -> Machine:
    """Returns what makes measurements of two machines comparable or not; the same machine always gives the same."""
    from edgekit.results import Machine

    return Machine(**machine_facts())


def machine_facts() -> dict[str, Any]:
    """Returns the fields of a `Machine`, for this one."""
    cpuinfo = _read("/proc/cpuinfo")
    return {
        "cpu": _cpu_name(cpuinfo),
        "architecture": _architecture(),
        "cores": len(usable_cores()) or os.cpu_count() or 1,
        "memory_bytes": _memory_bytes(),
        "cpu_features": cpu_features(cpuinfo),
        "operating_system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "device": _device(),
    }


def cpu_features(cpuinfo: str) -> list[str]:
    """Returns the vector extensions, sorted, that the text of /proc/cpuinfo (x86 `flags`, ARM `Features`) lists."""
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, flags=re.MULTILINE)
    if not lines:
        return _macos_features()
    # Big and little cores may differ; kernels may count on what all have.
    shared = set.intersection(*(set(line.split()) for line in lines))
    return sorted(shared & FEATURES)


def usable_cores() -> list[int]:
    """Returns the logical cores that this process may run on, sorted; empty where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def choose_cores(count: int) -> list[int]:
    """Returns up to `count` cores to pin a measurement to; empty where pinning is impossible."""
    return sorted(rank_cores()[:count])


def rank_cores() -> list[int]:
    """Returns the usable cores, the best to measure on first.

    Fast cores before slow ones, one of each physical core before its sibling, and high numbers first, for core 0
    takes most interrupts.
    """
    return sorted(usable_cores(), key=lambda core: (_sibling_rank(core), -_capacity(core), -core))


def load_average() -> float:
    """Returns the one-minute load average; -1 where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else -1.0


def _cpu_name(cpuinfo: str) -> str:
    chip = _output_of(_GETPROP, "ro.soc.model")  # since Android 12; newer kernels leave it out of cpuinfo
    if chip:
        return f"{_output_of(_GETPROP, 'ro.soc.manufacturer')} {chip}".strip()
    for key in ("model name", "Hardware", "Model"):
        found = re.search(rf"^{key}\s*:\s*(.+)$", cpuinfo, flags=re.MULTILINE)
        if found:
            return found.group(1).strip()
    part = re.search(r"^CPU part\s*:\s*(.+)$", cpuinfo, flags=re.MULTILINE)
    if part:
        return " ".join(filter(None, (_device_tree_chip(), f"ARM part {part.group(1).strip()}")))
    return _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()


def _device_tree_chip() -> str:
    """Returns the chip as Linux's device tree names it, for example `qcom,x1e80100`; empty where there is none."""
    names = _read("/proc/device-tree/compatible").split("\0")
    return next((name for name in reversed(names) if name.strip()), "")


def _architecture() -> str:
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def _memory_bytes() -> int:
    if sys.platform == "darwin":
        return int(_sysctl("hw.memsize") or 0)
    if not hasattr(os, "sysconf"):
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _device() -> str:
    for file in _DEVICE_FILES:
        name = _read(file).strip("\0\n ")
        if name:
            return name
    return _output_of(_GETPROP, "ro.product.model") or _sysctl("hw.model")


def _macos_features() -> list[str]:
    """Returns the ARM extensions that macOS reports, under Linux's names."""
    return sorted(linux for mac, linux in _MACOS_NAMES.items() if _sysctl(f"hw.optional.{mac}") == "1")


def _sysctl(name: str) -> str:
    """Returns the value of a macOS setting; empty elsewhere."""
    return _output_of("/usr/sbin/sysctl", "-n", name) if sys.platform == "darwin" else ""


def _output_of(program: str, *arguments: str) -> str:
    """Returns what a program prints; empty where it does not exist."""
    if not Path(program).is_file():
        return ""
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False).stdout.strip()


def _sibling_rank(core: int) -> int:
    """Returns 0 for the first logical core of a physical one, 1 for its sibling."""
    siblings = _numbers(_read(str(_SYSTEM / f"cpu{core}" / "topology" / "thread_siblings_list")))
    return siblings.index(core) if core in siblings else 0


def _capacity(core: int) -> int:
    """Returns the highest frequency of a core in kHz; 0 where the system does not tell."""
    text = _read(str(_SYSTEM / f"cpu{core}" / "cpufreq" / "cpuinfo_max_freq")).strip()
    return int(text) if text.isdigit() else 0


def _numbers(text: str) -> list[int]:
    """Returns the numbers of a kernel list such as `0,4-6`."""
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
