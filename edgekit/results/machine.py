"""The machine that a figure was taken on."""

from __future__ import annotations

from edgekit.results.base import Result


class Machine(Result):
    """The fingerprint of the machine that a measurement was taken on."""

    cpu: str
    """Model name of the processor."""
    architecture: str
    """Instruction set family, for example `x86_64` or `aarch64`."""
    cores: int
    """Logical cores that the process may use."""
    memory_bytes: int
    """Physical memory."""
    cpu_features: list[str] = []
    """Vector extensions that matter for kernels (avx2, avx512f, avx512_vnni, asimddp, i8mm ...)."""
    operating_system: str
    """Name and release."""
    python: str
    """Python version."""
    device: str = ""
    """What the firmware calls the device, for example `Raspberry Pi 5 Model B`; empty when it does not say."""
