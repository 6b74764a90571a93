"""What a model writes: the same alone or padded in a batch, as `generate` does it, in the model's proportions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Lfm2Config, Lfm2ForCausalLM

from edgekit.distillation import writing
from edgekit.distillation.config import WritingConfig
from edgekit.distillation.writing import _choose, student_writes, write_sequences
from edgekit.errors import DataError, TrainingError, UsageError
from tests.pico_decoders import CONTEXT, DECODERS, pico_decoder

PROMPTS = [[9, 40, 77], [5], [120, 8, 33, 61, 90, 14, 25], [200, 201]]
GREEDY = WritingConfig(max_new_tokens=8, temperature=0, precision="float32", batch_size=4)


@pytest.fixture(scope="module")
def llama():
    return pico_decoder("llama").model


@pytest.mark.parametrize("architecture", DECODERS)
def test_every_architecture_continues_a_padded_prompt_as_it_does_alone(architecture):
    model = pico_decoder(architecture).model
    together = list(write_sequences(model, PROMPTS, GREEDY))
    for prompt, written in zip(PROMPTS, together, strict=True):
        token_ids = torch.tensor([prompt])
        with torch.no_grad():
            for _ in range(8):  # no cache, no padding
                logits = model(input_ids=token_ids, attention_mask=torch.ones_like(token_ids)).logits[:, -1]
                token_ids = torch.cat([token_ids, logits.argmax(-1, keepdim=True)], dim=1)
        assert written.token_ids.tolist() == token_ids[0].tolist()


def test_greedy_text_is_that_of_generate_and_ends_at_an_end_token(llama):
    free = list(write_sequences(llama, PROMPTS, GREEDY))
    end = int(free[0].token_ids[5])
    for prompt, written in zip(PROMPTS, write_sequences(llama, PROMPTS, GREEDY, end_ids=[end]), strict=True):
        ids = torch.tensor([prompt])
        expected = llama.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, eos_token_id=end
        )
        assert written.token_ids.tolist() == expected[0].tolist()
        assert written.finished == (written.token_ids[-1] == end)
        assert written.loss_mask.tolist() == [False] * len(prompt) + [True] * (len(written.token_ids) - len(prompt))
    assert len(next(iter(write_sequences(llama, PROMPTS, GREEDY, end_ids=[end]))).token_ids) <= 6


@pytest.mark.parametrize("architecture", DECODERS)
def test_rows_that_are_finished_leave_the_batch_and_the_others_write_on_as_before(architecture):
    model = pico_decoder(architecture).model
    free = list(write_sequences(model, PROMPTS, GREEDY))
    written = [text.token_ids[len(prompt) :].tolist() for prompt, text in zip(PROMPTS, free, strict=True)]
    ends = {written[0][0], written[2][1]}  # the first prompt ends at once, the third a token later
    widths = []

    def count(module, arguments, keywords):
        widths.append(len(keywords["input_ids"]))

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    found = list(write_sequences(model, PROMPTS, GREEDY, end_ids=list(ends)))
    handle.remove()
    for prompt, text, whole in zip(PROMPTS, found, written, strict=True):
        stop = next((place + 1 for place, token in enumerate(whole) if token in ends), len(whole))
        assert text.token_ids.tolist() == [*prompt, *whole[:stop]]
    assert widths[0] == len(PROMPTS)
    assert widths[1] < len(PROMPTS)


def test_the_states_of_recurrent_layers_leave_with_their_rows(monkeypatch):
    torch.manual_seed(0)
    kinds = ["conv", "full_attention", "conv"]
    config = Lfm2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=len(kinds),
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        layer_types=kinds,
    )
    model = Lfm2ForCausalLM(config).eval()
    prompts = [[9, 40, 7], [5, 3, 2], [12, 8, 33], [20, 21, 1]]
    free = list(write_sequences(model, prompts, GREEDY))
    ends = [int(free[0].token_ids[3]), int(free[2].token_ids[4])]
    found = [text.token_ids.tolist() for text in write_sequences(model, prompts, GREEDY, end_ids=ends)]
    assert len({len(ids) for ids in found}) > 1, "some end before others"
    monkeypatch.setattr(writing, "_CROWDED", 0.0)
    assert found == [text.token_ids.tolist() for text in write_sequences(model, prompts, GREEDY, end_ids=ends)]


def test_labels_are_the_written_tokens_one_place_before(llama):
    written = next(iter(write_sequences(llama, [[9, 40, 77]], GREEDY)))
    assert written.labels[:2].tolist() == [-100, -100]
    assert written.labels[2:-1].tolist() == written.token_ids[3:].tolist()
    assert written.labels[-1] == -100


def test_draws_depend_on_the_seed_and_the_prompts_number_alone(llama):
    config = WritingConfig(max_new_tokens=6, temperature=1.5, top_p=0.9, precision="float32", batch_size=4)
    first = [written.token_ids.tolist() for written in write_sequences(llama, PROMPTS, config, seed=3)]
    state = torch.get_rng_state()
    one_by_one = config.model_copy(update={"batch_size": 1})
    again = [written.token_ids.tolist() for written in write_sequences(llama, PROMPTS, one_by_one, seed=3)]
    assert first == again
    assert torch.equal(state, torch.get_rng_state())
    other = [written.token_ids.tolist() for written in write_sequences(llama, PROMPTS, config, seed=4)]
    assert first != other
    same_prompt = [written.token_ids.tolist() for written in write_sequences(llama, [PROMPTS[0]] * 2, config, seed=3)]
    assert same_prompt[0] != same_prompt[1]


def test_tokens_come_in_the_proportions_of_the_model():
    logits = torch.tensor([[2.0, 1.0, 0.0, -3.0]])
    places = torch.from_numpy((np.arange(4000) + 0.5) / 4000)
    for temperature in (0.5, 1.0, 2.0):
        chosen = _choose(logits.expand(4000, -1), places, WritingConfig(temperature=temperature))
        shares = torch.bincount(chosen, minlength=4) / 4000
        torch.testing.assert_close(shares, (logits[0] / temperature).softmax(-1), atol=3e-4, rtol=0)


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 1.0), st.integers(2, 12))
@settings(deadline=None, max_examples=40)
def test_top_p_draws_from_the_smallest_set_of_that_probability(seed, top_p, vocabulary):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, vocabulary, generator=generator) * 2
    places = torch.rand(500, generator=generator, dtype=torch.float64)
    chosen = set(_choose(logits.expand(500, -1), places, WritingConfig(top_p=top_p)).tolist())
    p, order = logits[0].double().softmax(-1).sort(descending=True)
    count = int((p.cumsum(0) < top_p).sum()) + 1
    assert chosen <= set(order[:count].tolist())


def test_the_share_of_the_students_steps_is_lambda():
    assert not any(student_writes(0.0, 1, step) for step in range(50))
    assert all(student_writes(1.0, 1, step) for step in range(50))
    chosen = [student_writes(0.3, 1, step) for step in range(2000)]
    assert np.mean(chosen) == pytest.approx(0.3, abs=0.04)
    assert chosen[:100] == [student_writes(0.3, 1, step) for step in range(100)]
    assert chosen[:100] != [student_writes(0.3, 2, step) for step in range(100)]


def test_the_model_keeps_its_mode(llama):
    llama.train()
    list(write_sequences(llama, PROMPTS[:1], GREEDY))
    assert llama.training
    llama.eval()
    list(write_sequences(llama, PROMPTS[:1], GREEDY))
    assert not llama.training


def test_bad_input_is_refused_by_name(llama):
    with pytest.raises(DataError, match=r"prompt 1 \(counted from 0\): found no tokens"):
        list(write_sequences(llama, [[4], []], GREEDY))
    with pytest.raises(
        UsageError, match=rf"prompt 0 .*found {CONTEXT} tokens and max_new_tokens 8, expected at most 128"
    ):
        list(write_sequences(llama, [[4] * CONTEXT], GREEDY))
    broken = pico_decoder("llama", layers=1).model
    with torch.no_grad():
        broken.model.norm.weight.fill_(torch.nan)
    with pytest.raises(TrainingError, match="writing: the model's logits are not finite"):
        list(write_sequences(broken, [[4]], GREEDY))
