"""The stages `evaluate` and `bench`: artifacts in, artifacts out."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError

from edgekit.artifact import Artifact, Lineage, publish
from edgekit.benchmarking.predictions import LOGITS_FILE
from edgekit.benchmarking.result_files import read_comparison, read_measurement, read_quality
from edgekit.benchmarking.stage import BenchConfig, EvaluateConfig, bench, evaluate
from edgekit.contract import StageContext, StageInputs
from edgekit.data.prepared import PreparedData
from edgekit.errors import ArtifactError, DataError, ModelError, UsageError
from edgekit.models.source import load_model
from tests.pico import pico_data_artifact, pico_model_artifact, pico_tokenizer
from tests.reporting.language_examples import generation, language_quality
from tests.runtimes.tiny import expected_logits, tiny_onnx_artifact

QUICK = {"min_samples": 5, "min_seconds": 0.05, "length": 8, "pairs": 5}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pico_data_artifact(tmp_path_factory.mktemp("data"), rows=120)


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    return tiny_onnx_artifact(tmp_path_factory.mktemp("onnx") / "onnx")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return pico_model_artifact(tmp_path_factory.mktemp("model"), layers=1)


def run_evaluate(out, config=None, **inputs) -> Artifact:
    return evaluate(StageInputs(**inputs), config or EvaluateConfig(), StageContext(out))


def test_configs_import_without_anything_heavy():
    code = (
        "import sys, edgekit.benchmarking.stage; "
        "print(sorted({'numpy', 'torch', 'onnxruntime', 'transformers', 'pyarrow'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_an_export_is_evaluated_with_its_own_tokenizer_and_runtime(onnx, data, tmp_path):
    told = []
    artifact = evaluate(
        StageInputs(model=onnx, data=data), EvaluateConfig(), StageContext(tmp_path / "q", events=told.append)
    )
    rows = PreparedData.open(data).split("test")
    logits = np.load(artifact.path / LOGITS_FILE)
    tokenizer = pico_tokenizer("bert")
    for text, found in zip(rows.texts, logits, strict=True):
        ids = np.array([tokenizer(text, truncation=True, max_length=32)["input_ids"]])
        np.testing.assert_allclose(found, expected_logits(ids, np.ones_like(ids), len(tokenizer))[0], atol=1e-4)
    quality = read_quality(artifact)
    assert quality.rows == len(rows)
    assert quality.model_digest == onnx.digest
    assert quality.accuracy == pytest.approx(np.mean(logits.argmax(axis=1) == rows.labels))
    assert told[-1].completed == told[-1].total == len(rows)


def test_a_torch_model_is_evaluated_row_by_row_the_same_whatever_the_batch(model, data, tmp_path):
    import torch

    single = run_evaluate(tmp_path / "1", EvaluateConfig(batch_size=1), model=model, data=data)
    many = run_evaluate(tmp_path / "64", model=model, data=data)
    logits = np.load(many.path / LOGITS_FILE)
    np.testing.assert_allclose(np.load(single.path / LOGITS_FILE), logits, atol=1e-5)
    loaded = load_model(model)
    text = PreparedData.open(data).split("test").texts[3]
    with torch.no_grad():
        expected = loaded.model(**loaded.tokenizer(text, return_tensors="pt")).logits[0].numpy()
    np.testing.assert_allclose(logits[3], expected, atol=1e-5)


def test_a_teacher_may_be_a_model_or_its_evaluation(model, onnx, data, tmp_path):
    judged = run_evaluate(tmp_path / "teacher", model=model, data=data)
    by_model = read_quality(run_evaluate(tmp_path / "a", model=onnx, data=data, teacher=model))
    by_quality = read_quality(run_evaluate(tmp_path / "b", model=onnx, data=data, teacher=judged))
    assert by_model == by_quality
    assert by_model.accuracy_change == pytest.approx(by_model.accuracy - read_quality(judged).accuracy)
    assert 0 <= by_model.teacher_agreement <= 1


def test_a_teacher_evaluated_on_other_rows_is_refused(model, onnx, data, tmp_path):
    judged = run_evaluate(tmp_path / "teacher", EvaluateConfig(max_rows=5), model=model, data=data)
    with pytest.raises(UsageError, match=r"max_rows 5; expected .* max_rows None. Evaluate it on the same rows"):
        run_evaluate(tmp_path / "q", model=onnx, data=data, teacher=judged)
    assert not (tmp_path / "q").exists()


def test_columns_follow_the_datas_order_of_labels(data, onnx, tmp_path):
    swapped = tiny_onnx_artifact(tmp_path / "swapped", labels=("positive", "negative"))
    first = np.load(run_evaluate(tmp_path / "a", model=onnx, data=data).path / LOGITS_FILE)
    second = np.load(run_evaluate(tmp_path / "b", model=swapped, data=data).path / LOGITS_FILE)
    np.testing.assert_array_equal(first, second[:, ::-1])


def test_other_labels_are_refused(data, tmp_path):
    other = tiny_onnx_artifact(tmp_path / "other", labels=("bad", "good"))
    with pytest.raises(ModelError, match="its labels are bad, good, the data's are negative, positive"):
        run_evaluate(tmp_path / "q", model=other, data=data)


def test_a_split_must_exist_and_have_labels(onnx, data, tmp_path):
    with pytest.raises(DataError, match="Did you mean 'test'"):
        run_evaluate(tmp_path / "q", EvaluateConfig(splits=["tset"]), model=onnx, data=data)


def test_several_splits_are_judged_together_and_apart(onnx, data, tmp_path):
    both = run_evaluate(tmp_path / "both", EvaluateConfig(splits=["test", "validation"]), model=onnx, data=data)
    apart = [
        read_quality(run_evaluate(tmp_path / name, EvaluateConfig(splits=[name]), model=onnx, data=data))
        for name in ("test", "validation")
    ]
    found = read_quality(both)
    assert found.rows == sum(part.rows for part in apart)
    assert list(found.parts.values()) == [part.model_copy(update={"model_digest": ""}) for part in apart]
    assert found.model_digest == onnx.digest


def test_max_rows_takes_the_first(onnx, data, tmp_path):
    few = run_evaluate(tmp_path / "few", EvaluateConfig(max_rows=4), model=onnx, data=data)
    every = run_evaluate(tmp_path / "all", model=onnx, data=data)
    np.testing.assert_array_equal(np.load(few.path / LOGITS_FILE), np.load(every.path / LOGITS_FILE)[:4])


def test_bench_measures_an_export(onnx, tmp_path):
    artifact = bench(StageInputs(model=onnx), BenchConfig(**QUICK), StageContext(tmp_path / "m"))
    measured = read_measurement(artifact)
    assert artifact.kind == "measurement"
    assert (measured.runtime, measured.length) == ("onnxruntime", 8)
    assert len(measured.samples_ms) >= 5
    assert read_comparison(artifact) is None


def test_bench_compares_with_a_reference_of_another_kind(onnx, model, tmp_path):
    artifact = bench(StageInputs(model=onnx, reference=model), BenchConfig(**QUICK), StageContext(tmp_path / "m"))
    comparison = read_comparison(artifact)
    assert comparison.first == read_measurement(artifact)
    assert (comparison.first.runtime, comparison.second.runtime) == ("onnxruntime", "torch")
    assert comparison.ratio_p50 > 0


def test_bench_on_real_texts(onnx, data, tmp_path):
    config = BenchConfig(inputs="texts", **QUICK)
    assert read_measurement(bench(StageInputs(model=onnx, data=data), config, StageContext(tmp_path / "m"))).p50_ms > 0
    with pytest.raises(UsageError, match="needs a data artifact"):
        bench(StageInputs(model=onnx), config, StageContext(tmp_path / "n"))


def test_a_runtime_that_does_not_open_the_model_is_refused_before_anything_starts(onnx, tmp_path):
    with pytest.raises(UsageError, match="the runtime 'torch' opens model artifacts"):
        bench(StageInputs(model=onnx), BenchConfig(runtime="torch", **QUICK), StageContext(tmp_path / "m"))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "values", [{"threads": 0}, {"length": 0}, {"min_seconds": 0}, {"inputs": "noise"}, {"thread": 1}]
)
def test_impossible_values_are_refused(values):
    with pytest.raises(ValidationError):
        BenchConfig(**values)


def test_a_result_of_another_kind_is_refused(onnx):
    with pytest.raises(ArtifactError, match="expected 'quality'"):
        read_quality(onnx)
    with pytest.raises(ArtifactError, match="expected 'measurement'"):
        read_comparison(onnx)


def test_results_of_language_models_read_back_as_what_they_are(tmp_path):
    found = {"quality": language_quality(38.0, ratio=1.4), "measurement": generation()}
    for kind, result in found.items():
        with publish(tmp_path / kind, kind=kind, lineage=Lineage(stage="made by hand")) as staging:
            (staging / f"{kind}.json").write_text(result.model_dump_json())
    assert read_quality(Artifact.open(tmp_path / "quality")) == found["quality"]
    assert read_measurement(Artifact.open(tmp_path / "measurement")) == found["measurement"]
