"""Builds models and data of a few kilobytes in code: real transformers directories, real tokenizers, no network.

    pico_classifier(directory, architecture="bert")    a random transformers directory
    pico_model_artifact(directory)                     the same as a `model` artifact
    pico_data_artifact(directory, rows=200)            labelled text that a pico model can learn, as a `data` artifact

Every architecture has 4 layers, 4 heads, hidden size 32, feed-forward size 64 and room for 64 tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit.artifact import Artifact, Lineage, publish
from edgekit.data.prepared import DataDescription, Split, write_description, write_split
from edgekit.models.quiet import quiet_transformers
from edgekit.models.source import LoadedModel, save_model
from edgekit.models.tasks import TaskConfig

ARCHITECTURES = (
    "bert",
    "distilbert",
    "electra",
    "roberta",
    "xlm-roberta",
    "albert",
    "mpnet",
    "deberta-v2",
    "modernbert",
)
_POSITIVE_TEXT = "good great fine superb lovely brilliant charming funny moving clever warm joyful"
_NEGATIVE_TEXT = "bad awful dull boring weak tedious clumsy shallow tiresome bland cold joyless"
_NEUTRAL_TEXT = (
    "the a an this that film movie story plot scene actor script music ending and but with of in is was it its "
    "very quite rather almost never always some many one two people time world place night day long short old new"
)
POSITIVE, NEGATIVE, NEUTRAL = _POSITIVE_TEXT.split(), _NEGATIVE_TEXT.split(), _NEUTRAL_TEXT.split()
PIECES = ["ing", "ed", "er", "est", "ly", "un", "re", "s", "th", "st", "an", "in", "en"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SYMBOLS = "0123456789.,;:!?'\"()-/&"
MAX_LENGTH = 32
MAX_POSITIONS = 64


def pico_loaded(
    *,
    architecture: str = "bert",
    labels: Sequence[str] = ("negative", "positive"),
    seed: int = 0,
    layers: int = 4,
    max_length: int = MAX_LENGTH,
) -> LoadedModel:
    """Returns a random classifier in memory; the global generator is left as it was."""
    import torch
    from transformers import AutoModelForSequenceClassification

    tokenizer = pico_tokenizer(architecture)
    config = _config(architecture, layers, len(tokenizer), tokenizer, len(labels))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():  # the library starts biases at 0 and norms at 1: hide no mistake
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.tie_weights()
    return LoadedModel(model, tokenizer, TaskConfig(labels=list(labels), max_length=max_length))


def pico_classifier(
    directory: Path,
    *,
    architecture: str = "bert",
    labels: Sequence[str] = ("negative", "positive"),
    seed: int = 0,
    layers: int = 4,
) -> Path:
    """Writes a random classifier as a plain transformers directory (no `task.json`) and returns the directory."""
    loaded = pico_loaded(architecture=architecture, labels=labels, seed=seed, layers=layers)
    save_model(loaded, directory)
    (directory / "task.json").unlink()
    return directory


def pico_encoder(directory: Path, *, architecture: str = "bert", seed: int = 0, layers: int = 4) -> Path:
    """Writes the encoder alone, without a classification head, as sentence models ship it."""
    loaded = pico_loaded(architecture=architecture, seed=seed, layers=layers)
    with quiet_transformers():
        loaded.model.base_model.save_pretrained(directory)
        loaded.tokenizer.save_pretrained(directory)
    return directory


def pico_model_artifact(
    directory: Path,
    *,
    architecture: str = "bert",
    labels: Sequence[str] = ("negative", "positive"),
    seed: int = 0,
    layers: int = 4,
    max_length: int = MAX_LENGTH,
    name: str | None = None,
) -> Artifact:
    """Publishes a random classifier as a `model` artifact below `directory`."""
    loaded = pico_loaded(architecture=architecture, labels=labels, seed=seed, layers=layers, max_length=max_length)
    return publish_model(loaded, directory / (name or f"model-{architecture}-{layers}-{seed}"))


def publish_model(loaded: LoadedModel, out: Path) -> Artifact:
    """Publishes a model in memory as the `model` artifact `out`."""
    with publish(out, kind="model", lineage=Lineage(stage="source")) as staging:
        save_model(loaded, staging)
    return Artifact.open(out, kind="model")


def pico_texts(rows: int, *, seed: int = 0, labels: int = 2) -> tuple[list[str], list[int]]:
    """Returns distinct sentences of 4 to 14 words and their labels, balanced.

    With two labels the words tell: negative (0) or positive (1). With more, the number of positive words does.
    """
    generator = random.Random(seed)
    texts: list[str] = []
    targets: list[int] = []
    seen: set[str] = set()
    while len(texts) < rows:
        label = len(texts) % labels
        words = generator.choices(NEUTRAL, k=generator.randint(3, 11))
        told = 1 + generator.randint(0, 2)
        good = [label == 1] * told if labels == 2 else [index < label for index in range(labels - 1)]
        for is_good in good:
            words.insert(generator.randint(0, len(words)), generator.choice(POSITIVE if is_good else NEGATIVE))
        text = " ".join(words) + generator.choice([".", "!", "", " ..."])
        if text not in seen:
            seen.add(text)
            texts.append(text)
            targets.append(label)
    return texts, targets


def pico_data_artifact(
    directory: Path,
    *,
    rows: int = 200,
    labels: Sequence[str] = ("negative", "positive"),
    seed: int = 0,
    unlabelled: int = 0,
    name: str = "data",
) -> Artifact:
    """Publishes learnable text as a `data` artifact: 60 % train, 20 % validation, 20 % test, and unlabelled rows."""
    texts, targets = pico_texts(rows + unlabelled, seed=seed, labels=len(labels))
    ends = (rows * 6 // 10, rows * 8 // 10, rows)
    splits = [
        Split("train", texts[: ends[0]], targets[: ends[0]]),
        Split("validation", texts[ends[0] : ends[1]], targets[ends[0] : ends[1]]),
        Split("test", texts[ends[1] : ends[2]], targets[ends[1] : ends[2]]),
    ]
    if unlabelled:
        splits.append(Split("unlabelled", texts[rows:], None))
    out = directory / name
    with publish(out, kind="data", lineage=Lineage(stage="source")) as staging:
        for split in splits:
            write_split(staging, split)
        sizes = {split.name: len(split) for split in splits}
        write_description(staging, DataDescription(labels=list(labels), splits=sizes))
    return Artifact.open(out, kind="data")


def pico_tokenizer(architecture: str) -> Any:
    """Returns a tokenizer of the kind and class that `architecture` uses in the wild, made in code."""
    makers = {
        "bert": _wordpiece,
        "distilbert": _wordpiece,
        "electra": _wordpiece,
        "mpnet": _mpnet,
        "roberta": _roberta,
        "modernbert": _modernbert,
        "xlm-roberta": _xlm_roberta,
        "albert": _albert,
        "deberta-v2": _deberta,
    }
    return makers[architecture]()


def _words() -> list[str]:
    return sorted({*POSITIVE, *NEGATIVE, *NEUTRAL} - set(LETTERS))


def _wordpiece_vocabulary(specials: list[str]) -> dict[str, int]:
    continued = [f"##{piece}" for piece in [*LETTERS, *"0123456789", *PIECES]]
    tokens = dict.fromkeys([*specials, *LETTERS, *SYMBOLS, *_words(), *continued])
    return {token: index for index, token in enumerate(tokens)}


def _wordpiece() -> Any:
    from transformers import BertTokenizer

    vocabulary = _wordpiece_vocabulary(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return BertTokenizer(vocab=vocabulary, model_max_length=MAX_POSITIONS)


def _mpnet() -> Any:
    from transformers import MPNetTokenizer

    vocabulary = _wordpiece_vocabulary(["<s>", "<pad>", "</s>", "[UNK]", "<mask>"])
    return MPNetTokenizer(vocab=vocabulary, model_max_length=MAX_POSITIONS)


def _byte_bpe(specials: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Every byte, then the merges that build the words left to right."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*specials, *sorted(ByteLevel.alphabet())]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges: list[tuple[str, str]] = []
    for word in [*(f"Ġ{word}" for word in _words()[::2]), *_words()[1::4]]:
        left = word[0]
        for letter in word[1:]:
            if left + letter not in vocabulary:
                merges.append((left, letter))
                vocabulary[left + letter] = len(vocabulary)
            left += letter
    return vocabulary, merges


def _roberta() -> Any:
    from transformers import RobertaTokenizer

    vocabulary, merges = _byte_bpe(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return RobertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_POSITIONS)


def _modernbert() -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    vocabulary, merges = _byte_bpe(specials)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in specials])
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_max_length=MAX_POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
    )


def _unigram(specials: list[str]) -> list[tuple[str, float]]:
    scored = [(f"▁{word}", -5.0 - index / 100) for index, word in enumerate(_words())]
    pieces = [(piece, -7.0 - index / 100) for index, piece in enumerate(PIECES) if len(piece) > 1]
    single = [(letter, -9.0 - index / 100) for index, letter in enumerate(["▁", *LETTERS, *SYMBOLS])]
    return [*((special, 0.0) for special in specials), *scored, *pieces, *single]


def _xlm_roberta() -> Any:
    from transformers import XLMRobertaTokenizer

    vocabulary = [*_unigram(["<s>", "<pad>", "</s>", "<unk>"]), ("<mask>", 0.0)]
    return XLMRobertaTokenizer(vocab=vocabulary, model_max_length=MAX_POSITIONS)


def _albert() -> Any:
    from transformers import AlbertTokenizer

    vocabulary = _unigram(["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"])
    return AlbertTokenizer(vocab=vocabulary, model_max_length=MAX_POSITIONS)


def _deberta() -> Any:
    from transformers import DebertaV2Tokenizer

    vocabulary = [*_unigram(["[PAD]", "[CLS]", "[SEP]", "[UNK]"]), ("[MASK]", 0.0)]
    return DebertaV2Tokenizer(vocab=vocabulary, unk_id=3, model_max_length=MAX_POSITIONS)


def _config(architecture: str, layers: int, vocabulary: int, tokenizer: Any, labels: int) -> Any:
    from transformers import AutoConfig

    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": MAX_POSITIONS,
        "pad_token_id": tokenizer.pad_token_id,
        "num_labels": labels,
    }
    if architecture == "distilbert":
        renamed = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
        renamed |= {"intermediate_size": "hidden_dim"}
        settings = {renamed.get(key, key): value for key, value in settings.items()}
    extra: dict[str, dict[str, Any]] = {
        "bert": {"type_vocab_size": 2},
        "electra": {"embedding_size": 16},
        # These count positions from the padding id on.
        "roberta": {"type_vocab_size": 1, "max_position_embeddings": MAX_POSITIONS + 2},
        "xlm-roberta": {"type_vocab_size": 1, "max_position_embeddings": MAX_POSITIONS + 2},
        "mpnet": {"max_position_embeddings": MAX_POSITIONS + 2},
        "albert": {"embedding_size": 16},
        "deberta-v2": {
            "relative_attention": True,
            "position_buckets": 8,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "type_vocab_size": 0,
        },
        "modernbert": {
            "local_attention": 16,
            "global_attn_every_n_layers": 2,
            "cls_token_id": tokenizer.cls_token_id,
            "sep_token_id": tokenizer.sep_token_id,
            "bos_token_id": tokenizer.cls_token_id,
            "eos_token_id": tokenizer.sep_token_id,
        },
    }
    if architecture in ("roberta", "xlm-roberta", "mpnet"):
        settings |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return AutoConfig.for_model(architecture, **(settings | extra.get(architecture, {})))
