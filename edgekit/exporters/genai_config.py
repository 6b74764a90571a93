"""`genai_config.json`: what onnxruntime-genai must be told of a decoder to run the same file as everyone else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig

    from edgekit.exporters.attention_survey import Survey

GENAI_CONFIG_FILE = "genai_config.json"
# The library's name for a decoder of no special kind: everything that is special is in the graph.
_TYPE = "decoder"


def make_genai_config(
    config: PretrainedConfig, generation: GenerationConfig | None, survey: Survey, *, context_length: int, file: str
) -> dict[str, Any]:
    """Returns the content of `genai_config.json` for the model at `file`, relative to the configuration.

    Raises:
        UnsupportedError: layers with caches of different shapes.
    """
    shapes = {(facts.key_value_heads, facts.head_size) for facts in survey.layers}
    if len(shapes) != 1:
        raise UnsupportedError(
            f"onnxruntime-genai: found caches of the shapes {sorted(shapes)}, expected one for all layers."
        )
    (key_value_heads, head_size), first = shapes.pop(), survey.layers[0]
    end = _token_ids(config, generation, "eos_token_id")
    beginning, padding = (_token_ids(config, generation, name) for name in ("bos_token_id", "pad_token_id"))
    return {
        "model": {
            "type": _TYPE,
            "context_length": context_length,
            "vocab_size": int(config.vocab_size),
            "bos_token_id": (beginning or end or [0])[0],
            "eos_token_id": end[0] if len(end) == 1 else end,
            "pad_token_id": (padding or end or [0])[0],
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": file,
                "head_size": head_size,
                "hidden_size": first.heads * head_size,
                "num_attention_heads": first.heads,
                "num_hidden_layers": len(survey.layers),
                "num_key_value_heads": key_value_heads,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": _search(generation, context_length),
    }


def _search(generation: GenerationConfig | None, context_length: int) -> dict[str, Any]:
    """Returns how tokens are chosen unless an app says otherwise: as the model's own `generation_config.json` says."""
    sampling = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}
    given = {name: getattr(generation, name, None) for name in sampling}
    return {
        **sampling,
        **{name: value for name, value in given.items() if value is not None},
        "max_length": context_length,
        "min_length": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": True,
    }


def _token_ids(config: PretrainedConfig, generation: GenerationConfig | None, name: str) -> list[int]:
    """Returns the ids of a special token; what generates goes before what was trained."""
    for source in (generation, config):
        value = getattr(source, name, None)
        if value is not None:
            return [int(each) for each in (value if isinstance(value, list) else [value])]
    return []
