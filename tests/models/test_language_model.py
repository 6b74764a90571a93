import json
from pathlib import Path
from typing import Any

import pytest
import torch

from edgekit.artifact import Artifact
from edgekit.contract import StageContext, StageInputs
from edgekit.errors import EnvironmentLacksError, ModelError, UsageError
from edgekit.events import Event
from edgekit.exporters.gguf import export_gguf
from edgekit.models.quantized import Scheme
from edgekit.models.quiet import quiet_transformers
from edgekit.models.source import LoadedModel, is_on_hub, load_model, save_model
from edgekit.models.stage import ImportConfig, import_model, source_digest
from edgekit.models.tasks import TaskConfig, read_task
from edgekit.models.tokenizer import NASTY_TEXTS
from tests.coded_decoders import code_linears
from tests.pico import publish_model
from tests.pico_decoders import CHAT_TEMPLATE, DECODERS, pico_decoder

TASK = TaskConfig(kind="causal-lm", max_length=64)
PARTS = [
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "task.json",
    "tokenizer.json",
    "tokenizer_config.json",
]


def directory_of(loaded: LoadedModel, directory: Path) -> Path:
    """Writes a plain transformers directory."""
    with quiet_transformers():
        loaded.model.save_pretrained(directory)
        loaded.tokenizer.save_pretrained(directory)
    return directory


def bring(source: Path | str, out: Path, task: TaskConfig | None = TASK) -> tuple[Artifact, list[str]]:
    events: list[Event] = []
    context = StageContext(out=out, events=events.append, offline=True)
    artifact = import_model(StageInputs(), ImportConfig(source=str(source), task=task), context)
    return artifact, [event.text for event in events]


def edit(file: Path, **changes: Any) -> None:
    content = {**json.loads(file.read_text(encoding="utf-8")), **changes}
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), encoding="utf-8")


@pytest.mark.parametrize("architecture", DECODERS)
def test_a_directory_keeps_all_its_parts(tmp_path: Path, architecture: str) -> None:
    loaded = pico_decoder(architecture)
    artifact, _ = bring(directory_of(loaded, tmp_path / "source"), tmp_path / "out")
    assert sorted(artifact.files) == PARTS
    assert read_task(artifact) == TASK
    back = load_model(artifact)
    weights = back.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in loaded.model.state_dict().items())
    assert back.tokenizer.chat_template == CHAT_TEMPLATE
    assert back.model.generation_config.eos_token_id == 2
    assert back.model.generation_config.pad_token_id == 3
    again, _ = bring(artifact.path, tmp_path / "again", None)
    assert again.digest == artifact.digest


def test_a_gguf_and_its_directory_give_the_same_artifact_but_for_the_lineage(tmp_path: Path) -> None:
    loaded = pico_decoder("llama", initializer_range=0.02)
    export_gguf(loaded, tmp_path / "model.gguf", lineage={})
    first, said = bring(tmp_path / "model.gguf", tmp_path / "first")
    second, _ = bring(directory_of(loaded, tmp_path / "source"), tmp_path / "second")
    for name in ("model.safetensors", "config.json", "generation_config.json", "chat_template.jinja", "task.json"):
        assert first.files[name] == second.files[name]
    one, other = load_model(first), load_model(second)
    for text in NASTY_TEXTS:
        assert one.tokenizer(text).input_ids == other.tokenizer(text).input_ids
    assert any(text.startswith("weights decoded to float32 from F32 ") for text in said)
    assert first.lineage.config["source_digest"] == source_digest(ImportConfig(source=str(tmp_path / "model.gguf")))
    assert first.lineage.config["source_digest"] != second.lineage.config["source_digest"]


def test_without_a_task_a_language_model_has_all_its_positions(tmp_path: Path) -> None:
    loaded = pico_decoder()
    artifact, _ = bring(directory_of(loaded, tmp_path / "source"), tmp_path / "a", None)
    assert read_task(artifact) == TaskConfig(kind="causal-lm", max_length=128)
    export_gguf(loaded, tmp_path / "model.gguf", lineage={})
    artifact, _ = bring(tmp_path / "model.gguf", tmp_path / "b", None)
    assert read_task(artifact) == TaskConfig(kind="causal-lm", max_length=128)


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    sizes = {}
    for tied in (True, False):
        model = publish_model(pico_decoder(tied=tied), tmp_path / str(tied))
        sizes[tied] = model.files["model.safetensors"].bytes
        network = load_model(model).model
        is_same = network.get_output_embeddings().weight is network.get_input_embeddings().weight
        assert is_same == tied
    assert sizes[False] - sizes[True] > 300 * 32 * 4 - 200


def test_a_coded_model_keeps_generation_config_and_template(tmp_path: Path) -> None:
    loaded = pico_decoder(hidden_size=64)
    loaded.model.generation_config.eos_token_id = [2, 0]
    code_linears(loaded, Scheme(bits=8, group_size=32, activations="float"))
    model = publish_model(loaded, tmp_path / "model")
    assert sorted(model.files) == sorted([*PARTS, "quantization.json"])
    back = load_model(model)
    assert back.model.generation_config.eos_token_id == [2, 0]
    assert back.tokenizer.chat_template == CHAT_TEMPLATE
    save_model(back, tmp_path / "again")
    for name in model.files:
        assert (tmp_path / "again" / name).read_bytes() == (model.path / name).read_bytes()


