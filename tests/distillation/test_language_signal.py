"""A language model learns from what was kept of its teacher as it would from the teacher, which is not loaded."""

from __future__ import annotations

import errno
import json
import signal as signals
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import edgekit.distillation.language_session as session
import edgekit.distillation.signal_capture as capture_module
from edgekit.artifact import Artifact
from edgekit.contract import StageContext, StageInputs
from edgekit.data.prepared import PreparedData
from edgekit.data.token_store import TokenSettings, open_tokens
from edgekit.distillation import language_capture
from edgekit.distillation.config import LanguageConfig, OnPolicyConfig, TokenCaptureConfig, TokenSignalConfig
from edgekit.distillation.stage import CaptureConfig, DistillConfig, capture, capture_config, distill
from edgekit.distillation.token_store import TokenSignal
from edgekit.errors import ArtifactError, EnvironmentLacksError, ModelError, TrainingError, UnsupportedError, UsageError
from edgekit.models.source import load_model
from tests.distillation.test_language import permuted_teacher
from tests.distillation.test_trainer import ROOT
from tests.distillation.training import LANGUAGE_DISTILL, Recorder, assert_same_weights, poisoned_decoder, weights
from tests.pico import publish_model
from tests.pico_decoders import pico_decoder
from tests.pico_language import pico_language_data

LENGTH = LANGUAGE_DISTILL.language.sequence_length


def captures(kind: str = "top-k", **settings: object) -> CaptureConfig:
    language = TokenCaptureConfig(sequence_length=LENGTH, signal=TokenSignalConfig(kind=kind, **settings))  # type: ignore[arg-type]
    return CaptureConfig(precision="float32", language=language)


def with_language(config: DistillConfig, **changes: object) -> DistillConfig:
    return config.model_copy(update={"language": config.language.model_copy(update=changes)})


def losses(recorder: Recorder) -> list[float]:
    return [event.values["loss"] for event in recorder.of("progress") if "loss" in event.values]


@pytest.fixture(scope="module")
def language_data(place: Path) -> Artifact:
    return pico_language_data(place, seed=1)


@pytest.fixture(scope="module")
def speaker(place: Path) -> Artifact:
    loaded = pico_decoder("llama", seed=7)
    loaded.model.model.norm.weight.data.mul_(8)  # sure of itself, as a trained model is
    return publish_model(loaded, place / "speaker")


@pytest.fixture(scope="module")
def learner(place: Path) -> Artifact:
    return publish_model(pico_decoder("llama", seed=8, layers=2), place / "learner")


@pytest.fixture(scope="module")
def kept(place: Path, speaker: Artifact, language_data: Artifact) -> Artifact:
    inputs = StageInputs(teacher=speaker, data=language_data)
    return capture(inputs, captures(), StageContext(place / "kept", events=Recorder()))


def run(
    learner: Artifact, speaker: Artifact, data: Artifact, out: Path, config: DistillConfig, **more: object
) -> tuple[Artifact, list[float]]:
    recorder = Recorder()
    signal = more.pop("signal", None)
    inputs = StageInputs(model=learner, teacher=speaker, data=data, signal=signal)  # type: ignore[arg-type]
    made = distill(inputs, config, StageContext(out, seed=3, events=recorder, **more))  # type: ignore[arg-type]
    return made, losses(recorder)


