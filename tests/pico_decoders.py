"""Builds causal language models of a few kilobytes in code, each with a byte-level BPE tokenizer and a chat template.

    pico_decoder("llama")    a random decoder in memory

Every architecture has 4 layers of hidden size 32 with 4 heads, 2 key-value heads where it has groups, and a
vocabulary of about 300 tokens; positions for 128 tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.models.quiet import quiet_transformers
from edgekit.models.source import LoadedModel
from edgekit.models.tasks import TaskConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

DECODERS = (
    "llama",
    "qwen3",
    "gemma3_text",
    "phi3",
    "mistral",
    "smollm3",
    "gpt2",
    "opt",
    "granite",
    "olmo2",
)
CONTEXT = 128
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRAINING_TEXT = (
    "The old man and the sea went on and on. A river is a flowing body of water. The king was crowned in the city. "
    "She sells sea shells by the sea shore, and he is not there. One of the largest towns of the region is on a coast."
)
_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
# What the configuration of an architecture calls its sizes, and what it needs besides.
_GPT2_SIZES = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": CONTEXT, "n_inner": 64}
_EXTRAS: dict[str, dict[str, Any]] = {
    "gemma3_text": {"head_dim": 8, "sliding_window": 16, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8},
    "mistral": {"sliding_window": None, "head_dim": 8},
    "qwen3": {"head_dim": 8},
    "smollm3": {"no_rope_layers": [1, 1, 1, 0]},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "granite": {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3,
                "logits_scaling": 1.5},
}  # fmt: skip


def pico_decoder(
    architecture: str = "llama", *, seed: int = 0, layers: int = 4, tied: bool = True, **settings: Any
) -> LoadedModel:
    """Returns a random decoder in memory; the global generator is left as it was. `settings` configure it."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = pico_byte_tokenizer()
    config = decoder_config(architecture, len(tokenizer), layers=layers, tied=tied, **settings)
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():  # the library starts biases at 0 and norms at 1: hide no mistake
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.tie_weights()
    return LoadedModel(model, tokenizer, TaskConfig(kind="causal-lm", max_length=CONTEXT))


def decoder_config(
    architecture: str, vocabulary: int, *, layers: int = 4, tied: bool = True, **settings: Any
) -> PretrainedConfig:
    """Returns the configuration of a pico decoder."""
    from transformers import AutoConfig

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
    }
    if architecture == "gpt2":
        sizes = {**_GPT2_SIZES, "n_layer": layers}
    fields = {**sizes, **_EXTRAS.get(architecture, {}), "vocab_size": vocabulary, "tie_word_embeddings": tied}
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 3}
    config: PretrainedConfig = AutoConfig.for_model(architecture, **{**fields, **ids, **settings})
    return config


def pico_byte_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer with 4 special tokens, all 256 bytes and about 40 merges."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[AddedToken(token, special=True) for token in _SPECIALS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([TRAINING_TEXT], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
