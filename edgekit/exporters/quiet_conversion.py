"""Keeps what converters and their C++ parts print from the terminal."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from edgekit.runtimes.silence import silent_stderr


@contextmanager
def quiet_conversion() -> Iterator[None]:
    """Silences prints, warnings and log records inside the `with` block, and leaves Python's logging as it was."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with silent_stderr(), warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
