import json
import pickle
from pathlib import Path

import pytest
import torch

from edgekit.artifact import Artifact, Lineage, publish
from edgekit.errors import ArtifactError, CorruptArtifactError, EnvironmentLacksError, ModelError, UntrustedModelError
from edgekit.models.quantized import QuantizedLinear, QuantizedTensor, Scheme, empty_like, replace_module, schemes_of
from edgekit.models.source import LoadedModel, is_on_hub, load_model, resolve, save_model
from tests.pico import (
    ARCHITECTURES,
    pico_classifier,
    pico_loaded,
    pico_model_artifact,
    pico_texts,
    publish_model,
)


def logits(loaded: LoadedModel) -> torch.Tensor:
    ids = loaded.tokenizer(pico_texts(4)[0], padding=True, return_tensors="pt")
    with torch.inference_mode():
        return loaded.model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).logits


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_classifier(tmp_path_factory.mktemp("source") / "classifier")


def copy_of(directory: Path, to: Path) -> Path:
    to.mkdir()
    for file in directory.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_comes_back_from_its_artifact_unchanged_and_equal_models_give_equal_bytes(
    tmp_path: Path, architecture: str
) -> None:
    original = pico_loaded(architecture=architecture)
    first = publish_model(original, tmp_path / "first")
    loaded = load_model(first)
    assert torch.equal(logits(loaded), logits(original))
    assert loaded.task == original.task
    assert not loaded.model.training
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert publish_model(loaded, tmp_path / "second").digest == first.digest


def test_labels_in_the_configuration_agree_with_the_task(tmp_path: Path) -> None:
    artifact = pico_model_artifact(tmp_path, labels=("bad", "fair", "good"))
    config = json.loads((artifact.path / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {"0": "bad", "1": "fair", "2": "good"}
    assert config["label2id"] == {"bad": 0, "fair": 1, "good": 2}
    assert load_model(artifact).model.config.num_labels == 3


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(),
        Scheme(bits=8, group_size=16, activations="float"),
        Scheme(bits=4, group_size=32, symmetric=False, activations="float"),
    ],
)
def test_a_quantized_model_comes_back_with_the_same_codes(tmp_path: Path, scheme: Scheme) -> None:
    loaded = pico_loaded(architecture="albert")
    generator = torch.Generator().manual_seed(0)
    for name, module in list(loaded.model.named_modules()):
        if isinstance(module, torch.nn.Linear) and "encoder" in name:
            replace_module(loaded.model, module, random_codes(module, scheme, name, generator))
    artifact = publish_model(loaded, tmp_path / "quantized")
    again = load_model(artifact)
    assert schemes_of(again.model) == schemes_of(loaded.model) != {}
    assert torch.equal(logits(again), logits(loaded))
    assert publish_model(again, tmp_path / "again").digest == artifact.digest


def random_codes(linear: torch.nn.Linear, scheme: Scheme, name: str, generator: torch.Generator) -> QuantizedLinear:
    rows, columns = linear.weight.shape
    module = empty_like(linear, scheme, name)
    codes = torch.randint(scheme.code_min, scheme.code_max + 1, (rows, columns), generator=generator)
    shape = (rows, scheme.groups(columns))
    zero_points = None if scheme.symmetric else torch.full(shape, 8, dtype=torch.uint8)
    code_type = torch.int8 if scheme.symmetric else torch.uint8
    module.set_weight(QuantizedTensor(codes.to(code_type), torch.full(shape, 0.01).half(), zero_points, scheme))
    assert isinstance(module, QuantizedLinear)
    return module


