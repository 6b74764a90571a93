"""Names the nearest valid spelling of a mistyped word."""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` with the nearest of `valid`, or the empty string when none is near."""
    import difflib

    nearest = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.6)
    return f" Did you mean '{nearest[0]}'?" if nearest else ""
