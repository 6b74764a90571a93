"""Choices of lowerings that no measurement made, for the tests of what follows them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

from edgekit.artifact import Artifact, Lineage, publish
from edgekit.benchmarking.machine import machine_fingerprint
from edgekit.exporters.linear_kernels import possible_lowerings
from edgekit.exporters.lowering_choice import CHOICE_FILE, LinearChoice, LinearShape, LoweringChoice, TriedLowering
from edgekit.exporters.lowering_names import Lowering
from edgekit.models.source import load_model
from edgekit.tuning.stage import AutotuneConfig
from edgekit.tuning.tuner import survey_linears


def made_up_choice(model: Artifact, pick: Callable[[LinearShape], Lowering]) -> LoweringChoice:
    """Returns the choice that `pick` makes for each shape of a linear of `model`."""
    linears = []
    for shape, modules in _survey(model.path, model.digest).items():
        possible = possible_lowerings(shape.scheme, modules[0])
        linears.append(
            LinearChoice(
                shape=shape,
                modules=list(modules),
                copies=len(modules),
                chosen=pick(shape),
                tried=[
                    TriedLowering(lowering=lowering, difference=0.0)
                    for lowering in dict.fromkeys((*possible, pick(shape)))
                ],
            )
        )
    return LoweringChoice(
        runtime="onnxruntime",
        runtime_version="1",
        threads=1,
        batch=1,
        length=8,
        margin=0.03,
        load_average=0.0,
        machine=machine_fingerprint(),
        model_digest=model.digest,
        linears=linears,
    )


@cache
def _survey(path: Path, digest: str) -> dict[LinearShape, tuple[str, ...]]:
    """Returns each shape of a linear to the names of those that have it; to trace a model takes a while."""
    found = survey_linears(load_model(Artifact.open(path)), AutotuneConfig())
    return {shape: tuple(group.name for group in groups) for shape, groups in found.items()}


def publish_choice(choice: LoweringChoice, out: Path, **changes: object) -> Artifact:
    """Publishes a choice as an artifact, with other values for some of its keys."""
    content = {**json.loads(choice.model_dump_json()), **changes}
    with publish(out, kind="lowering", lineage=Lineage(stage="source")) as directory:
        (directory / CHOICE_FILE).write_text(json.dumps(content))
    return Artifact.open(out)
