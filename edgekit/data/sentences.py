"""Cuts long texts into sentences: more and shorter rows to distill on, where no label has to stay true.

The rules are for text with capitals or wide (CJK) full stops. A wrong cut costs little: the teacher reads what the
student reads.
"""

from __future__ import annotations

import re
from itertools import pairwise

SHORTEST = 20
"""UTF-8 bytes below which a piece stays with the sentence beside it: `Mr.` or `Wow!` alone teach nothing."""

_BREAK = re.compile(r"\s*(?:<\s*(?:br|/?p)\s*/?\s*>|[\r\n])+\s*", re.IGNORECASE)
_BOUNDARY = re.compile(
    r"""(?<=[.!?…])["'”’)\]]*\s+(?=["'“‘(\[]*[^\W_a-z])"""  # a full stop, then a capital or a digit
    r"|(?<=[。！？])\s*"
)


def sentences(text: str) -> list[str]:
    """Returns the sentences of `text` in order, without the white space and line-break tags between them."""
    return [sentence for paragraph in _BREAK.split(text) for sentence in _of_paragraph(paragraph.strip())]


def _of_paragraph(paragraph: str) -> list[str]:
    starts = [0, *(match.end() for match in _BOUNDARY.finditer(paragraph)), len(paragraph)]
    found: list[str] = []  # each with the white space that follows it
    for start, end in pairwise(starts):
        piece = paragraph[start:end]
        if found and min(_size(piece), _size(found[-1])) < SHORTEST:
            found[-1] += piece
        else:
            found.append(piece)
    return [sentence.strip() for sentence in found if sentence.strip()]


def _size(piece: str) -> int:
    return len(piece.strip().encode())
