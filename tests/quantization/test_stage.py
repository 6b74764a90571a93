"""The stage `quantize`: what is refused, what stays float, and that nothing half-written is left."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from edgekit.artifact import Artifact, Lineage, publish
from edgekit.contract import StageContext, StageInputs
from edgekit.errors import ModelError, UsageError
from edgekit.models.codes import Scheme
from edgekit.models.quantized import schemes_of
from edgekit.models.source import load_model, save_model
from edgekit.quantization.scheme import Rules, choose_schemes
from edgekit.quantization.stage import QuantizeConfig, quantize, quantize_modules
from tests.pico import pico_loaded, pico_model_artifact


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return pico_model_artifact(tmp_path_factory.mktemp("model"), layers=2)


def run(model, out, **settings):
    return quantize(StageInputs(model=model), QuantizeConfig(**settings), StageContext(out))


def test_codes_stay_near_the_weights_and_the_output_layer_stays_float(model, tmp_path):
    quantized = run(model, tmp_path / "int8")
    schemes = schemes_of(load_model(quantized).model)
    assert schemes
    assert "classifier" not in schemes
    assert all(scheme.reduce_range for name, scheme in schemes.items() if "embeddings" not in name)
    ids = torch.arange(6, 26)[None]
    mask = torch.ones_like(ids)
    with torch.no_grad():
        before = load_model(model).model(input_ids=ids, attention_mask=mask).logits
        after = load_model(quantized).model(input_ids=ids, attention_mask=mask).logits
    assert 0 < (before - after).abs().max() < 0.05 * before.abs().max() + 0.05


def test_an_override_that_changes_the_kernel_drops_what_only_the_other_needs(model, tmp_path):
    overrides = [{"pattern": "*.query", "group_size": 16}]
    schemes = schemes_of(load_model(run(model, tmp_path / "mixed", overrides=overrides)).model)
    for name, scheme in schemes.items():
        if name.endswith(".query"):
            assert (scheme.group_size, scheme.reduce_range) == (16, False)


def test_codes_are_chosen_once(model, tmp_path):
    quantized = run(model, tmp_path / "once")
    with pytest.raises(UsageError, match="is quantized already"):
        run(quantized, tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


def test_a_weight_that_is_not_finite_is_named_and_nothing_is_left(tmp_path):
    loaded = pico_loaded(layers=1)
    name, module = next((n, m) for n, m in loaded.model.named_modules() if n.endswith("query"))
    with torch.no_grad():
        module.weight[0, 0] = float("nan")
    with publish(tmp_path / "bad", kind="model", lineage=Lineage(stage="source")) as directory:
        save_model(loaded, directory)
    with pytest.raises(ModelError, match=f"module '{name}'"):
        run(Artifact.open(tmp_path / "bad"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 4}, "4 bits without a group size"),
        ({"bits": 5}, "8, 4, 3 or 2"),
        ({"bits": 3}, "3 bits without a group size and dynamic-int8 activations"),
        ({"embeddings": 4}, "embeddings_group_size"),
        ({"head": None, "head_group_size": 32}, "leave it out"),
        ({"bits": 4, "group_size": 32, "reduce_range": True}, "found reduce_range"),
        ({"narrow_scales": True}, "narrow_scales: found no symmetric 4-bit codes in groups"),
        ({"bits": 4, "group_size": 32, "narrow_scales": True, "symmetric": False}, "narrow_scales: found no symmetric"),
        ({"overrides": [{"pattern": "x", "bits": 4}]}, "overrides: 'x': found 4 bits"),
        ({"overrides": [{"pattern": "x", "bits": None}]}, "found bits = none"),
    ],
)
def test_what_no_kernel_computes_is_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        QuantizeConfig(**settings)


def test_progress_is_told_as_modules_are_rounded_not_before(tmp_path):
    model = pico_loaded(layers=1).model
    config = QuantizeConfig()
    schemes = choose_schemes(model, Rules(linears=Scheme(), embeddings=Scheme(activations="float")), labels=2)
    told = []

    def tell(event):
        told.append((event.completed, len(schemes_of(model))))

    quantize_modules(model, schemes, config, StageContext(tmp_path / "out", events=tell))
    assert told == [(done, done) for done in range(len(schemes) + 1)]
