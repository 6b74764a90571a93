"""How far an exported file is from torch running the same weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgekit.results.base import Result

Driving = Literal["exact-past", "shared-buffer", "engine"]
"""How a session is driven: with past keys and values as long as the past, with one buffer for past and present, or by
an engine with a cache of its own."""


class TokenizerVector(Result):
    """One text and the ids that any tokenizer of the bundle must give."""

    text: str
    """The input text."""
    input_ids: list[int]
    """Token ids with special tokens, truncated to the model's length."""


class Emulation(Result):
    """The emulated processor that ran an export: it computes what the real one does, and tells nothing of its time."""

    device: str
    """As a person asked for it, for example `qemu:cortex-a76`."""
    cpu: str
    """The model of the processor."""
    architecture: str
    """Its instruction set."""
    cpu_features: list[str]
    """Vector extensions that the kernels could choose by."""
    emulator: str
    """The emulator and its version."""


class Parity(Result):
    """How far an exported file, run by the runtime that ships, is from torch running the same weights."""

    runtime: str
    """The runtime and its version."""
    emulation: Emulation | None = None
    """What it ran on, where that was no processor of this machine."""
    rows: int
    """Texts compared."""
    max_abs_diff: float
    """Largest absolute difference of any logit."""
    mean_abs_diff: float
    """Mean absolute difference over all logits."""
    median_abs_diff: float | None = None
    """Median over the texts run of each one's largest absolute difference."""
    own_max_abs_diff: float | None = None
    """The same maximum between torch and torch with one part in a million of noise; None where nothing is rounded."""
    own_mean_abs_diff: float | None = None
    """The same mean between torch and torch disturbed."""
    own_median_abs_diff: float | None = None
    """The same median between torch and torch disturbed."""
    share_above_own: float | None = None
    """Share of texts that differ clearly more than torch and torch disturbed do on them, 0 to 1; about a quarter by
    chance, nearly all when the export computes something else."""
    label_agreement: float
    """Share of texts with the same label, 0 to 1."""
    tokenizer_mismatches: int
    """Texts that the bundled tokenizer file encodes differently from transformers."""
    tokenizer_texts: int
    """Texts that both tokenizers encoded."""
    passed: bool
    """True when every threshold held."""
    failures: list[str] = []
    """One sentence for each threshold that did not hold."""
    model_digest: str = ""
    """Digest of the export that was compared."""

    @property
    def file_differs(self) -> bool:
        """Returns whether the file computes something else than torch."""
        return not self.passed


class LanguageParity(Result):
    """How far an exported language model, run by the runtime that ships, is from torch running the same weights.

    Logits are compared on real text, token by token; then both write on from prompts, each fed its own tokens.
    """

    runtime: str
    """The runtime and its version."""
    driving: Driving
    """How the session was driven: an export can be right one way and wrong another."""
    documents: int
    """Texts compared."""
    tokens: int
    """Positions of those texts whose logits were compared."""
    max_abs_diff: float
    """Largest absolute difference of any logit."""
    mean_abs_diff: float
    """Mean absolute difference over all logits."""
    divergence: float
    """Mean KL(torch || export), nats a token."""
    divergence_p99: float
    """99th percentile over tokens of the same."""
    top1_agreement: float = Field(ge=0, le=1)
    """Share of tokens for which both hold the same token most likely, 0 to 1."""
    own_divergence: float | None = None
    """Mean KL between torch and torch with activations rounded as the runtime rounds them; None where it does not."""
    own_divergence_p99: float | None = None
    """99th percentile over tokens of the same."""
    own_top1_agreement: float | None = None
    """Share of tokens for which torch and torch so rounded hold the same token most likely, 0 to 1."""
    greedy_prompts: int
    """Prompts that both wrote on from, always choosing the likeliest token; 0 when none was tried."""
    greedy_tokens: int
    """Tokens written after each prompt."""
    greedy_equal_tokens: float
    """Mean over the prompts of how many tokens are equal before the first that differs, at most `greedy_tokens`."""
    greedy_equal_share: float = Field(ge=0, le=1)
    """Share of the prompts after which all tokens are equal, 0 to 1."""
    tokenizer_mismatches: int
    """Texts that the runtime's tokenizer encodes differently from transformers."""
    tokenizer_texts: int
    """Texts that both tokenizers encoded."""
    template_mismatches: int
    """Conversations that the runtime's chat template renders differently from transformers."""
    template_texts: int
    """Conversations that both rendered; 0 where the model has no chat template, or the runtime none of its own."""
    passed: bool
    """True when every threshold held."""
    failures: list[str] = []
    """One sentence for each threshold that did not hold."""
    text_failures: list[str] = []
    """Those of `failures` that are about the runtime's own tokenizer and chat template, not about the file."""
    model_digest: str = ""
    """Digest of the export that was compared."""

    @property
    def file_differs(self) -> bool:
        """Returns whether the file computes something else than torch."""
        return bool(set(self.failures) - set(self.text_failures))


class Unverified(Result):
    """An export that was not compared with torch, for the runtime that ships it is not here. It has not passed."""

    runtime: str
    """Name of the runtime."""
    reason: str
    """What is missing, and how to install it."""
    passed: Literal[False] = False
    """Nothing passes unseen."""
    failures: list[str] = []
    """The reason, as a sentence."""
    model_digest: str = ""
    """Digest of the export that was not compared."""

    @property
    def file_differs(self) -> bool:
        """Returns False: nobody looked."""
        return False


AnyParity = Parity | LanguageParity | Unverified
