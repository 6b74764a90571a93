"""The parity gate: an export of the same weights passes, and one with a fault does not."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.artifact import Artifact, publish
from edgekit.contract import StageContext, StageInputs
from edgekit.errors import ArtifactError, DataError, ParityError
from edgekit.exporters.check_stage import CheckConfig, check
from edgekit.exporters.parity import (
    Differences,
    Evidence,
    Thresholds,
    TokenizerCheck,
    compare_vectors,
    conclude,
    make_batches,
    read_parity,
    require_parity,
)
from edgekit.exporters.stage import ExportConfig, export
from edgekit.quantization.stage import QuantizeConfig, quantize
from edgekit.results import Parity, TokenizerVector
from tests.pico import pico_data_artifact, pico_model_artifact

STRICT = Thresholds(max_abs_diff=1e-3, mean_abs_diff=1e-4, label_agreement=0.98, share_above_own=0.4)
FEW = CheckConfig(rows=24, batch_sizes=[1, 4])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("parity")


@pytest.fixture(scope="module")
def data(place):
    return pico_data_artifact(place / "data", rows=300)


@pytest.fixture(scope="module")
def model(place):
    return pico_model_artifact(place, layers=2)


@pytest.fixture(scope="module")
def exported(place, model):
    return export(StageInputs(model=model), ExportConfig(), StageContext(place / "exported"))


@pytest.fixture(scope="module")
def quantized(place, model):
    return quantize(StageInputs(model=model), QuantizeConfig(), StageContext(place / "quantized"))


@pytest.fixture(scope="module")
def exported_int8(place, quantized):
    return export(StageInputs(model=quantized), ExportConfig(), StageContext(place / "exported-int8"))


def run_check(out, export, reference, data, config=FEW, seed=0) -> Parity:
    inputs = StageInputs(model=export, reference=reference, data=data)
    return read_parity(check(inputs, config, StageContext(out, seed=seed)))


def altered(artifact: Artifact, out, change) -> Artifact:
    """Publishes a copy of `artifact` after `change(directory)`."""
    with publish(out, kind=artifact.kind, lineage=artifact.lineage) as directory:
        for name in artifact.files:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.path / name, directory / name)
        change(directory)
    return Artifact.open(out)


def alter_weights(directory, factor: float) -> None:
    """Multiplies the largest float weight of the graph."""
    import onnx
    from onnx import numpy_helper

    file = directory / "onnx" / "model.onnx"
    loaded = onnx.load(file)
    floats = [tensor for tensor in loaded.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    largest = max(floats, key=lambda tensor: np.prod(tensor.dims))
    largest.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(largest) * np.float32(factor), largest.name))
    onnx.save(loaded, file)


def test_a_float_export_passes_strictly(tmp_path, exported, model, data):
    parity = run_check(tmp_path / "p", exported, model, data)
    assert parity.passed
    assert parity.failures == []
    assert parity.max_abs_diff < 1e-4
    assert parity.own_max_abs_diff is None
    assert parity.label_agreement == 1.0
    assert parity.tokenizer_mismatches == 0
    assert parity.tokenizer_texts > parity.rows == 24
    assert parity.runtime.startswith("onnxruntime 1.")
    assert parity.model_digest == exported.digest
    require_parity(parity)


def test_an_int8_export_is_held_to_what_torch_itself_does(tmp_path, exported_int8, quantized, data):
    parity = run_check(tmp_path / "p", exported_int8, quantized, data)
    assert parity.passed, parity.failures
    assert parity.own_max_abs_diff is not None
    assert parity.share_above_own < 0.4


def test_other_weights_fail_and_say_so(tmp_path, exported, model, data):
    wrong = altered(exported, tmp_path / "wrong", lambda directory: alter_weights(directory, 1.5))
    parity = run_check(tmp_path / "p", wrong, model, data)
    assert not parity.passed
    assert any(failure.startswith("max_abs_diff") and "is above 0.001" in failure for failure in parity.failures)
    with pytest.raises(ParityError, match=r"differs from the model it was made from(.|\n)*- max_abs_diff"):
        require_parity(parity)
    assert ParityError.exit_code == 3


def test_weights_that_are_not_finite_fail_and_the_result_is_readable(tmp_path, exported, model, data):
    wrong = altered(exported, tmp_path / "wrong", lambda directory: alter_weights(directory, float("nan")))
    parity = run_check(tmp_path / "p", wrong, model, data)
    assert not parity.passed
    assert "not finite" in parity.failures[0]


def test_another_tokenizer_fails(tmp_path, exported, model, data):
    def lowercase_off(directory):
        file = directory / "tokenizer.json"
        content = json.loads(file.read_text())
        content["normalizer"] = None
        file.write_text(json.dumps(content))

    wrong = altered(exported, tmp_path / "wrong", lowercase_off)
    parity = run_check(tmp_path / "p", wrong, model, data)
    assert parity.tokenizer_mismatches > 0
    assert any("tokenized otherwise" in failure for failure in parity.failures)


def test_thresholds_in_the_recipe_go_before_the_defaults(tmp_path, exported_int8, quantized, data):
    config = FEW.model_copy(update={"max_abs_diff": 1e-30})
    parity = run_check(tmp_path / "p", exported_int8, quantized, data, config)
    assert not parity.passed
    assert len(parity.failures) == 1
    assert "is above 1e-30" in parity.failures[0]


def test_the_result_is_the_same_for_the_same_seed(tmp_path, exported_int8, quantized, data):
    first, second = (run_check(tmp_path / name, exported_int8, quantized, data) for name in ("a", "b"))
    assert first == second


def test_what_is_no_parity_is_refused(exported, data):
    with pytest.raises(ArtifactError, match="found an artifact of kind 'onnx', expected 'parity'"):
        read_parity(exported)


def test_an_unknown_split_is_refused(tmp_path, exported, model, data):
    with pytest.raises(DataError, match="Did you mean 'validation'"):
        run_check(tmp_path / "p", exported, model, data, FEW.model_copy(update={"split": "validaton"}))
    assert not (tmp_path / "p").exists()


@given(
    st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=20), min_size=1, max_size=30),
    st.lists(st.integers(1, 7), min_size=1, max_size=3),
    st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_batches_hold_every_text_once_for_each_size(ids, sizes, seed):
    batches = make_batches(ids, sizes, pad_id=0, max_length=20, seed=seed)
    found = [
        row[mask == 1].tolist() for input_ids, masks in batches for row, mask in zip(input_ids, masks, strict=True)
    ]
    assert sorted(found) == sorted(ids * len(sizes))
    assert all(input_ids.shape == mask.shape and input_ids.shape[1] <= 20 for input_ids, mask in batches)


def test_single_texts_come_with_padding_and_without():
    batches = make_batches([[5, 6]] * 6, [1], pad_id=0, max_length=20, seed=0)
    assert sorted({input_ids.shape[1] for input_ids, _ in batches}) == [2, 9]


def differences(*rows: tuple[list[float], list[float]]) -> Differences:
    found = Differences()
    for expected, exported in rows:
        found.add(np.array([expected], dtype=np.float32), np.array([exported], dtype=np.float32))
    return found


def judged(found: Differences, own: Differences | None = None, tokens=TokenizerCheck(10, []), limits=STRICT) -> Parity:  # noqa: B008
    return conclude(Evidence(found, own, tokens, texts=3, runtime="onnxruntime 1", model_digest="d"), limits)


def test_differences_by_hand():
    found = differences(([1, 0], [1.5, 0]), ([0, 1], [0, 1]), ([0.5, 0.75], [1, 0.75]))
    assert found.largest == 0.5
    assert found.mean == pytest.approx(1 / 6)
    assert found.median == 0.5
    assert found.agreement == pytest.approx(2 / 3)
    parity = judged(found)
    assert [failure.split()[0] for failure in parity.failures] == [
        "max_abs_diff",
        "mean_abs_diff",
        "label_agreement",
    ]
    assert parity.median_abs_diff == 0.5
    assert "1 of 3 rows get another label" in parity.failures[2]


def test_a_limit_itself_is_good_enough():
    found = differences(([1, 0], [1.5, 0]))
    limits = Thresholds(max_abs_diff=0.5, mean_abs_diff=0.25, label_agreement=1.0, share_above_own=0.4)
    assert judged(found, limits=limits).passed


def test_limits_relax_to_the_models_own_differences_and_no_further():
    own = differences(([1, 0], [1.1, 0]))
    relaxed = STRICT.relaxed(own, 2.0)
    assert relaxed.max_abs_diff == pytest.approx(0.2)
    assert relaxed.mean_abs_diff == pytest.approx(0.1)
    assert relaxed.label_agreement == STRICT.label_agreement
    assert STRICT.relaxed(differences(([1, 0], [1, 0])), 2.0) == STRICT


def test_a_fault_shows_in_most_rows_where_chance_shows_in_few():
    """Small differences, far below what the largest ones are allowed to be."""
    own = differences(*[([1, 0], [1 + (0.5 if row == 0 else 0), 0]) for row in range(10)])
    chance = differences(*[([1, 0], [1 + (0.5 if row == 1 else 0), 0]) for row in range(10)])
    fault = differences(*[([1, 0], [1.01, 0]) for row in range(10)])
    limits = Thresholds(max_abs_diff=1, mean_abs_diff=1, label_agreement=0.9, share_above_own=0.4)
    assert judged(chance, own, limits=limits).share_above_own == pytest.approx(0.1)
    assert judged(chance, own, limits=limits).passed
    parity = judged(fault, own, limits=limits)
    assert parity.share_above_own == pytest.approx(0.9)
    assert [failure.split()[0] for failure in parity.failures] == ["share_above_own"]
    assert judged(fault, None, limits=limits).passed


def test_a_scale_that_is_off_by_five_percent_fails_an_int8_export(tmp_path, exported_int8, quantized, data):
    """One layer's scales: too little for the largest difference, which one step of rounding reaches as well."""
    wrong = altered(exported_int8, tmp_path / "wrong", lambda directory: alter_weights(directory, 1.05))
    parity = run_check(tmp_path / "p", wrong, quantized, data)
    assert not parity.passed
    assert any(failure.startswith("share_above_own") for failure in parity.failures)


def test_vectors_that_differ_are_named():
    expected = [TokenizerVector(text="a", input_ids=[1]), TokenizerVector(text="b" * 100, input_ids=[2])]
    found = [expected[0], TokenizerVector(text="b" * 100, input_ids=[3])]
    tokens = compare_vectors(expected, found)
    assert tokens == TokenizerCheck(2, ["b" * 100])
    parity = judged(differences(([1, 0], [1, 0])), tokens=tokens)
    assert parity.failures == [
        f"1 of 2 texts are tokenized otherwise by tokenizer.json than by transformers, first '{'b' * 56}..."[:-3]
        + "..."
        "."
    ]
