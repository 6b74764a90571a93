"""What a comparison of two speeds or sizes comes to."""

from __future__ import annotations

from typing import Literal

Verdict = Literal["better", "worse", "no difference", "inconclusive"]
"""`better`: the whole interval lies beyond the margin on the good side; `worse`: on the other one; `no difference`: the
whole interval lies within the margin; `inconclusive`: anything else."""
