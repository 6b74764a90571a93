"""Keeps what C++ libraries print at their start from the terminal: they know no other way to be quiet."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

_LOCK = threading.RLock()


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Sends what is written to the process's standard error inside the `with` block nowhere; one thread at a time."""
    with _LOCK:
        try:
            kept = os.dup(2)
        except OSError:  # there is none
            yield
            return
        if sys.stderr is not None:
            sys.stderr.flush()
        yield from _redirected(kept)


@contextmanager
def silent_library() -> Iterator[None]:
    """Keeps what a library and its C++ parts print, log and warn from the terminal, and leaves logging as it was."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with silent_stderr(), warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _redirected(kept: int) -> Iterator[None]:
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
