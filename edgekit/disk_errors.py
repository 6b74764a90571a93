"""What libraries raise on a full disk, as the system's own error. It knows no file of edgekit's."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def system_errors() -> Iterator[None]:
    """Turns what libraries raise on a full disk in words of their own into the system's error.

    safetensors raises no OSError but names its number; numpy's and Python's short writes name none.

    Raises:
        OSError: in place of theirs.
    """
    try:
        yield
    except Exception as error:
        number = _system_error(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number)) from error


def _system_error(error: Exception) -> int | None:
    """Returns the number of the system's error that `error` tells of in words alone; None where it tells of none."""
    if isinstance(error, OSError):
        is_short = error.errno is None and re.fullmatch(r"\d+ requested and \d+ written", str(error))
        return errno.ENOSPC if is_short else None
    if not type(error).__module__.startswith("safetensors"):
        return None
    found = re.search(r"\(os error (\d+)\)", str(error))
    return None if found is None else int(found[1])
