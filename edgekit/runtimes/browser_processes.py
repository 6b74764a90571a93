"""Finds the process of Chromium that holds a page, and reads its memory (Linux). Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

_PROC = Path("/proc")
_FIELDS = {
    "peak_bytes": "VmHWM",
    "resident_bytes": "VmRSS",
    "anonymous_bytes": "RssAnon",
    "file_bytes": "RssFile",
    "shared_bytes": "RssShmem",
}
_KIND = "--type=renderer"
_OWN_PAGES = ("--top-chrome-webui", "--extension-process")
"""Processes of this kind that hold pages of the browser itself."""


@dataclass(frozen=True)
class Renderer:
    """The process that holds a page."""

    pid: int
    started: str
    """When it started, as the kernel counts: another process with its number is not this one."""

    NO_MEMORY: ClassVar[dict[str, int]] = dict.fromkeys(_FIELDS, 0)

    def is_alive(self) -> bool:
        """Returns whether it still runs."""
        fields = _stat(self.pid)
        return bool(fields) and fields[0] not in "ZX" and fields[19] == self.started

    def memory(self) -> dict[str, int]:
        """Returns its resident memory, bytes, by the names of `benchmarking.memory.Memory`; zeros when it is gone."""
        lines = (line.partition(":") for line in _text(self.pid, "status").splitlines())
        found = {name: text for name, _, text in lines}
        return {field: 1024 * int(found.get(name, "0").split()[0]) for field, name in _FIELDS.items()}


def find_renderer(ancestor: int) -> Renderer | None:
    """Returns the process below `ancestor` that holds the page; None where the system does not tell.

    The page has just answered, so its process is there; where there are more, it is the one that worked most.
    """
    parents = {int(each.name): _stat(int(each.name)) for each in _PROC.glob("[0-9]*")}

    def is_below(pid: int) -> bool:
        while parents.get(pid):
            pid = int(parents[pid][1])
            if pid == ancestor:
                return True
        return False

    found = []
    for pid, fields in parents.items():
        words = _text(pid, "cmdline").replace("\0", " ").split()  # a zygote's children have spaces
        if _KIND in words and not any(word in words for word in _OWN_PAGES) and is_below(pid):
            found.append((int(fields[11]) + int(fields[12]), Renderer(pid, fields[19])))
    return max(found, key=lambda each: each[0])[1] if found else None


def _stat(pid: int) -> list[str]:
    """Returns what follows the name in /proc/PID/stat, state first; empty when the process is gone."""
    return _text(pid, "stat").rpartition(")")[2].split()  # the name before it may hold spaces


def _text(pid: int, file: str) -> str:
    try:
        return (_PROC / str(pid) / file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
