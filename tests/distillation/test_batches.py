"""The order of rows, how a step is cut into forward passes, and what a batch holds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.distillation.batches import Plan, Rows, collate


def plan(lengths, batch_size=4, accumulation=1, **processes):
    return Plan(lengths, batch_size, accumulation, seed=5, **processes)


def make_rows(lengths, labels, teacher_lengths=None):
    ids = [[7 + row] * length for row, length in enumerate(lengths)]
    teacher = None if teacher_lengths is None else [[3] * length for length in teacher_lengths]
    names = [f"train row {row}" for row in range(len(lengths))]
    return Rows(names, [f"text {row}" for row in range(len(lengths))], ids, np.array(labels), None, teacher)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 7), st.integers(1, 3), st.integers(1, 3))
@settings(deadline=None, max_examples=50)
def test_an_epoch_takes_every_row_once_whatever_the_split(lengths, batch_size, accumulation, processes):
    plans = [
        plan(lengths, batch_size, accumulation, process=process, processes=processes) for process in range(processes)
    ]
    for epoch in range(2):
        taken = []
        for position in range(plans[0].steps_per_epoch):
            step = epoch * plans[0].steps_per_epoch + position
            windows = [each.window(step) for each in plans]
            assert len({len(window.passes) for window in windows}) == 1  # no process waits for another
            counted = [row for w in windows for chosen in w.passes[: len(w.passes) - w.repeats] for row in chosen]
            assert sorted(counted) == sorted(windows[0].rows)
            assert all(0 < len(chosen) <= batch_size for window in windows for chosen in window.passes)
            taken += windows[0].rows
        assert sorted(taken) == list(range(len(lengths)))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
@settings(deadline=None, max_examples=30)
def test_accumulation_cuts_the_same_steps_into_smaller_passes(lengths):
    whole, halves = plan(lengths, 8, 1), plan(lengths, 4, 2)
    for step in range(2 * whole.steps_per_epoch):
        assert whole.window(step).rows == halves.window(step).rows
        assert [row for chosen in halves.window(step).passes for row in chosen] == whole.window(step).rows


def test_epochs_differ_and_any_step_can_be_asked_for_first():
    lengths = list(range(1, 41))
    first, again = plan(lengths), plan(lengths)
    order = [first.window(step).rows for step in range(20)]
    assert order[:10] != order[10:]
    assert again.window(13).rows == order[13]
    assert [again.window(step).rows for step in range(20)] == order


def test_a_batch_is_padded_to_its_longest_row():
    rows = make_rows([2, 4, 3], [1, 0, -100])
    batch = collate(rows, [0, 2], (9, 0), torch.device("cpu"))
    assert batch.input_ids.tolist() == [[7, 7, 9], [9, 9, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.labels.tolist() == [1, -100]
    assert batch.teacher_logits is None
    assert rows.labelled_share == pytest.approx(2 / 3)


def test_only_rows_that_both_tokenizers_cut_alike_are_comparable():
    rows = make_rows([2, 4, 3], [1, 0, 1], teacher_lengths=[2, 5, 3])
    batch = collate(rows, [0, 1, 2], (0, 0), torch.device("cpu"))
    assert batch.comparable.tolist() == [[True, True, False, False], [False] * 4, [True, True, True, False]]
    assert batch.teacher_input_ids.shape == (3, 5)
    assert rows.comparable_tokens.tolist() == [2, 0, 3]
