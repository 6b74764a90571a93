from __future__ import annotations

import pytest
import torch

from edgekit.models.threads import torch_threads


def test_the_setting_holds_inside_and_is_as_before_after_it():
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="lost"), torch_threads(before + 1):
        raise ValueError("lost")
    assert torch.get_num_threads() == before


def test_it_decorates_a_function_for_each_of_its_calls():
    @torch_threads(3)
    def threads() -> int:
        return torch.get_num_threads()

    before = torch.get_num_threads()
    assert (threads(), threads(), torch.get_num_threads()) == (3, 3, before)
