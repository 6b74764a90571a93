"""Pico models and data, made once; nothing changes an artifact."""

import pytest

from tests.pico import pico_data_artifact, pico_model_artifact


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("distillation")


@pytest.fixture(scope="session")
def teacher(place):
    return pico_model_artifact(place, layers=4, seed=0)


@pytest.fixture(scope="session")
def student(place):
    return pico_model_artifact(place, layers=2, seed=1)


@pytest.fixture(scope="session")
def data(place):
    return pico_data_artifact(place, rows=160, unlabelled=40)
