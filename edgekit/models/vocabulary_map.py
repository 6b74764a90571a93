"""Finds a teacher's id of each of a student's tokens, so that both can be asked about the same text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgekit.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBES = ("The quick brown fox jumps over 13 lazy dogs.", "na\u00efve caf\u00e9 \U0001f600 \u6620\u753b", " a\n\tb  c")
_SHOWN = 3


def teacher_token_ids(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> torch.Tensor:
    """Returns the teacher's id of each of the student's tokens, (V_student,), int64.

    The teacher reads the student's tokens, so its vocabulary may be larger, padded or in another order.

    Raises:
        ModelError: a token of the student is not one of the teacher's, or their tokens stand for other text.
    """
    own, others = student.get_vocab(), teacher.get_vocab()
    lacking = sorted(set(own) - set(others), key=lambda token: own[token])
    if lacking:
        shown = ", ".join(repr(token) for token in lacking[:_SHOWN])
        raise ModelError(
            f"found {len(lacking)} of the student's {len(own)} tokens that the teacher does not have, first "
            f"{shown}; expected all of them. A teacher can only score the tokens that it knows: cut the student from "
            "this teacher with `prune`, or choose a teacher with the student's tokenizer. Distillation across "
            "tokenizers is not supported."
        )
    size = max(own.values()) + 1
    ids = torch.full((size,), -1, dtype=torch.int64)
    for token, index in own.items():
        ids[index] = others[token]
    if bool((ids < 0).any()):
        raise ModelError(
            f"the student's tokenizer has {len(own)} tokens with ids up to {size - 1}, expected an id for "
            "each. Repair its tokenizer."
        )
    for probe in _PROBES:
        mapped = [int(ids[index]) for index in student(probe, add_special_tokens=False)["input_ids"]]
        expected = student.decode(student(probe, add_special_tokens=False)["input_ids"])
        if teacher.decode(mapped) != expected:
            raise ModelError(
                f"the student's tokens of {probe!r} read {teacher.decode(mapped)!r} to the teacher, expected "
                f"{expected!r}: tokens of one name stand for other text. Choose a teacher with the student's tokenizer."
            )
    return ids
