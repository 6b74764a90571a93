"""What the tests of training share: pico stages with their settings, events kept, and a process that can be killed.

python -m tests.distillation.training finetune MODEL DATA WORK OUT      trains, a checkpoint after every step
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

import edgekit.distillation.trainer as trainer
from edgekit.artifact import Artifact
from edgekit.contract import StageContext, StageInputs
from edgekit.distillation import language_capture
from edgekit.distillation.config import LanguageConfig, OnPolicyConfig, TokenCaptureConfig
from edgekit.distillation.processes import make_accelerator
from edgekit.distillation.sharding import shard_teacher
from edgekit.distillation.stage import CaptureConfig, DistillConfig, FinetuneConfig, capture, distill, finetune
from edgekit.events import Event
from edgekit.models.tasks import read_task
from tests.pico import publish_model
from tests.pico_decoders import pico_decoder

FINETUNE = FinetuneConfig(epochs=2, batch_size=8, learning_rate=2e-3, dropout=0.1, evaluations_per_epoch=3)
DISTILL = DistillConfig(
    epochs=1,
    batch_size=8,
    learning_rate=2e-3,
    dropout=0.1,
    hidden_state_weight=0.5,
    attention_relation_weight=0.5,
    evaluations_per_epoch=3,
)


LANGUAGE_DISTILL = DistillConfig(
    epochs=1,
    batch_size=4,
    learning_rate=2e-3,
    alpha=1.0,
    temperature=1.0,
    precision="float32",
    evaluations_per_epoch=2,
    language=LanguageConfig(sequence_length=64),
)

LANGUAGE_MATCH = LANGUAGE_DISTILL.model_copy(
    update={
        "alpha": 0.7,
        "dropout": 0.1,
        "hidden_state_weight": 0.5,
        "attention_relation_weight": 0.5,
        "language": LanguageConfig(
            sequence_length=64, on_policy=OnPolicyConfig(share=0.3, max_new_tokens=8, prompt_tokens=4)
        ),
    }
)

SHARED_ROWS = 16


class Recorder:
    """An event sink that keeps what it is told."""

    def __init__(self, *, prints: bool = False) -> None:
        self.events: list[Event] = []
        self.prints = prints

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if self.prints and event.kind in ("progress", "message"):
            print(event.text, event.completed, flush=True)

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.kind == kind]


def weights(model: Artifact | Path) -> dict[str, torch.Tensor]:
    """Returns the weights of a model artifact."""
    return load_file((model.path if isinstance(model, Artifact) else model) / "model.safetensors")


def assert_same_weights(first: Artifact, second: Artifact) -> None:
    """Checks every weight bit for bit."""
    left, right = weights(first), weights(second)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def poisoned_decoder(out: Path) -> Artifact:
    """Publishes a language model that loses its numbers at the token 'w', which few of the pico documents hold."""
    loaded = pico_decoder("llama", tied=False)
    token = loaded.tokenizer.convert_tokens_to_ids("w")
    loaded.model.get_input_embeddings().weight.data[token] = float("nan")
    return publish_model(loaded, out)


def share(student: Artifact, data: Artifact, work: Path, out: Path, teacher: Artifact) -> None:
    """Distills on all processes of the group and prints what the main one was told."""
    recorder = Recorder(prints=True)
    trainer.CHECKPOINT_SECONDS, trainer._CHECKPOINT_SHARE = 0.0, 1e9
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    changes = {"batch_size": SHARED_ROWS // processes, "dropout": 0.0, "learning_rate": 1e-4, "precision": "float32"}
    config = DISTILL.model_copy(update=changes)
    if read_task(student).kind == "causal-lm":
        changes = json.loads(os.environ.get("EDGEKIT_TEST_CONFIG", "{}"))
        whole = LANGUAGE_DISTILL.model_dump() | {"batch_size": 4 // processes, "alpha": 0.7} | changes
        config = DistillConfig.model_validate(whole)
    inputs = StageInputs(model=student, data=data, teacher=teacher)
    distill(inputs, config, StageContext(out, seed=3, events=recorder, work_directory=work))
    steps = [event.values for event in recorder.of("progress") if "loss" in event.values]
    if recorder.events:
        told = [[step["loss"], step["gradient_norm"]] for step in steps]
        scores = [list(event.values.values()) for event in recorder.of("metric")]
        print(json.dumps(told + scores), flush=True)


def share_teacher(architecture: str) -> None:
    """Shards a teacher over the group and prints what this process then holds, and whether it says the same."""
    accelerator = make_accelerator()
    model = pico_decoder(architecture).model
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    ids = torch.arange(4, 36).reshape(2, 16)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    shard_teacher(model, accelerator)
    with torch.no_grad():
        found = [model(input_ids=ids).logits for _ in range(2)]
    own = {
        name: parameter.to_local().numel() if isinstance(parameter, DTensor) else parameter.numel()
        for name, parameter in model.named_parameters()
    }
    layers = [name for name in sizes if ".layers." in name or ".h." in name]
    told = {
        "same": all(torch.equal(logits, expected) for logits in found),
        "share": sum(own[name] for name in layers) / sum(sizes[name] for name in layers),
        "head": model.get_output_embeddings().weight.numel() / expected.shape[-1],
    }
    print(json.dumps(told), flush=True)


def main(arguments: list[str]) -> None:
    """Runs a stage in this process, with a line on the standard output after every step."""
    if arguments[0] == "share-teacher":
        share_teacher(arguments[1])
        return
    kind, model, data, work, out = arguments[:5]
    if kind == "share":
        share(Artifact.open(model), Artifact.open(data), Path(work), Path(out), Artifact.open(arguments[5]))
        return
    trainer.CHECKPOINT_SECONDS = 0.0
    trainer._CHECKPOINT_SHARE = 1e9

    def tell(event: Event) -> None:
        if event.kind == "progress":
            print(event.text, event.completed, flush=True)

    context = StageContext(Path(out), seed=3, events=tell, work_directory=Path(work))
    if kind == "capture":
        language_capture._SMALLEST_SHARD = 300
        config = CaptureConfig(precision="float32", language=TokenCaptureConfig(sequence_length=64))
        inputs = StageInputs(teacher=Artifact.open(model), data=Artifact.open(data))
        capture(inputs, config, StageContext(Path(out), events=tell, work_directory=Path(work)))
        return
    inputs = StageInputs(model=Artifact.open(model), data=Artifact.open(data))
    if kind == "finetune":
        finetune(inputs, FINETUNE, context)
    else:
        teacher = Artifact.open(arguments[5])
        config = LANGUAGE_MATCH if read_task(teacher).kind == "causal-lm" else DISTILL
        distill(StageInputs(model=inputs.model, data=inputs.data, teacher=teacher), config, context)


if __name__ == "__main__":
    main(sys.argv[1:])