def test_loading_and_saving_say_nothing_and_leave_the_settings_and_the_generator_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    from transformers.utils import logging

    artifact = pico_model_artifact(tmp_path)
    before, verbosity = torch.random.get_rng_state(), logging.get_verbosity()
    loaded = load_model(artifact)
    save_model(loaded, tmp_path / "saved")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert logging.get_verbosity() == verbosity
    assert logging.is_progress_bar_enabled()
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_weights_that_do_not_fit_the_configuration_are_refused(tmp_path: Path) -> None:
    artifact = pico_model_artifact(tmp_path)
    config = artifact.path / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    for layers, message in ((5, "weights are missing, first 'bert.encoder.layer.4"), (3, "weights are unknown")):
        config.write_text(json.dumps({**settings, "num_hidden_layers": layers}), encoding="utf-8")
        with pytest.raises(ModelError, match=message):
            load_model(artifact)
    config.write_text(json.dumps({**settings, "hidden_size": 64}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"weights are of another shape, first 'bert\.embeddings"):
        load_model(artifact)
    config.write_text(json.dumps({**settings, "model_type": "own"}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"could not be loaded as a text-classification model .*model type `own`"):
        load_model(artifact)


# What is refused before anything is loaded.


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl", "last.ckpt"])
def test_pickled_weights_are_refused_unopened_with_the_way_to_convert(
    tmp_path: Path, classifier: Path, name: str
) -> None:
    source = copy_of(classifier, tmp_path / "pickled")
    (source / "model.safetensors").unlink()
    (source / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UntrustedModelError, match=f"found {name} .*refused.*save_pretrained"):
        resolve(str(source))
    assert not Bomb.exploded
    with pytest.raises(UntrustedModelError, match=f"found {name}"):
        resolve(str(source / name))


class Bomb:
    exploded = False

    def __reduce__(self) -> tuple[object, ...]:
        return setattr, (Bomb, "exploded", True)


def test_a_pickle_beside_safetensors_is_left_alone(tmp_path: Path, classifier: Path) -> None:
    source = copy_of(classifier, tmp_path / "both")
    (source / "pytorch_model.bin").write_bytes(b"x")
    (source / "training_args.bin").write_bytes(b"x")
    assert resolve(str(source)).weights() == [source / "model.safetensors"]


@pytest.mark.parametrize(
    ("name", "auto_map", "files"),
    [
        (
            "config.json",
            {"AutoConfig": "own_config.Own", "AutoModel": "own_model.Own"},
            r"own_config\.py, own_model\.py",
        ),
        ("config.json", {"AutoModel": "owner/name--own_model.Own"}, r"owner/name--own_model\.py"),
        ("tokenizer_config.json", {"AutoTokenizer": ["own_tokenizer.Own", None]}, r"own_tokenizer\.py"),
        ("tokenizer_config.json", ["own_tokenizer.Own", None], r"own_tokenizer\.py"),
    ],
)
def test_remote_code_is_refused_by_the_names_of_its_files(
    tmp_path: Path, classifier: Path, name: str, auto_map: object, files: str
) -> None:
    source = copy_of(classifier, tmp_path / "remote")
    content = json.loads((source / name).read_text(encoding="utf-8"))
    (source / name).write_text(json.dumps({**content, "auto_map": auto_map}), encoding="utf-8")
    with pytest.raises(UntrustedModelError, match=rf"{name} asks for Python code .*auto_map: {files}\).*never run"):
        resolve(str(source))


def test_code_in_an_artifact_is_not_run_when_the_model_is_loaded(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    with publish(tmp_path / "model", kind="model", lineage=Lineage(stage="source")) as staging:
        save_model(pico_loaded(), staging)
        (staging / "own.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Own: ...\n")
        for name, auto in (
            ("config.json", "AutoModelForSequenceClassification"),
            ("tokenizer_config.json", "AutoTokenizer"),
        ):
            content = json.loads((staging / name).read_text(encoding="utf-8"))
            value = ["own.Own", "own.Own"] if auto == "AutoTokenizer" else "own.Own"
            (staging / name).write_text(json.dumps({**content, "auto_map": {auto: value, "AutoConfig": "own.Own"}}))
    assert type(load_model(Artifact.open(tmp_path / "model")).model).__name__ == "BertForSequenceClassification"
    assert not marker.exists()


def test_a_file_cut_anywhere_or_lengthened_is_refused_by_name(tmp_path: Path, classifier: Path) -> None:
    source = copy_of(classifier, tmp_path / "cut")
    weights = source / "model.safetensors"
    whole = weights.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for size in (0, 4, 8, 100, header - 1, header, header + 10, len(whole) - 1):
        weights.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=r"model\.safetensors: .*truncated or altered"):
            resolve(str(source))
    weights.write_bytes(whole + b"\0")
    with pytest.raises(ModelError, match=rf"found {len(whole) + 1} bytes, its header says {len(whole)}"):
        resolve(str(source))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"shape":[2,32]', b'"shape":[3,32]', r"takes 256 bytes, its shape \[3, 32\] needs 384"),
        (b'"dtype":"F32"', b'"dtype":"F33"', "unknown type 'F33'"),
        (b'"data_offsets":[0,', b'"data_offsets":[8,', "takes"),
        (b'{"', b"{{", "its header is not valid"),
    ],
)
def test_an_altered_header_is_refused(tmp_path: Path, classifier: Path, old: bytes, new: bytes, message: str) -> None:
    source = copy_of(classifier, tmp_path / "altered")
    weights = source / "model.safetensors"
    whole = weights.read_bytes()
    assert old in whole
    weights.write_bytes(whole.replace(old, new, 1))
    with pytest.raises(ModelError, match=message):
        resolve(str(source))