@pytest.mark.parametrize(("has_spare", "expected"), [(True, "<|pad|>"), (False, "<|im_end|>")])
def test_a_missing_padding_token_is_chosen_recorded_and_told(tmp_path: Path, has_spare: bool, expected: str) -> None:
    source = directory_of(pico_decoder(), tmp_path / "source")
    edit(source / "tokenizer_config.json", pad_token=None)
    if not has_spare:
        content = (source / "tokenizer.json").read_text(encoding="utf-8")
        (source / "tokenizer.json").write_text(content.replace("<|pad|>", "<|spare|>"), encoding="utf-8")
    for name in ("config.json", "generation_config.json"):
        edit(source / name, pad_token_id=None)
    artifact, said = bring(source, tmp_path / "out")
    back = load_model(artifact)
    assert back.tokenizer.pad_token == expected
    assert back.model.config.pad_token_id == back.model.generation_config.pad_token_id == back.tokenizer.pad_token_id
    reason = "unused" if has_spare else "the end of text"
    assert any(text.startswith(f"no padding token: took '{expected}' ({reason})") for text in said)


def test_a_missing_end_is_taken_from_the_tokenizer_or_refused(tmp_path: Path) -> None:
    source = directory_of(pico_decoder(), tmp_path / "source")
    for name in ("config.json", "generation_config.json"):
        edit(source / name, eos_token_id=None)
    artifact, said = bring(source, tmp_path / "out")
    assert load_model(artifact).model.generation_config.eos_token_id == 2
    assert "generation ends at the tokenizer's '<|im_end|>', id 2" in said
    edit(source / "tokenizer_config.json", eos_token=None)
    with pytest.raises(ModelError, match="names a token that ends a text"):
        bring(source, tmp_path / "other")


def test_a_chat_template_that_fails_is_refused_and_a_missing_one_is_told(tmp_path: Path) -> None:
    source = directory_of(pico_decoder(), tmp_path / "source")
    (source / "chat_template.jinja").write_text("{{ messages[0]['role'] | nothing }}", encoding="utf-8")
    with pytest.raises(ModelError, match=r"its chat template fails on one question and one answer \(.*nothing"):
        bring(source, tmp_path / "out")
    (source / "chat_template.jinja").unlink()
    artifact, said = bring(source, tmp_path / "out")
    assert "no chat template: a base model, which continues text" in said
    assert "chat_template.jinja" not in artifact.files


def test_models_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    source = directory_of(pico_decoder(), tmp_path / "source")
    with pytest.raises(ModelError, match=r"has 128 positions, the task asks for max_length = 200. Set it lower"):
        bring(source, tmp_path / "out", TASK.model_copy(update={"max_length": 200}))
    edit(source / "config.json", num_hidden_layers=5)
    with pytest.raises(ModelError, match=r"its weights lack 'model.layers.4"):
        bring(source, tmp_path / "out")
    broken = pico_decoder()
    broken.model.model.norm.weight.data[3] = float("nan")
    with pytest.raises(ModelError, match=r"'model.norm.weight' holds values that are not finite"):
        bring(directory_of(broken, tmp_path / "broken"), tmp_path / "out")
    wide = directory_of(pico_decoder(vocab_size=290), tmp_path / "wide")
    with pytest.raises(ModelError, match="its tokenizer has the token 299, its embedding 290 rows"):
        bring(wide, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_gguf_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    export_gguf(pico_decoder(), tmp_path / "model.gguf", lineage={})
    whole = (tmp_path / "model.gguf").read_bytes()
    (tmp_path / "model.gguf").write_bytes(whole[:-1000])
    with pytest.raises(ModelError, match=r"ends at byte \d+. It is truncated or altered"):
        bring(tmp_path / "model.gguf", tmp_path / "out")
    (tmp_path / "model.gguf").write_bytes(whole)
    with pytest.raises(ModelError, match="a GGUF holds a causal language model, the task is 'text-classification'"):
        bring(tmp_path / "model.gguf", tmp_path / "out", TaskConfig(labels=["a", "b"]))
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_where_a_gguf_may_be(tmp_path: Path) -> None:
    assert is_on_hub("owner/name/file.gguf")
    assert not is_on_hub("owner/name/other/file.gguf")
    with pytest.raises(EnvironmentLacksError, match="owner/name: a hub model that is not in the local cache"):
        bring("owner/name/file.gguf", tmp_path / "out")
    with pytest.raises(UsageError, match=r"holds no 'nothing.gguf'"):
        bring("pkg:edgekit/nothing.gguf", tmp_path / "out")
    with pytest.raises(ModelError, match=r"no/where/at/all.gguf: not found; expected a directory, a .gguf file"):
        bring("no/where/at/all.gguf", tmp_path / "out")
    export_gguf(pico_decoder(), tmp_path / "model.gguf", lineage={})
    with pytest.raises(ModelError, match=r"or the path of a .gguf file. It holds: model.gguf"):
        bring(tmp_path, tmp_path / "out")
