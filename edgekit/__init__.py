"""edgekit: from a teacher model to verified files that phones, laptops and browsers run.

    import edgekit

    result = edgekit.build("review-sentiment", out="build")
    student = edgekit.prune("teacher", edgekit.PruneConfig(layers=3), data="data", out="student")
    classifier = edgekit.load("build/bundles/review-sentiment-laptop-x86")

Every stage is a function here, and every stage's config class. Nothing heavy is imported until it is used.
"""

from __future__ import annotations

import importlib
from typing import Any

from edgekit._version import __version__

_NAMES = {
    "Artifact": "edgekit.artifact",
    "EdgekitError": "edgekit.errors",
    "StageInputs": "edgekit.contract",
    "StageContext": "edgekit.contract",
    "TaskConfig": "edgekit.models.tasks",
    "DataSource": "edgekit.data.source",
    "build": "edgekit.api",
    "load": "edgekit.api",
    "load_language_model": "edgekit.api",
    "load_recipe": "edgekit.recipe",
    "load_target": "edgekit.target",
    "run": "edgekit.api",
}
_FUNCTIONS = {"import_model": "import"}
"""Stages whose name is a Python keyword, by the function's name."""

__all__ = ["__version__", *_NAMES]


def __getattr__(name: str) -> Any:
    """Imports a name of the public API when it is first used."""
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name.startswith("_"):
        raise AttributeError(name)
    from edgekit.stages import STAGES

    kind = _FUNCTIONS.get(name, name)
    if kind in STAGES:
        from edgekit.api import stage_function

        return stage_function(kind)
    for entry in STAGES.values():
        if entry.config == name:
            return entry.config_class()
    raise AttributeError(f"module 'edgekit' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Lists the public API."""
    from edgekit.stages import STAGES

    stages = [("import_model" if kind == "import" else kind) for kind in STAGES]
    return sorted({*__all__, *stages, *(entry.config for entry in STAGES.values())})
