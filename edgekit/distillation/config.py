"""Configuration of training: what finetuning and distilling share, and what each adds.

Only pydantic is imported here, so that the command line reads its flags in milliseconds.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from edgekit.contract import StageConfig

Precision = Literal["auto", "float32", "bf16"]
Schedule = Literal["linear", "cosine", "constant"]
BestBy = Literal["accuracy", "cross_entropy", "divergence"]


class TokenSignalConfig(StageConfig):
    """What to keep of a language model's distribution at each token."""

    kind: Literal["top-k", "sampled"] = "top-k"
    """`top-k`: the likeliest tokens and the mass of the others; `sampled`: draws from the teacher, without bias."""
    k: int = Field(default=48, ge=1)
    """Tokens kept by `top-k`."""
    draws: int = Field(default=64, ge=1, le=255)
    """Draws of `sampled`; tokens drawn twice share a place."""
    temperature: float = Field(default=1.0, gt=0, le=100)
    """Temperature of the distribution that is kept: that of the loss, which refuses another one."""
    proposal_exponent: float = Field(default=1.0, gt=0, le=2)
    """Draws come from the teacher's distribution to this power; 1: from itself; below 1: rare tokens more often."""


class SequenceConfig(StageConfig):
    """How documents of a language model become sequences."""

    sequence_length: int = Field(default=512, ge=2)
    """Tokens of a training sequence, at most the model's context; documents are packed into it side by side."""
    long_documents: Literal["cut", "skip", "error"] = "cut"
    """What is done with a document longer than a sequence."""


class OnPolicyConfig(StageConfig):
    """Learning from what the student itself writes (GKD, arXiv:2306.13649)."""

    share: float = Field(default=0.0, ge=0, le=1)
    """GKD's lambda: the share of steps whose text the student writes and the teacher scores; 0: off."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Tokens after which what the student writes is cut."""
    temperature: float = Field(default=1.0, ge=0, le=100)
    """Divides the student's logits while it writes; 0: always the likeliest token."""
    prompt_tokens: int = Field(default=16, ge=1)
    """Tokens that begin a plain text and are its prompt; a conversation's prompt is what precedes the first answer."""


class LanguageConfig(SequenceConfig):
    """What only the training of a language model knows."""

    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon", "skewed_kl", "skewed_reverse_kl"] = "forward_kl"
    """How a student's next-token distribution is compared with its teacher's."""
    mixture: float = Field(default=0.5, ge=0, le=1)
    """beta of `jensen_shannon` (0: forward KL, 1: reverse KL), alpha of the skewed divergences."""
    chunk_tokens: int = Field(default=256, ge=1)
    """Tokens whose logits are in memory at once; changes memory and time, and nothing else."""
    signal: Literal["online", "top-k", "sampled"] = "online"
    """`online`: the teacher runs beside the student; else what is kept of its outputs, captured before training."""
    k: int = Field(default=48, ge=1)
    """Tokens kept by the signal `top-k`."""
    draws: int = Field(default=64, ge=1, le=255)
    """Draws of the signal `sampled`."""
    proposal_exponent: float = Field(default=1.0, gt=0, le=2)
    """The signal `sampled` draws from the teacher's distribution to this power."""
    compile: bool = False
    """Let torch.compile make a few kernels of each layer and of the losses: for GPUs; the first steps take longer, and
    a resumed run may differ by rounding."""
    freeze_embedding: bool = False
    """Leave the token table as it is, and a head tied to it: faster, and no memory for its gradient and moments."""
    on_policy: OnPolicyConfig = OnPolicyConfig()
    """Learning from what the student itself writes."""


