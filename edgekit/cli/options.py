"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

AsJson = Annotated[
    bool,
    Parameter(
        name="--json",
        negative="",
        help="Print one JSON object a line, for each event, the result and an error, instead of a display.",
    ),
]
Offline = Annotated[bool, Parameter(negative="", help="Forbid any network access.")]
Seed = Annotated[int, Parameter(help="The only source of randomness.")]