def test_each_learned_token_has_the_record_that_its_document_gives_it_alone(
    kept: Artifact, speaker: Artifact, language_data: Artifact, tmp_path: Path
) -> None:
    loaded, signal = load_model(speaker), TokenSignal.open(kept.path)
    data = PreparedData.open(language_data)
    store = open_tokens(tmp_path, data, "train", loaded.tokenizer, TokenSettings(LENGTH))
    assert len(signal) == len(store)
    for index in (0, 1, len(store) // 2, len(store) - 1):
        piece = store.piece(index)
        with torch.no_grad():
            log_p = loaded.model(torch.from_numpy(piece.ids)[None]).logits[0, :-1].log_softmax(-1)
        found = signal.layout.decode(signal.records(index), torch.device("cpu"))
        expected = log_p[torch.from_numpy(piece.learned[1:])]
        assert found.token_ids.shape == (int(piece.learned.sum()), 48)
        torch.testing.assert_close(found.log_probs, expected.gather(1, found.token_ids), atol=4e-4, rtol=0)
        tail = 1 - expected.double().gather(1, found.token_ids).exp().sum(-1)
        torch.testing.assert_close(found.log_tail.double().exp(), tail, atol=3e-4, rtol=0)


def test_a_record_takes_at_most_300_bytes(kept: Artifact) -> None:
    description = json.loads((kept.path / "signal.json").read_text())
    assert description["bytes_per_token"] == 194
    tokens = int(np.load(kept.path / "offsets.npy")[-1])
    size = sum(file.stat().st_size for file in kept.path.glob("shard-*.npy"))
    assert size <= 195 * tokens + 200


def test_nearly_all_tokens_kept_teach_as_the_teacher_does(
    speaker: Artifact, learner: Artifact, language_data: Artifact, tmp_path: Path
) -> None:
    """With all but a few tokens kept the loss and the weights are the online ones; also with part cross-entropy."""
    for name, changes in (("soft", {}), ("mixed", {"alpha": 0.5})):
        config = LANGUAGE_DISTILL.model_copy(update=changes)
        online, expected = run(learner, speaker, language_data, tmp_path / f"{name}-online", config)
        settings = with_language(config, signal="top-k", k=74)
        cached, found = run(learner, speaker, language_data, tmp_path / f"{name}-cached", settings)
        assert found[0] == pytest.approx(expected[0], rel=0.06)
        assert found[0] <= expected[0] + 1e-6  # merging the tail never adds to a divergence
        distance = torch.stack([(a - b).norm() for a, b in pairs(online, cached)]).norm()
        moved = torch.stack([(a - b).norm() for a, b in pairs(online, learner)]).norm()
        assert distance < 0.5 * moved


def pairs(first: Artifact, second: Artifact) -> list[tuple[torch.Tensor, torch.Tensor]]:
    left, right = weights(first), weights(second)
    return [(left[name], right[name]) for name in left]


def test_samples_have_the_online_loss_in_expectation(
    speaker: Artifact, learner: Artifact, language_data: Artifact, tmp_path: Path
) -> None:
    config = LANGUAGE_DISTILL.model_copy(update={"epochs": 0.1})
    expected = run(learner, speaker, language_data, tmp_path / "online", config)[1][0]
    found = []
    for seed in range(3):
        inputs = StageInputs(teacher=speaker, data=language_data)
        signal = capture(inputs, captures("sampled", draws=98), StageContext(tmp_path / f"signal-{seed}", seed=seed))
        out = tmp_path / f"out-{seed}"
        found.append(run(learner, speaker, language_data, out, config, signal=signal)[1][0])
    assert len(set(found)) == 3
    assert np.mean(found) == pytest.approx(expected, rel=0.03)


def test_the_teacher_is_not_loaded_and_a_signal_artifact_gives_the_same_as_capturing_inside(
    kept: Artifact, speaker: Artifact, learner: Artifact, language_data: Artifact, tmp_path: Path, monkeypatch
) -> None:
    inside, _ = run(
        learner, speaker, language_data, tmp_path / "inside", with_language(LANGUAGE_DISTILL, signal="top-k")
    )

    def refuse(*_: object) -> None:
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr(session, "load_model", refuse)
    monkeypatch.setattr("edgekit.distillation.capture_session.load_model", refuse)
    given, _ = run(learner, speaker, language_data, tmp_path / "given", LANGUAGE_DISTILL, signal=kept)
    assert_same_weights(inside, given)
    assert given.lineage.inputs.keys() == {"model", "teacher", "data", "signal"}


def test_a_cache_of_something_else_is_refused(
    kept: Artifact, speaker: Artifact, learner: Artifact, language_data: Artifact, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    other = publish_model(pico_decoder("llama", seed=9), tmp_path / "other")
    with pytest.raises(ArtifactError, match=r"another teacher: found .{16}\.\.\., expected .*Capture again"):
        run(learner, other, language_data, out, LANGUAGE_DISTILL, signal=kept)
    fresh = pico_language_data(tmp_path, seed=2)
    with pytest.raises(ArtifactError, match="another data set"):
        run(learner, speaker, fresh, out, LANGUAGE_DISTILL, signal=kept)
    with pytest.raises(
        ArtifactError, match=r"another set of token sequences \(tokenizer, chat template, length or use_unlabelled\)"
    ):
        run(learner, speaker, language_data, out, with_language(LANGUAGE_DISTILL, sequence_length=20), signal=kept)
    warm = LANGUAGE_DISTILL.model_copy(update={"temperature": 2.0})
    with pytest.raises(ArtifactError, match=r"at temperature 1\.0, expected 2\.0"):
        run(learner, speaker, language_data, out, warm, signal=kept)
    assert not out.exists()


def test_a_divergence_that_samples_cannot_give_is_refused(
    speaker: Artifact, learner: Artifact, language_data: Artifact, tmp_path: Path
) -> None:
    inputs = StageInputs(teacher=speaker, data=language_data)
    sampled = capture(inputs, captures("sampled"), StageContext(tmp_path / "sampled"))
    reverse = with_language(LANGUAGE_DISTILL, divergence="reverse_kl")
    with pytest.raises(UnsupportedError, match=r"'reverse_kl' with a sampled signal, expected 'forward_kl'"):
        run(learner, speaker, language_data, tmp_path / "out", reverse, signal=sampled)
    with pytest.raises(ValueError, match=r"language.divergence is 'reverse_kl' with the signal 'sampled'"):
        DistillConfig(language=LanguageConfig(signal="sampled", divergence="reverse_kl"))
    with pytest.raises(ValueError, match=r"on_policy.share is 0.5 with the signal 'top-k'"):
        DistillConfig(language=LanguageConfig(signal="top-k", on_policy=OnPolicyConfig(share=0.5)))
    written = with_language(LANGUAGE_DISTILL, on_policy=OnPolicyConfig(share=0.5))
    with pytest.raises(UsageError, match=r"found a signal and language.on_policy.share 0.5"):
        run(learner, speaker, language_data, tmp_path / "out", written, signal=sampled)
    matched = LANGUAGE_DISTILL.model_copy(update={"hidden_state_weight": 1.0})
    with pytest.raises(UsageError, match=r"found a signal, hidden_state_weight 1\.0 .*nothing was captured of"):
        run(learner, speaker, language_data, tmp_path / "out", matched, signal=sampled)
    with pytest.raises(
        ValueError, match=r"attention_relation_weight 0\.5 with language.signal 'top-k'.*holds no layers"
    ):
        DistillConfig(attention_relation_weight=0.5, language=LanguageConfig(signal="top-k"))


def test_a_student_with_another_order_of_tokens_reads_the_text_for_its_teacher(
    speaker: Artifact, language_data: Artifact, tmp_path: Path
) -> None:
    """The capture for a permuted student is asked for with the student, and teaches as the teacher beside it does."""
    permuted = permuted_teacher(publish_model(pico_decoder("llama", seed=8, layers=2), tmp_path / "s"), tmp_path / "p")
    config = LANGUAGE_DISTILL.model_copy(update={"epochs": 0.1})
    expected = run(permuted, speaker, language_data, tmp_path / "online", config)[1][0]
    inputs = StageInputs(teacher=speaker, data=language_data, model=permuted)
    signal = capture(inputs, captures(k=74), StageContext(tmp_path / "signal"))
    found = run(permuted, speaker, language_data, tmp_path / "cached", config, signal=signal)[1][0]
    assert expected * 0.94 < found <= expected
    plain = capture(StageInputs(teacher=speaker, data=language_data), captures(), StageContext(tmp_path / "plain"))
    with pytest.raises(ArtifactError, match=r"another .*Capture again"):
        run(permuted, speaker, language_data, tmp_path / "out", config, signal=plain)


def test_a_teacher_with_a_padded_vocabulary_is_kept_without_the_padding(
    speaker: Artifact, learner: Artifact, language_data: Artifact, tmp_path: Path
) -> None:
    loaded = load_model(speaker)
    table = loaded.model.get_input_embeddings().weight
    loaded.model.resize_token_embeddings(len(table) + 7)
    loaded.model.get_input_embeddings().weight.data[len(table) :] = 9.0
    padded = publish_model(loaded, tmp_path / "padded")
    config = LANGUAGE_DISTILL.model_copy(update={"epochs": 0.1})
    expected = run(learner, padded, language_data, tmp_path / "online", config)[1][0]
    found = run(learner, padded, language_data, tmp_path / "cached", with_language(config, signal="top-k", k=74))[1][0]
    assert expected * 0.94 < found <= expected


def test_a_teacher_with_another_tokenizer_is_refused(language_data: Artifact, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    loaded = pico_decoder("llama")
    content = json.loads(loaded.tokenizer.backend_tokenizer.to_str())
    merged = next(token for token in content["model"]["vocab"] if len(token) > 2)
    content["model"]["merges"] = [m for m in content["model"]["merges"] if "".join(m) != merged]
    content["model"]["vocab"][f"{merged}#"] = content["model"]["vocab"].pop(merged)
    content["model"]["merges"] = [m for m in content["model"]["merges"] if merged not in m]
    loaded.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))
    other = publish_model(loaded, tmp_path / "other")
    plain = publish_model(pico_decoder("llama"), tmp_path / "plain")
    with pytest.raises(ModelError, match=r"tokens that the teacher does not have.*Distillation across tokenizers"):
        capture(StageInputs(teacher=plain, data=language_data, model=other), captures(), StageContext(tmp_path / "out"))


def start(speaker: Artifact, data: Artifact, work: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.distillation.training", "capture", speaker.path, data.path, work, out]
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_killed_capture_goes_on_with_the_shards_that_are_missing(
    kept: Artifact, speaker: Artifact, language_data: Artifact, tmp_path: Path, monkeypatch
) -> None:
    work = tmp_path / "work"
    process = start(speaker, language_data, work, tmp_path / "out")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("teacher") and int(line.split()[-1]) > 0:
            process.send_signal(signals.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signals.SIGKILL
    assert not (tmp_path / "out").exists()
    made = {file: file.stat().st_mtime_ns for file in work.glob("signal/*/shard-*.npy")}
    assert made
    monkeypatch.setattr(language_capture, "_SMALLEST_SHARD", 300)
    inputs = StageInputs(teacher=speaker, data=language_data)
    again = capture(inputs, captures(), StageContext(tmp_path / "out", work_directory=work))
    assert {file: file.stat().st_mtime_ns for file in made} == made
    found, expected = TokenSignal.open(again.path), TokenSignal.open(kept.path)
    assert len(list(again.path.glob("shard-*.npy"))) > 3
    for index in range(len(expected)):
        assert np.abs(logs(found, index) - logs(expected, index)).max() <= 2  # packed otherwise: sums round otherwise


def logs(signal: TokenSignal, index: int) -> np.ndarray:
    return signal.records(index)["log_probs"].astype(np.int64)


def test_a_full_disk_keeps_what_is_finished(
    speaker: Artifact, language_data: Artifact, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(language_capture, "_SMALLEST_SHARD", 300)
    write, written = np.save, []

    def full(stream: object, records: np.ndarray, **options: object) -> None:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(len(records))
        write(stream, records, **options)  # type: ignore[arg-type]

    inputs, work = StageInputs(teacher=speaker, data=language_data), tmp_path / "work"
    monkeypatch.setattr(capture_module.np, "save", full)
    with pytest.raises(EnvironmentLacksError, match=r"No space left .* 2 of \d+ shards are finished and kept"):
        capture(inputs, captures(), StageContext(tmp_path / "out", work_directory=work))
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(capture_module.np, "save", write)
    recorder = Recorder()
    capture(inputs, captures(), StageContext(tmp_path / "out", events=recorder, work_directory=work))
    assert recorder.of("progress")[-1].unit == "tokens"
    assert next(e for e in recorder.of("progress") if e.text == "teacher").completed >= sum(written)


def test_a_teacher_that_is_not_finite_is_named(language_data: Artifact, tmp_path: Path) -> None:
    broken = poisoned_decoder(tmp_path / "broken")
    with pytest.raises(TrainingError, match=r"capture: pieces 0 to \d+ of the text: token \d+: .* not finite"):
        capture(StageInputs(teacher=broken, data=language_data), captures(), StageContext(tmp_path / "out"))


def test_a_teacher_of_broken_weights_is_refused_at_once(language_data: Artifact, tmp_path: Path) -> None:
    loaded = pico_decoder("llama")
    loaded.model.model.norm.weight.data[0] = float("nan")
    broken = publish_model(loaded, tmp_path / "broken")
    with pytest.raises(ModelError, match=r"logits that are not finite numbers.*weights are broken"):
        capture(StageInputs(teacher=broken, data=language_data), captures(), StageContext(tmp_path / "out"))


def test_a_killed_run_on_a_signal_resumes_to_the_same_bits(
    speaker: Artifact, learner: Artifact, language_data: Artifact, tmp_path: Path
) -> None:
    config = with_language(LANGUAGE_DISTILL, signal="top-k")
    expected, _ = run(learner, speaker, language_data, tmp_path / "expected", config)
    inputs = StageInputs(model=learner, teacher=speaker, data=language_data)

    def stop(event: object) -> None:
        if event.kind == "progress" and "loss" in event.values and event.completed == 4:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    context = StageContext(tmp_path / "out", seed=3, events=stop, work_directory=tmp_path / "work")
    with pytest.raises(KeyboardInterrupt):
        distill(inputs, config, context)
    made, found = run(learner, speaker, language_data, tmp_path / "out", config, work_directory=tmp_path / "work")
    assert_same_weights(made, expected)
    assert len(found) > 0


def test_a_pipeline_is_told_which_capture_a_distillation_needs() -> None:
    language = LanguageConfig(sequence_length=99, signal="top-k", k=7, long_documents="skip")
    config = DistillConfig(temperature=1.5, precision="float32", language=language)
    found = capture_config(config, "causal-lm")
    assert found == capture_config(config)
    assert found is not None
    assert (found.precision, found.language.sequence_length, found.language.long_documents) == ("float32", 99, "skip")
    assert found.language.signal == TokenSignalConfig(kind="top-k", k=7, temperature=1.5)
    assert capture_config(DistillConfig(), "causal-lm") is None


def test_a_frozen_embedding_stays_as_it_was(
    speaker: Artifact, learner: Artifact, language_data: Artifact, tmp_path: Path
) -> None:
    made, _ = run(
        learner, speaker, language_data, tmp_path / "out", with_language(LANGUAGE_DISTILL, freeze_embedding=True)
    )
    before, after = weights(learner), weights(made)
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])
