"""Tells a full or locked disk from every other failure, whichever library met it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from edgekit.errors import EdgekitError, EnvironmentLacksError

_NUMBERS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}
_SPELLED = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
_SHORT_WRITE = re.compile(r"^\d+ requested and \d+ written$")


def disk_problem(error: Exception) -> str | None:
    """Returns what keeps a file from being written, where that is why `error` was raised; else None.

    Not every library says it by `errno`: those written in Rust (safetensors, tokenizers) end their text in
    `(os error 28)`, shutil lists texts with `[Errno 28]`, and numpy counts what it wrote.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        if isinstance(error, OSError) and _SHORT_WRITE.match(str(error)):
            return "only a part of it fits"
        found = _SPELLED.search(str(error))
        number = int(found[1] or found[2]) if found else None
    return os.strerror(number) if number is not None and number in _NUMBERS else None


@contextmanager
def writing(what: str, then: str) -> Iterator[None]:
    """Makes one error of whatever keeps `what` from being written, and ends it with `then`, what to do.

    Raises:
        EnvironmentLacksError: the disk is full or not writable.
    """
    try:
        yield
    except EdgekitError:
        raise
    except Exception as error:  # safetensors and tokenizers tell of a full disk by errors that are no OSError
        problem = disk_problem(error)
        if problem is None and not isinstance(error, OSError):
            raise  # no matter of the disk
        raise EnvironmentLacksError(f"{what} could not be written ({problem or error}). {then}") from error