class TrainingConfig(StageConfig):
    """How a model is trained, with or without a teacher."""

    epochs: float = Field(default=3.0, gt=0, le=1000)
    """Passes over the training text; a fraction ends inside a pass."""
    batch_size: int = Field(default=32, ge=1)
    """Rows a forward pass, on each process."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Forward passes that make one optimizer step: with 2 of 16 rows the gradient is that of 32 rows."""
    learning_rate: float = Field(default=1e-4, gt=0, le=1)
    """Highest learning rate, reached at the end of the warm-up."""
    schedule: Schedule = "linear"
    """How the learning rate falls after the warm-up: `linear` or `cosine` to zero, or `constant`."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from zero."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decoupled weight decay; biases and norms are not decayed."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this Euclidean norm when they exceed it."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout probability everywhere in the model while it trains; none: the model's own."""
    precision: Precision = "auto"
    """`float32`; `bf16`: matrix products in bf16, weights in float32; `auto`: bf16 where the hardware has it."""
    evaluations_per_epoch: int = Field(default=2, ge=1)
    """Evaluations on the validation split in each pass; the best of them is what is kept."""
    best_by: BestBy = "accuracy"
    """What makes an evaluation the best: most rows right, the lowest cross-entropy (a language model: always that), or
    the lowest divergence from the teacher."""
    patience: int | None = Field(default=None, ge=1)
    """Evaluations without a better one after which training stops; none: it runs to the end."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third more time."""
    language: LanguageConfig = LanguageConfig()
    """What only the training of a language model knows."""


class FinetuneConfig(TrainingConfig):
    """Train a model on labelled text."""

    best_by: Literal["accuracy", "cross_entropy"] = "accuracy"
    """What makes an evaluation the best: most rows right, or the lowest cross-entropy; language models: always that."""


class WritingConfig(StageConfig):
    """How a model continues prompts."""

    max_new_tokens: int = Field(default=128, ge=1)
    """Tokens after which a text is cut."""
    temperature: float = Field(default=1.0, ge=0, le=100)
    """Divides the logits; 0: always the likeliest token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draws only from the likeliest tokens that together have this probability."""
    batch_size: int = Field(default=16, ge=1)
    """Prompts continued at once; the texts do not depend on it, but for the rounding of sums."""
    precision: Precision = "auto"
    """`float32`; `bf16`: matrix products in bf16; `auto`: bf16 where the hardware has it."""


class WriteConfig(WritingConfig):
    """Let a model answer the prompts of prepared data, and keep the rest of it."""

    splits: list[str] | None = Field(default=None, min_length=1)
    """Splits whose prompts are answered; none: those of form `prompt`, or `train` where there is none."""
    cut_answers: Literal["keep", "drop"] = "keep"
    """What is done with an answer that was cut at `max_new_tokens`. Who learns it by cross-entropy (`alpha` below 1)
    learns to end there; the teacher's soft targets say otherwise at that place."""
    prompt_tokens: int = Field(default=16, ge=1)
    """Tokens that begin a plain text and are its prompt; a conversation's prompt is what precedes the first answer."""


class LayerPair(StageConfig):
    """Which layer of the teacher a layer of the student imitates, both counted from 0."""

    student: int = Field(ge=0)
    """Layer of the student."""
    teacher: int = Field(ge=0)
    """Layer of the teacher."""


