"""Bundles of real exports, for every kind of tokenizer."""

from __future__ import annotations

import pytest

import edgekit
from edgekit.artifact import Artifact
from edgekit.contract import StageContext, StageInputs
from edgekit.packaging.stage import PackageConfig, package
from tests.packaging.examples import facts
from tests.pico import pico_model_artifact


@pytest.fixture(
    scope="session",
    params=[("bert", "float32"), ("bert", "int8"), ("roberta", "int8"), ("xlm-roberta", "float32")],
    ids=" ".join,
)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    architecture, precision = request.param
    directory = tmp_path_factory.mktemp("peers")
    model = pico_model_artifact(directory, architecture=architecture, layers=2)
    if precision == "int8":
        model = edgekit.quantize(model, edgekit.QuantizeConfig(bits=8), out=directory / "int8")
    exported = edgekit.export(model, out=directory / "onnx")
    config = PackageConfig.model_validate({"target": "laptop-x86", "name": "reviews", "facts": facts(exported)})
    return package(StageInputs(model=exported), config, StageContext(directory / "bundle"))
