"""Which tokens end an answer."""

from __future__ import annotations

import json

import pytest

from edgekit.models.end_tokens import end_token_ids


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        ({"eos_token_id": [5, 6]}, {"eos_token_id": 7}, {2, 5, 6}),
        ({"eos_token_id": 5}, {}, {2, 5}),
        ({}, {"eos_token_id": 7}, {2, 7}),
        (None, {}, {2}),
    ],
)
def test_answers_end_where_generation_does(generation, config, ends, tmp_path):
    for name, content in (("generation_config.json", generation), ("config.json", config)):
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
    assert end_token_ids(tmp_path, 2) == ends
    assert end_token_ids(tmp_path, None) == ends - {2}
