"""The processors that can be emulated, as Linux on them describes them, and where what they need is kept.

Libraries choose their kernels by these descriptions, not by what the emulator would run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import UsageError
from edgekit.spelling import did_you_mean

EMULATED = "qemu:"
"""What the name of an emulated device begins with."""

_CPUINFO = """\
processor\t: {number}
BogoMIPS\t: 108.00
Features\t: {features}
CPU implementer\t: 0x{implementer:02x}
CPU architecture: 8
CPU variant\t: 0x{variant:x}
CPU part\t: 0x{part:03x}
CPU revision\t: {revision}

"""


@dataclass(frozen=True)
class Processor:
    """A processor; the numbers are those of its identification register, MIDR_EL1."""

    name: str
    """What QEMU calls it, and people do after `qemu:`."""
    title: str
    """What its maker calls it."""
    cores: int
    features: str
    """Extensions, as Linux names them in /proc/cpuinfo."""
    implementer: int
    part: int
    variant: int
    revision: int

    @property
    def device(self) -> str:
        """Returns the name of the device."""
        return f"{EMULATED}{self.name}"

    @property
    def system_files(self) -> dict[str, str]:
        """Returns what libraries read of a processor, by path: without these they read this machine's, and crash."""
        fields = {
            "features": self.features,
            "implementer": self.implementer,
            "part": self.part,
            "variant": self.variant,
            "revision": self.revision,
        }
        cores = f"0-{self.cores - 1}\n"
        lists = {f"sys/devices/system/cpu/{name}": cores for name in ("online", "possible", "present")}
        return {
            "proc/cpuinfo": "".join(_CPUINFO.format(number=number, **fields) for number in range(self.cores)),
            **lists,
        }


# Arm Cortex-A76 Core Technical Reference Manual (100798), MIDR_EL1 of r4p1; four of them are a Raspberry Pi 5's
# BCM2712, whose Linux lists these features. Those of pointer authentication and later are none of its.
_CORTEX_A76 = Processor(
    name="cortex-a76",
    title="Arm Cortex-A76",
    cores=4,
    features="fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    implementer=0x41,
    part=0xD0B,
    variant=4,
    revision=1,
)

PROCESSORS = {processor.name: processor for processor in (_CORTEX_A76,)}


def get_processor(device: str) -> Processor:
    """Returns the processor of the device called `device`, for example `qemu:cortex-a76`.

    Raises:
        UsageError: no such device; names the nearest.
    """
    known = {processor.device: processor for processor in PROCESSORS.values()}
    if device not in known:
        raise UsageError(
            f"device: found '{device}', expected an emulated one.{did_you_mean(device, known)} Known: "
            f"{', '.join(known)}."
        )
    return known[device]


def place_of(processor: Processor) -> Path:
    """Returns the directory that holds what the emulated processor needs, in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "edgekit" / "devices" / processor.name