def test_a_git_lfs_pointer_is_named_as_such(tmp_path: Path, classifier: Path) -> None:
    source = copy_of(classifier, tmp_path / "pointer")
    (source / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(ModelError, match=r"model\.safetensors: is a Git LFS pointer.*git lfs pull"):
        resolve(str(source))


def test_sharded_weights_load_and_a_missing_shard_is_named(tmp_path: Path) -> None:
    loaded = pico_loaded()
    loaded.model.save_pretrained(tmp_path, max_shard_size="50KB")
    loaded.tokenizer.save_pretrained(tmp_path)
    files = resolve(str(tmp_path))
    assert len(files.weights()) > 1
    files.weights()[1].unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-0000\d\.safetensors: missing; .*names it"):
        resolve(str(tmp_path))


def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path, classifier: Path) -> None:
    source = copy_of(classifier, tmp_path / "index")
    (source / "model.safetensors").unlink()
    index = source / "model.safetensors.index.json"
    for weight_map, message in (
        ({"a": "../../etc/weights.safetensors"}, "expected safetensors files beside the index"),
        ({"a": "weights.bin"}, "expected safetensors files beside the index"),
        ({}, "found no 'weight_map'"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
        with pytest.raises(ModelError, match=message):
            resolve(str(source))


@pytest.mark.parametrize(
    ("removed", "added", "error", "message"),
    [
        (["config.json"], {}, ModelError, r"found no config\.json; .*It holds: model\.safetensors"),
        (["tokenizer.json"], {}, ModelError, r"found no tokenizer; expected one of tokenizer\.json"),
        (["model.safetensors"], {}, ModelError, r"found no model\.safetensors; it holds: config\.json"),
        ([], {"config.json": "{"}, ModelError, r"config\.json: not valid JSON"),
        ([], {"config.json": "[]"}, ModelError, r"config\.json: found a list, expected a JSON object"),
        ([], {"config.json": "{}"}, ModelError, r"config\.json: found no 'model_type'"),
        ([], {"adapter_config.json": "{}"}, ModelError, "holds an adapter .*merge_and_unload"),
        ([], {"quantization.json": "{}"}, ModelError, "is quantized already"),
        ([], {"artifact.json": "{}"}, CorruptArtifactError, "not a valid descriptor"),
    ],
)
def test_what_is_not_a_model_directory_says_what_is_wrong(
    tmp_path: Path, classifier: Path, removed: list[str], added: dict[str, str], error: type[Exception], message: str
) -> None:
    source = copy_of(classifier, tmp_path / "source")
    for name in removed:
        (source / name).unlink()
    for name, content in added.items():
        (source / name).write_text(content, encoding="utf-8")
    with pytest.raises(error, match=message):
        resolve(str(source))


def test_an_artifact_as_source_is_verified_first(tmp_path: Path) -> None:
    artifact = pico_model_artifact(tmp_path)
    assert resolve(str(artifact.path)).path == artifact.path
    with (artifact.path / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x7f")
    with pytest.raises(CorruptArtifactError, match=r"model\.safetensors: found SHA-256"):
        resolve(str(artifact.path))


def test_sources_that_are_not_there(tmp_path: Path, classifier: Path) -> None:
    for source, error, message in (
        (
            str(tmp_path / "nothing"),
            ModelError,
            "not found; expected a directory, a .gguf file",
        ),
        (str(classifier / "config.json"), ModelError, "is a file; expected a .gguf file, or the dir"),
        ("pkg:no_such_package/model", EnvironmentLacksError, "Install it: pip install no-such-package"),
        ("pkg:pytest", ModelError, "expected pkg:NAME/path"),
        ("pkg:pytest/nothing", ModelError, "the package 'pytest' holds no 'nothing'"),
        ("pkg:pytest/../secret", ModelError, "expected pkg:NAME/path"),
        ("owner/name", EnvironmentLacksError, "not in the local cache, and --offline forbids fetching it"),
    ):
        with pytest.raises(error, match=message):
            resolve(source, offline=True)
    with pytest.raises(ModelError, match="revision 'main', which only a hub id has"):
        resolve(str(classifier), revision="main")


def test_the_digest_follows_the_files_that_a_model_is_loaded_from(tmp_path: Path, classifier: Path) -> None:
    source = copy_of(classifier, tmp_path / "source")
    digest = resolve(str(source)).digest()
    assert digest == resolve(str(classifier)).digest()
    (source / "README.md").write_text("changed")
    assert resolve(str(source)).digest() == digest
    with (source / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x7f")
    assert resolve(str(source)).digest() != digest


def test_an_artifact_of_another_kind_is_no_source(tmp_path: Path) -> None:
    from tests.pico import pico_data_artifact

    data: Artifact = pico_data_artifact(tmp_path, rows=20)
    with pytest.raises(ArtifactError, match="kind 'data', expected 'model'"):
        resolve(str(data.path))


@pytest.mark.parametrize("source", ["nowhere.gguf", "models/nowhere.gguf"])
def test_a_gguf_that_is_not_there_is_no_hub_id(source: str) -> None:
    with pytest.raises(ModelError, match=f"{source}: not found; expected a directory, a .gguf file, a hub id"):
        resolve(source)
    assert is_on_hub("owner/name/file.gguf")
