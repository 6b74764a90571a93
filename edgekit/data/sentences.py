"""Cuts long texts into sentences: more and shorter rows to distill on, where no label has to stay true.

The rules are for text with capitals or wide (CJK) full stops. A wrong cut costs little: the teacher reads what the
student reads.
"""

from __future__ import annotations

import re

SHORTEST = 20
"""Characters below which a piece stays with the sentence before it: `Mr.` or `Wow!` alone teach nothing."""

_BREAK = re.compile(r"\s*(?:<\s*(?:br|/?p)\s*/?\s*>|[\r\n])+\s*", re.IGNORECASE)
_BOUNDARY = re.compile(
    r"""(?<=[.!?…])["'”’)\]]*\s+(?=["'“‘(\[]*[^\W_a-z])"""  # a full stop, then a capital or a digit
    r"|(?<=[。！？])\s*"
)


def sentences(text: str) -> list[str]:
    """Returns the sentences of `text` in order, without the white space and line-break tags between them."""
    found: list[str] = []
    for paragraph in _BREAK.split(text):
        whole: list[str] = []
        start = 0
        ends = [(match.start(), match.end()) for match in _BOUNDARY.finditer(paragraph)]
        for end, following in [*ends, (len(paragraph), len(paragraph))]:
            closing = paragraph[end:following].rstrip()  # quotes and brackets that close the sentence
            piece = (paragraph[start:end] + closing).strip()
            start = following
            if whole and min(len(piece), len(whole[-1])) < SHORTEST:
                whole[-1] = f"{whole[-1]} {piece}".strip()
            elif piece:
                whole.append(piece)
        found.extend(whole)
    return found
