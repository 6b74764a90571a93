"""The process that starts a browser and leaves nothing of it: `python -m edgekit.runtimes.browser_keeper`.

Its arguments are the browser's program, the page's address and the browser's flags. It opens the page in a fresh
profile and waits. When its standard input ends, because whoever started it closed it or was killed, or when the
browser ends by itself, every process of the browser is killed and the profile is removed; then it writes one JSON
line, {"exit_code": ..., "error_output": the last lines}. It is apart from `browser_worker.py`, so that it outlives that
one. Standard library only.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PREFIX = "edgekit-browser-"
"""How the directories of profiles begin."""

_SET_CHILD_SUBREAPER = 36
_TAIL_BYTES = 1500
_PATIENCE_S = 5.0


def keep(program: str, url: str, flags: list[str]) -> dict[str, int | str]:
    """Runs a browser until it ends or standard input does; returns its exit code and the end of its error output."""
    _adopt_orphans()
    try:
        return _keep_in(Path(tempfile.mkdtemp(prefix=PREFIX)), program, url, flags)
    except OSError as error:  # no room for the profile, or no program
        return {"exit_code": 1, "error_output": str(error)}


def _keep_in(profile: Path, program: str, url: str, flags: list[str]) -> dict[str, int | str]:
    """Does that with a profile, which is removed."""
    try:
        output = profile / "error_output"
        with output.open("wb") as errors:
            browser = subprocess.Popen(
                [program, *flags, f"--user-data-dir={profile / 'profile'}", url],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env=_environment(profile),
                start_new_session=True,
            )
        threading.Thread(target=_kill_at_end_of_input, args=(browser.pid,), daemon=True).start()
        exit_code = browser.wait()
        _kill_the_rest(browser.pid)
        return {"exit_code": exit_code, "error_output": _tail(output)}
    finally:
        _remove(profile)


def _environment(profile: Path) -> dict[str, str]:
    """Returns the environment of the browser: what it writes beside its profile goes into the same directory."""
    home, temporary = profile / "home", profile / "tmp"
    home.mkdir()
    temporary.mkdir()
    return {**os.environ, "HOME": str(home), "TMPDIR": str(temporary), "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": ""}


def _adopt_orphans() -> None:
    """Makes what the browser's processes leave children of this one, so that all of them can be waited for (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _kill_at_end_of_input(group: int) -> None:
    while os.read(0, 4096):
        pass
    _kill_group(group)


def _kill_the_rest(group: int) -> None:
    """Kills what is left of the browser's group, then its helpers that left the group, and waits for all of them."""
    _kill_group(group)
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:  # there is none left
            return
        for pid in _children():
            _kill(pid)
        time.sleep(0.01)


def _children() -> list[int]:
    """Returns the processes whose parent is this one; none where there is no /proc."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            stat = (directory / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if int(stat.rpartition(")")[2].split()[1]) == os.getpid():
            found.append(int(directory.name))
    return found


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # it is gone; macOS says so in the second way
        return


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _tail(file: Path) -> str:
    try:
        return file.read_bytes()[-_TAIL_BYTES:].decode("utf-8", errors="replace").strip()
    except OSError:  # somebody removed the profile
        return ""


def _remove(directory: Path) -> None:
    """Removes a directory, again where something was written into it meanwhile."""
    deadline = time.monotonic() + _PATIENCE_S
    while directory.exists() and time.monotonic() < deadline:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the end of its input is its only end
    told = json.dumps(keep(sys.argv[1], sys.argv[2], sys.argv[3:]))
    try:
        print(told, flush=True)  # noqa: T201 (the protocol)
    except BrokenPipeError:  # nobody listens any more
        os._exit(0)
