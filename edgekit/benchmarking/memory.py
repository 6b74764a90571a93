"""Reads this process's memory from the kernel. Standard library only: the measuring process imports it."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Memory:
    """Resident memory of one process; 0 means that this system does not tell."""

    peak_bytes: int
    """VmHWM: the largest resident set since the process began."""
    resident_bytes: int
    """VmRSS: the resident set now."""
    anonymous_bytes: int
    """RssAnon: heap and stacks, which no file backs."""
    file_bytes: int
    """RssFile: pages of mapped files, such as libraries and mapped weights; the kernel may drop and reread them."""
    shared_bytes: int = 0
    """RssShmem: shared memory."""
    page_bytes: int | None = None
    """In a browser: what it counts as the page's own, JavaScript and WebAssembly; None where it does not tell."""

    def as_dict(self) -> dict[str, int | None]:
        """Returns the fields by name, for a JSON line."""
        return asdict(self)


def read_memory() -> Memory:
    """Returns the memory of this process: from `/proc` on Linux, else the peak alone from `getrusage`."""
    if STATUS.is_file():
        return parse_status(STATUS.read_text(encoding="ascii", errors="replace"))
    peak = _peak_from_rusage()
    return Memory(peak_bytes=peak, resident_bytes=peak, anonymous_bytes=0, file_bytes=0)


def read_memory_of(pid: int) -> Memory | None:
    """Returns the memory of another process; None where the system does not tell, or the process is gone."""
    try:
        found = parse_status(Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace"))
    except OSError:
        return None
    return found if found.resident_bytes else None


def limit_memory_of(pid: int, limit_bytes: int) -> None:
    """Lets another process have no more private writable memory than that, from now on (Linux)."""
    import resource

    resource.prlimit(pid, resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


def parse_status(text: str) -> Memory:
    """Returns the memory that a `/proc/PID/status` text tells; its `kB` are 1024 bytes."""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    def size(name: str) -> int:
        words = fields.get(name, "0 kB").split()
        return int(words[0]) * 1024

    return Memory(size("VmHWM"), size("VmRSS"), size("RssAnon"), size("RssFile"), size("RssShmem"))


def _peak_from_rusage() -> int:
    """Returns `ru_maxrss`, which is in bytes on macOS and in KiB elsewhere; 0 on Windows."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
