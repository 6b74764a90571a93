"""What a model's memory is made of, and how little it runs in."""

from __future__ import annotations

from edgekit.results.base import Result


class MemorySplit(Result):
    """The resident set of a process at one moment, by what backs it."""

    anonymous_bytes: int
    """RssAnon: heap and stacks, which no file backs."""
    file_bytes: int
    """RssFile: pages of mapped files, such as libraries and mapped weights; the kernel may drop and reread them."""
    shared_bytes: int
    """RssShmem: shared memory."""


class MemoryTrial(Result):
    """One fresh process under a limit."""

    limit_bytes: int
    """RLIMIT_DATA of the process."""
    runs: bool
    """Whether it opened the model and ran it."""
    outcome: str
    """`runs`, or how it failed."""


class MemoryLimit(Result):
    """The least memory that a model runs in, found by halving."""

    smallest_bytes: int
    """The smallest limit of RLIMIT_DATA under which it ran."""
    resolution_bytes: int
    """The largest limit under which it failed is at most this much smaller."""
    trials: list[MemoryTrial]
    """Every process that was tried, in order."""
