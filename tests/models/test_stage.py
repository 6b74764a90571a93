import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgekit.artifact import Artifact
from edgekit.contract import StageContext, StageInputs
from edgekit.errors import EnvironmentLacksError, ModelError, UntrustedModelError
from edgekit.events import Event
from edgekit.models.source import load_model
from edgekit.models.stage import ImportConfig, import_model, source_digest
from edgekit.models.tasks import TaskConfig, is_head_trained, read_task
from tests.pico import (
    ARCHITECTURES,
    pico_classifier,
    pico_encoder,
    pico_loaded,
    pico_model_artifact,
    pico_tokenizer,
)

TASK = TaskConfig(labels=["negative", "positive"], max_length=32)


def bring(
    source: Path | str, out: Path, task: TaskConfig | None = TASK, *, seed: int = 0
) -> tuple[Artifact, list[str]]:
    events: list[Event] = []
    context = StageContext(out=out, seed=seed, events=events.append, offline=True)
    artifact = import_model(StageInputs(), ImportConfig(source=str(source), task=task), context)
    return artifact, [event.text for event in events]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_classifier(tmp_path_factory.mktemp("source") / "classifier")


def test_a_classifier_keeps_its_weights_and_gets_a_task_and_a_lineage(tmp_path: Path, classifier: Path) -> None:
    artifact, _ = bring(classifier, tmp_path / "out")
    loaded, original = load_model(artifact), pico_loaded()
    weights = loaded.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in original.model.state_dict().items())
    assert read_task(artifact) == TASK
    assert artifact.lineage.stage == "import"
    assert artifact.lineage.config["source"] == str(classifier)
    assert artifact.lineage.config["source_digest"] == source_digest(ImportConfig(source=str(classifier)))
    assert sorted(artifact.files) == [
        "config.json",
        "model.safetensors",
        "task.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_encoder_gets_a_head_from_the_seed_and_keeps_its_weights(tmp_path: Path, architecture: str) -> None:
    source = pico_encoder(tmp_path / "encoder", architecture=architecture)
    state = torch.random.get_rng_state()
    first, said = bring(source, tmp_path / "first")
    torch.rand(3)
    again, _ = bring(source, tmp_path / "again")
    other, _ = bring(source, tmp_path / "other", seed=1)
    assert first.digest == again.digest != other.digest
    assert any(text.startswith("new classification head from seed 0: ") for text in said)
    encoder = pico_loaded(architecture=architecture).model.base_model.state_dict()
    loaded = load_model(first).model.base_model.state_dict()
    kept = [name for name in encoder if not name.startswith("pooler")]
    assert kept
    assert all(torch.equal(loaded[name], encoder[name]) for name in kept)
    torch.random.set_rng_state(state)


def test_a_new_head_is_recorded_as_untrained_also_after_a_second_import(tmp_path: Path, classifier: Path) -> None:
    new, _ = bring(pico_encoder(tmp_path / "encoder"), tmp_path / "new")
    again, _ = bring(new.path, tmp_path / "again")
    whole, _ = bring(classifier, tmp_path / "whole")
    assert [is_head_trained(each.path) for each in (new, again, whole)] == [False, False, True]
    assert [load_model(each).head_trained for each in (new, again, whole)] == [False, False, True]


def test_importing_leaves_the_global_generator_as_it_was(tmp_path: Path) -> None:
    source = pico_encoder(tmp_path / "encoder")
    before = torch.random.get_rng_state()
    bring(source, tmp_path / "out")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_importing_prints_and_warns_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    bring(pico_encoder(tmp_path / "encoder"), tmp_path / "out")
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_generic_label_names_take_the_names_of_the_task_and_it_says_so(tmp_path: Path) -> None:
    source = pico_classifier(tmp_path / "source", labels=("LABEL_0", "LABEL_1"))
    artifact, said = bring(source, tmp_path / "out")
    assert load_model(artifact).model.config.id2label == {0: "negative", 1: "positive"}
    assert any("LABEL_0 = negative, LABEL_1 = positive" in text for text in said)


@pytest.mark.parametrize(
    "labels", [("positive", "negative"), ("NEGATIVE", "POSITIVE"), ("negative", "neutral", "positive")]
)
def test_another_label_map_is_refused_and_both_are_named(tmp_path: Path, labels: tuple[str, ...]) -> None:
    source = pico_classifier(tmp_path / "source", labels=labels)
    with pytest.raises(ModelError) as caught:
        bring(source, tmp_path / "out")
    assert f"found the label map {{0: '{labels[0]}', 1: '{labels[1]}'" in str(caught.value)
    assert "the task has {0: 'negative', 1: 'positive'}" in str(caught.value)
    assert list(tmp_path.iterdir()) == [source]


def test_generic_names_in_another_number_are_refused(tmp_path: Path) -> None:
    source = pico_classifier(tmp_path / "source", labels=("LABEL_0", "LABEL_1", "LABEL_2"))
    with pytest.raises(ModelError, match=r"found the label map \{0: 'LABEL_0', 1: 'LABEL_1', 2: 'LABEL_2'\}"):
        bring(source, tmp_path / "out")


def test_without_a_task_the_model_tells_its_own(tmp_path: Path, classifier: Path) -> None:
    artifact, _ = bring(
        pico_classifier(tmp_path / "source"),
        tmp_path / "out",
        TaskConfig(labels=["negative", "positive"], max_length=48),
    )
    again, _ = bring(artifact.path, tmp_path / "again", None)
    assert read_task(again).max_length == 48
    with pytest.raises(ModelError, match=r"has no classification head \(found BertModel\).*Name them in the task"):
        bring(pico_encoder(tmp_path / "encoder"), tmp_path / "none", None)


def test_the_longest_text_must_fit_the_positions(tmp_path: Path) -> None:
    task = TaskConfig(labels=["negative", "positive"], max_length=65)
    with pytest.raises(ModelError, match=r"fails on a text of max_length = 65 tokens; .* 64 positions"):
        bring(pico_classifier(tmp_path / "bert"), tmp_path / "out", task)
    fits = task.model_copy(update={"max_length": 64})
    for architecture in ("bert", "roberta", "mpnet"):
        bring(
            pico_classifier(tmp_path / architecture, architecture=architecture), tmp_path / f"{architecture}-out", fits
        )
        with pytest.raises(ModelError, match="max_length = 65"):
            bring(tmp_path / architecture, tmp_path / "too-long", task)


def edit_config(source: Path, **changes: object) -> None:
    file = source / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 5}, "its weights lack 'bert.encoder.layer.4"),
        ({"problem_type": "regression"}, "problem_type 'regression', expected one label a text"),
        ({"id2label": {"0": "negative", "2": "positive"}}, "expected a name for each of 0, 1, 2"),
        ({"model_type": "nonsense"}, "could not be loaded as a text-classification model"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    source = pico_classifier(tmp_path / "source")
    edit_config(source, **changes)
    with pytest.raises(ModelError, match=message):
        bring(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_head_that_is_promised_but_absent_is_refused(tmp_path: Path) -> None:
    source = pico_encoder(tmp_path / "source")
    edit_config(source, architectures=["BertForSequenceClassification"], id2label={"0": "negative", "1": "positive"})
    with pytest.raises(ModelError, match="BertForSequenceClassification, but its weights lack"):
        bring(source, tmp_path / "out")


def test_weights_that_are_not_numbers_are_refused_by_name(tmp_path: Path) -> None:
    loaded = pico_loaded()
    loaded.model.classifier.bias.data[0] = float("nan")
    loaded.model.save_pretrained(tmp_path / "source")
    loaded.tokenizer.save_pretrained(tmp_path / "source")
    with pytest.raises(ModelError, match=r"the weight 'classifier\.bias' holds values that are not finite"):
        bring(tmp_path / "source", tmp_path / "out")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    source = pico_classifier(tmp_path / "source")
    pico_tokenizer("roberta").save_pretrained(source)
    with pytest.raises(ModelError, match="its tokenizer has 467 tokens, its embedding 168 rows"):
        bring(source, tmp_path / "out")


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    loaded = pico_loaded()
    loaded.model.half().save_pretrained(tmp_path / "source")
    loaded.tokenizer.save_pretrained(tmp_path / "source")
    artifact, _ = bring(tmp_path / "source", tmp_path / "out")
    assert {weight.dtype for weight in load_model(artifact).model.parameters()} == {torch.float32}
    assert json.loads((artifact.path / "config.json").read_text(encoding="utf-8"))["dtype"] == "float32"


def test_a_tokenizer_file_that_differs_from_its_class_is_told(tmp_path: Path) -> None:
    source = pico_classifier(tmp_path / "source")
    file = source / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["normalizer"] = {"type": "NFC"}
    file.write_text(json.dumps(content), encoding="utf-8")
    _, said = bring(source, tmp_path / "out")
    assert any("probe texts differently from transformers' BertTokenizer" in text for text in said)
    _, said = bring(pico_classifier(tmp_path / "clean"), tmp_path / "clean-out")
    assert not any("probe texts" in text for text in said)


def test_what_is_refused_leaves_nothing_behind(tmp_path: Path, classifier: Path) -> None:
    source = pico_classifier(tmp_path / "source")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(UntrustedModelError):
        bring(source, tmp_path / "out")
    with pytest.raises(EnvironmentLacksError, match="--offline forbids"):
        bring("owner/teacher", tmp_path / "out")
    assert list(tmp_path.iterdir()) == [source]


def test_the_digest_for_cache_keys_needs_no_torch_and_follows_the_source(tmp_path: Path) -> None:
    source = pico_classifier(tmp_path / "source")
    code = (
        "import sys; from edgekit.models.stage import ImportConfig, source_digest; "
        f"print(source_digest(ImportConfig(source={str(source)!r}))); "
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    config = ImportConfig(source=str(source))
    assert printed == source_digest(config)
    (source / "model.safetensors").write_bytes(
        (pico_classifier(tmp_path / "other", seed=1) / "model.safetensors").read_bytes()
    )
    assert source_digest(config) != printed
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert source_digest(ImportConfig(source="owner/name", revision=commit), offline=True) != printed
    with pytest.raises(EnvironmentLacksError, match="--offline forbids"):
        source_digest(ImportConfig(source="owner/name"), offline=True)


def test_an_edgekit_artifact_imports_as_itself(tmp_path: Path) -> None:
    artifact = pico_model_artifact(tmp_path)
    again, _ = bring(artifact.path, tmp_path / "again", None)
    assert again.digest == artifact.digest
