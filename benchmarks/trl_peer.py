"""TRL's GKDTrainer taking one optimizer step each time it is told to: the peer of distillation.py.

It runs in an environment of its own (trl-requirements.txt) and imports nothing of edgekit. Lines on the standard input
ask for a step; a line of JSON on the standard output tells of it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
warnings.simplefilter("ignore")

# What is set above must be set before these are imported.
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback  # noqa: E402
from trl.experimental.gkd import GKDConfig, GKDTrainer  # noqa: E402


class Turns(TrainerCallback):
    """Waits for the word before each step, and tells of it after."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.started = self.cpu_started = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Waits."""
        if sys.stdin.readline().strip() != "step":
            sys.exit(0)
        self.started, self.cpu_started = time.perf_counter(), time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Tells time, memory and loss of the step, the optimizer's part included."""
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        on_gpu = torch.cuda.is_initialized()
        if on_gpu:
            torch.cuda.synchronize()
        told = {
            "wall_s": time.perf_counter() - self.started,
            "cpu_s": time.process_time() - self.cpu_started,
            "loss": self.loss,
            "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else resident,
        }
        say(told)


class Trainer(GKDTrainer):
    """GKDTrainer that keeps the loss, as a mean over the tokens that it looked at."""

    turns: Turns

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Returns what GKDTrainer does."""
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        tokens = int((inputs["labels"][:, 1:] != -100).sum())
        self.turns.loss = float(loss.detach()) * float(num_items_in_batch or tokens) / tokens
        return loss


def say(told: dict[str, float]) -> None:
    """Writes one line."""
    print(json.dumps(told), file=ANSWERS, flush=True)


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Returns sequences of equal length, each one document that is learned from its second token on."""
    input_ids = torch.tensor([row["input_ids"] for row in rows])
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": input_ids.clone()}


def main() -> None:
    """Trains until no more steps are asked for."""
    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    tokenizer = AutoTokenizer.from_pretrained(task["teacher"])
    is_bf16 = task["precision"] == "bf16"
    teacher_dtype = torch.bfloat16 if is_bf16 else torch.float32
    teacher = AutoModelForCausalLM.from_pretrained(task["teacher"], dtype=teacher_dtype)
    student = AutoModelForCausalLM.from_pretrained(task["student"], dtype=torch.float32)
    config = GKDConfig(
        output_dir=task["work"],
        use_cpu=task["device"] == "cpu",
        bf16=is_bf16,
        lmbda=0.0,
        beta=task["beta"],
        temperature=1.0,
        per_device_train_batch_size=task["rows"],
        max_steps=len(task["steps"]),
        learning_rate=task["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.01,
        max_grad_norm=1.0,
        gradient_checkpointing=task["checkpointing"],
        max_length=task["length"],
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    )
    sequences = json.loads(Path(task["sequences"]).read_text(encoding="utf-8"))
    rows = [sequences[row] for step in task["steps"] for row in step]
    turns = Turns()
    trainer = Trainer(
        model=student,
        teacher_model=teacher,
        args=config,
        train_dataset=Dataset.from_dict({"input_ids": rows}),
        processing_class=tokenizer,
        data_collator=collate,
        callbacks=[turns],
    )
    trainer.turns = turns
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(trainer.train_dataset)
    say({"ready": 1})
    trainer.train()


if __name__ == "__main__":
    ANSWERS = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is written to the standard output is no answer
    main()
