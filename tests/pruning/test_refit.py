"""Refitting against numpy's least squares in float64, where all can be made good, and on each architecture."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgekit.contract import StageContext, StageInputs
from edgekit.errors import UnsupportedError
from edgekit.models.layer_run import Batch
from edgekit.models.source import load_model
from edgekit.models.structure import find_layers, find_linears
from edgekit.pruning.layers import cut_layers
from edgekit.pruning.refit import LayerFit, refit_layers
from edgekit.pruning.stage import PruneConfig, PruneReport, prune
from tests.pico import pico_data_artifact, pico_loaded, pico_model_artifact
from tests.pico_decoders import DECODERS, pico_decoder


def random_batches(vocabulary: int, seed: int = 0, count: int = 3) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        ids = torch.randint(5, vocabulary, (8, 24), generator=generator)
        lengths = torch.randint(8, 25, (8, 1), generator=generator)
        batches.append((ids, (torch.arange(24) < lengths).long()))
    return batches


def hidden_states(model, batches):
    """The states after the last layer, of real tokens."""
    found = []
    handle = (
        find_layers(model)
        .layers[-1]
        .register_forward_hook(
            lambda module, args, output: found.append(output[0] if isinstance(output, tuple) else output)
        )
    )
    with torch.no_grad():
        for ids, mask in batches:
            model.base_model(input_ids=ids, attention_mask=mask)
    handle.remove()
    return torch.cat([states[mask.bool()] for states, (_, mask) in zip(found, batches, strict=True)])


def last_linear(model, layer):
    return next(each.module for each in find_linears(model) if each.layer == layer and each.role == "feed_forward_down")


def silence(layer: nn.Module) -> None:
    """Makes a decoder's layer return its input."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.zero_()


def test_what_one_linear_can_make_good_is_made_good() -> None:
    model = pico_decoder("llama", layers=2).model.eval()
    silence(find_layers(model).layers[1])
    student = cut_layers(model, [0])
    weight = last_linear(student, 0).weight
    with torch.no_grad():
        weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    (fit,) = refit_layers(model, student, [0], random_batches(60, count=20), ridge=1e-9)
    assert fit.before > 1e-3
    assert fit.after < 1e-8
    torch.testing.assert_close(weight, last_linear(model, 0).weight, atol=1e-3, rtol=1e-3)


def test_the_change_is_the_weighted_ridge_regression_of_numpy() -> None:
    model = pico_decoder("llama", layers=2).model.eval()
    student = cut_layers(model, [0])
    batches = random_batches(60)
    read: list[torch.Tensor] = []
    linear = last_linear(student, 0)
    handle = linear.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    outputs = hidden_states(student, batches).double().numpy()
    handle.remove()
    inputs = torch.cat([each[mask.bool()] for each, (_, mask) in zip(read, batches, strict=True)]).double().numpy()
    targets = hidden_states(model, batches).double().numpy()
    root = 1 / np.sqrt((targets**2).mean(axis=1, keepdims=True))
    ridge = 0.05
    strength = np.sqrt(ridge * ((inputs * root) ** 2).sum(axis=0).mean())
    stacked = np.concatenate([inputs * root, strength * np.eye(inputs.shape[1])])
    wanted = np.concatenate([(targets - outputs) * root, np.zeros((inputs.shape[1], targets.shape[1]))])
    expected = np.linalg.lstsq(stacked, wanted, rcond=None)[0].T

    before = linear.weight.detach().double().numpy().copy()
    (fit,) = refit_layers(model, student, [0], batches, ridge=ridge)
    np.testing.assert_allclose(linear.weight.detach().double().numpy() - before, expected, atol=2e-6)
    found = hidden_states(student, batches).double().numpy()
    error = (((targets - found) ** 2).mean(axis=1) * root[:, 0] ** 2).mean()
    assert fit.after == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("architecture", DECODERS)
def test_a_decoder_comes_closer_to_the_larger_one_or_stays_as_it_was(architecture: str) -> None:
    model = pico_decoder(architecture, layers=4).model.eval()
    kept = [0, 3]
    student = cut_layers(model, kept)
    old = copy.deepcopy(student.state_dict())
    batches = random_batches(60)
    fits = list(refit_layers(model, student, kept, batches, ridge=0.01))
    assert len(fits) == 2
    assert all(fit.after <= fit.before for fit in fits)
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, old[name])}
    downs = {each.name for each in find_linears(student) if each.role == "feed_forward_down"}
    assert {name.rsplit(".", 1)[0] for name in changed} <= downs
    assert changed or all(fit == LayerFit(fit.before, fit.before) for fit in fits)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert", "distilbert"])
def test_an_encoder_comes_closer_also_where_a_norm_ends_its_layers(architecture: str) -> None:
    model = pico_loaded(architecture=architecture).model.eval()
    student = cut_layers(model, [0, 3])
    batches = random_batches(100)
    target = hidden_states(model, batches)
    before = (hidden_states(student, batches) - target).square().mean()
    fits = list(refit_layers(model, student, [0, 3], batches, ridge=0.01))
    after = (hidden_states(student, batches) - target).square().mean()
    assert fits[-1].after < fits[-1].before
    assert after < before


def test_a_narrower_feed_forward_block_is_made_up_for(tmp_path: Path) -> None:
    data = pico_data_artifact(tmp_path / "data", rows=120)
    teacher = pico_model_artifact(tmp_path / "teacher")
    config = PruneConfig(intermediate_size=32, vocabulary_size=150, refit=True)
    out = prune(StageInputs(model=teacher, data=data), config, StageContext(tmp_path / "out"))
    report = PruneReport.model_validate_json((out.path / "prune.json").read_text())
    assert report.errors_before_refit is not None
    assert report.errors_after_refit is not None
    assert len(report.errors_after_refit) == 4
    assert report.errors_after_refit[-1] < report.errors_before_refit[-1]
    assert "refit: the last layer's error" in report.summary()
    assert load_model(out).model.config.intermediate_size == 32


def test_a_prune_without_anything_dropped_from_the_layers_has_nothing_to_refit() -> None:
    with pytest.raises(ValueError, match="refit makes up for dropped layers or neurons"):
        PruneConfig(vocabulary_size=100, refit=True)


def test_shared_layers_are_refused_by_name() -> None:
    model = pico_loaded(architecture="albert").model.eval()
    with pytest.raises(UnsupportedError, match="applies one layer 4 times"):
        next(refit_layers(model, cut_layers(model, [0, 1]), [0, 1], random_batches(100), ridge=0.01))


@given(ridge=st.floats(0, 10), seed=st.integers(0, 100))
@settings(max_examples=10, deadline=None)
def test_a_heavier_ridge_never_fits_better_than_none(ridge: float, seed: int) -> None:
    model = pico_decoder("llama", layers=2).model.eval()
    batches = random_batches(60, seed)
    free = next(refit_layers(model, cut_layers(model, [0]), [0], batches, ridge=0.0))
    held = next(refit_layers(model, cut_layers(model, [0]), [0], batches, ridge=ridge))
    assert free.after <= held.after * (1 + 1e-4)
    assert held.after <= held.before