class DistillConfig(TrainingConfig):
    """Train a student on its teacher's outputs, and on labels where there are any."""

    alpha: float = Field(default=0.9, ge=0, le=1)
    """Weight of the teacher's soft targets; the labels get `1 - alpha`."""
    best_by: BestBy = "divergence"
    """What makes an evaluation the best: `accuracy`; `cross_entropy` (a language model: always that); `divergence`:
    KL(teacher || student), which tells students apart on far fewer rows than accuracy does."""
    temperature: float = Field(default=2.0, gt=0, le=100)
    """Divides teacher's and student's logits before the softmax: higher shows more of the unlikely classes."""
    use_unlabelled: bool = True
    """Learn from the teacher's outputs on the `unlabelled` split too, where the data has one."""
    hidden_state_weight: float = Field(default=0.0, ge=0)
    """Weight of the squared difference of hidden states; 0: off. Above 0 the teacher runs beside the student."""
    layer_map: list[LayerPair] | None = None
    """Layers whose hidden states are matched; none: every student layer, with evenly spaced teacher layers."""
    attention_relation_weight: float = Field(default=0.0, ge=0)
    """Weight of the MiniLM attention relations; 0: off. Above 0 the teacher runs beside the student."""
    relation_layers: LayerPair | None = None
    """Layers whose attention relations are matched; none: the last of each."""
    relation_heads: int | None = Field(default=None, ge=1)
    """Heads that queries, keys and values are regrouped into; none: the teacher's, or the most of them that fit."""

    @property
    def matches_layers(self) -> bool:
        """True when the teacher's layers are learned from, and not its outputs alone."""
        return self.hidden_state_weight > 0 or self.attention_relation_weight > 0

    @model_validator(mode="after")
    def _check_weights(self) -> DistillConfig:
        if self.layer_map is not None and len({pair.student for pair in self.layer_map}) != len(self.layer_map):
            raise ValueError("layer_map names a student layer twice, expected each at most once.")
        if self.layer_map == []:
            raise ValueError("layer_map is empty, expected pairs of layers, or none for the default.")
        return self

    @model_validator(mode="after")
    def _check_signal(self) -> DistillConfig:
        language = self.language
        if language.on_policy.share > 0 and language.signal != "online":
            raise ValueError(
                f"language.on_policy.share is {language.on_policy.share} with the signal '{language.signal}': nothing "
                "was captured of text that the student has yet to write. Choose language.signal = 'online', or share 0."
            )
        if language.on_policy.share > 0 and self.alpha == 0:
            raise ValueError(
                "alpha is 0 with language.on_policy.share above 0, expected more than 0: "
                "text that the student wrote is learned from the teacher alone."
            )
        if self.matches_layers and language.signal != "online":
            raise ValueError(
                f"hidden_state_weight is {self.hidden_state_weight} and attention_relation_weight "
                f"{self.attention_relation_weight} with language.signal '{language.signal}': a captured signal holds "
                "no layers. Choose language.signal = 'online', or set both weights to 0."
            )
        if language.signal == "sampled" and language.divergence != "forward_kl":
            raise ValueError(
                f"language.divergence is '{language.divergence}' with the signal 'sampled', expected 'forward_kl': "
                "only that is unbiased from samples. Choose it, or the signal 'top-k'."
            )
        return self


class TokenCaptureConfig(SequenceConfig):
    """What only the capture of a language model knows."""

    signal: TokenSignalConfig = TokenSignalConfig()
    """What to keep of the teacher's distribution at each token that is learned."""
    batch_size: int = Field(default=4, ge=1)
    """Sequences a forward pass."""
    chunk_tokens: int = Field(default=256, ge=1)
    """Tokens whose logits are in memory at once; changes memory and time, and nothing else."""


class CaptureConfig(StageConfig):
    """Compute a teacher's outputs once and keep them."""

    use_unlabelled: bool = True
    """Run the teacher on the `unlabelled` split too, where the data has one."""
    batch_size: int = Field(default=64, ge=1)
    """Rows a forward pass of a classifier."""
    precision: Precision = "auto"
    """`float32`; `bf16`: matrix products in bf16; `auto`: bf16 where the hardware has it."""
    language: TokenCaptureConfig = TokenCaptureConfig()
    """What only the capture of a language model knows."""


def token_capture_config(config: DistillConfig) -> CaptureConfig:
    """Returns the capture of a language model that a distillation with `config` needs."""
    language = config.language
    signal = TokenSignalConfig(
        kind="sampled" if language.signal == "sampled" else "top-k",
        k=language.k,
        draws=language.draws,
        temperature=config.temperature,
        proposal_exponent=language.proposal_exponent,
    )
    captured = TokenCaptureConfig(
        sequence_length=language.sequence_length, long_documents=language.long_documents, signal=signal
    )
    return CaptureConfig(use_unlabelled=config.use_unlabelled, precision=config.precision, language=captured)
