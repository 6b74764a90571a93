"""What is special on a GPU: the losses against float64, training against the processor's, memory (`make test-gpu`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.nn import functional

from edgekit.artifact import Artifact
from edgekit.contract import StageContext, StageInputs
from edgekit.distillation.stage import CaptureConfig, DistillConfig, capture, distill
from edgekit.distillation.vocabulary_head import VocabularyHead
from edgekit.distillation.vocabulary_losses import TokenTargets, VocabularyObjective, vocabulary_losses
from edgekit.distillation.vocabulary_targets import TeacherStates
from tests.distillation.test_vocabulary_losses import KINDS, Case, objective_of, relative
from tests.distillation.training import LANGUAGE_DISTILL, Recorder, assert_same_weights
from tests.pico import publish_model
from tests.pico_decoders import pico_decoder
from tests.pico_language import pico_language_data

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]  # torch.compile warns of what it does itself

DISTILL = LANGUAGE_DISTILL.model_copy(update={"alpha": 0.7, "learning_rate": 5e-3})


class OnGpu(Case):
    """The same case with hidden states, weights and labels on the GPU."""

    def __init__(self, seed: int, **options: object) -> None:
        super().__init__(seed, **options)
        moved = ("hidden", "weight", "bias", "teacher_hidden", "teacher_weight", "labels")
        self.on_cpu = {name: getattr(self, name) for name in moved}
        for name, value in self.on_cpu.items():
            if value is not None:
                leaf = value.detach().cuda()
                setattr(self, name, leaf.requires_grad_() if value.requires_grad else leaf)

    def expected(self, objective: VocabularyObjective) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, ...]]:
        """Returns the losses and gradients of the dense way in float64, on the processor."""
        on_gpu = {name: getattr(self, name) for name in self.on_cpu}
        vars(self).update(self.on_cpu)
        try:
            return self.dense(objective)
        finally:
            vars(self).update(on_gpu)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_agree_with_float64(kind: str, compiled: bool) -> None:
    case = OnGpu(3, dtype=torch.float32, bias=True, scale=0.3, sizes=(64, 900, 32))
    objective = replace(objective_of(kind, temperature=2.0, chunk=24), compiled=compiled)
    (losses, gradients), (sums, aims) = case.ours(objective), case.expected(objective)
    for name, value in losses.sums.items():
        assert relative(value.cpu(), sums[name]) < 1e-6, name
    for gradient, aim in zip(gradients, aims, strict=True):
        assert relative(gradient.cpu(), aim) < 1e-6


@pytest.mark.parametrize("compiled", [False, True])
def test_bf16_is_as_close_as_its_rounding(compiled: bool) -> None:
    case = OnGpu(4, dtype=torch.bfloat16, scale=0.3, sizes=(256, 300, 32))
    objective = replace(objective_of("jensen_shannon", coefficients=(1 / 256, 1 / 256), chunk=64), compiled=compiled)
    (losses, gradients), (sums, aims) = case.ours(objective), case.expected(objective)
    for name, value in losses.sums.items():
        assert relative(value.cpu(), sums[name]) < 0.01, name
    for gradient, aim in zip(gradients, aims, strict=True):
        assert relative(gradient.cpu(), aim) < 0.01


@pytest.mark.parametrize("compiled", [False, True])
def test_peak_memory_is_a_quarter_of_the_dense_way_at_most(compiled: bool) -> None:
    tokens, vocabulary, size = 4096, 49_152, 576
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(rows: int, scale: float) -> torch.Tensor:
        return torch.randn(rows, size, generator=generator, device="cuda") * scale

    hidden, weight = draw(tokens, 1.0).requires_grad_(), draw(vocabulary, 0.1).requires_grad_()
    teacher_hidden, teacher_weight = draw(tokens, 1.0), draw(vocabulary, 0.1)
    labels = torch.randint(0, vocabulary, (tokens,), generator=generator, device="cuda")
    base = VocabularyObjective(soft_targets=0.9 / tokens, cross_entropy=0.1 / tokens, chunk_tokens=256)
    objective = replace(base, compiled=compiled)
    teacher = TeacherStates(teacher_hidden, VocabularyHead(teacher_weight))

    def ours() -> torch.Tensor:
        targets = TokenTargets(labels, teacher)
        return vocabulary_losses(hidden, VocabularyHead(weight), targets, objective).total(objective)

    def dense() -> torch.Tensor:
        with torch.no_grad():
            log_p = functional.log_softmax(teacher_hidden @ teacher_weight.T, dim=-1)
        log_q = functional.log_softmax(hidden @ weight.T, dim=-1)
        soft = functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
        return objective.soft_targets * soft + objective.cross_entropy * functional.nll_loss(
            log_q, labels, reduction="sum"
        )

    peaks = []
    for way in (ours, dense):
        hidden.grad = weight.grad = None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[0] < 0.25 * peaks[1]


@pytest.fixture(scope="module")
def roles(place: Path) -> StageInputs:
    return StageInputs(
        model=publish_model(pico_decoder("llama", seed=5, layers=2), place / "gpu-student"),
        teacher=publish_model(pico_decoder("llama"), place / "gpu-teacher"),
        data=pico_language_data(place),
    )


def losses_of(roles: StageInputs, config: DistillConfig, out: Path) -> tuple[list[float], Artifact]:
    recorder = Recorder()
    made = distill(roles, config, StageContext(out, events=recorder))
    return [event.values["loss"] for event in recorder.of("progress") if "loss" in event.values], made


def test_a_gpu_learns_what_the_processor_learns(
    roles: StageInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu, _ = losses_of(roles, DISTILL, tmp_path / "gpu")
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    on_processor, _ = losses_of(roles, DISTILL, tmp_path / "processor")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert on_gpu == pytest.approx(on_processor, rel=1e-3)


@pytest.mark.parametrize("compiled", [False, True])
def test_two_runs_give_the_same_bits(roles: StageInputs, tmp_path: Path, compiled: bool) -> None:
    language = DISTILL.language.model_copy(update={"compile": compiled})
    config = DISTILL.model_copy(update={"language": language, "precision": "bf16"})
    first, second = (losses_of(roles, config, tmp_path / name)[1] for name in ("first", "second"))
    assert_same_weights(first, second)


def test_a_cached_signal_and_checkpointed_activations_teach_there_too(roles: StageInputs, tmp_path: Path) -> None:
    signal = capture(
        StageInputs(teacher=roles.teacher, data=roles.data),
        CaptureConfig(language={"sequence_length": 64}),
        StageContext(tmp_path / "signal"),
    )
    config = DISTILL.model_copy(update={"gradient_checkpointing": True, "precision": "bf16", "epochs": 3.0})
    cached = StageInputs(model=roles.model, teacher=roles.teacher, data=roles.data, signal=signal)
    losses, _ = losses_of(cached, config, tmp_path / "out")
    assert losses[-1] < losses[0]
