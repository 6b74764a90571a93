"""Tables of the result files, for the terminal and for README.md.

Run as a program it rewrites the results in benchmarks/README.md from benchmarks/results/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from distillation_tables import distillation_memory_table, distillation_table, long_section, student_table
from matrix_table import runtime_matrix_table
from measuring import COMMITTED, format_table, read_result, say

README = Path(__file__).resolve().parent / "README.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
MIB = 1024**2
MODELS = {
    "teacher": "teacher",
    "student": "distilled student",
    "int8": "int8 student in torch",
    "exported": "int8 export in onnxruntime",
    "untaught": "student without the teacher",
}
CASES = {"same": "its own copy", "10 % more": "10 % more layers"}
SPLITS = {"test": "Rotten Tomatoes, test split", "imdb": "IMDB, held out", "test + imdb": "Both together"}

Content = dict[str, Any]


def latency_table(content: Content) -> str:
    """Returns one row a contender, and where the time of edgekit's export goes."""
    header = [
        "1 x 64 tokens, one thread",
        "p50 ms",
        "95 % interval",
        "p95 ms",
        "ratio",
        "95 % interval",
        "MB",
        "peak MiB",
    ]
    rows = [
        [
            row["name"],
            f"{row['p50_ms']:.2f}",
            _interval(row["p50_interval_ms"], ".2f"),
            f"{row['p95_ms']:.2f}",
            f"{row['ratio']:.2f}",
            _interval(row["ratio_interval"], ".2f"),
            f"{row['model_bytes'] / 1e6:.1f}",
            f"{row['peak_rss_bytes'] / MIB:.0f}",
        ]
        for row in content["contenders"]
    ]
    operators = content["operators_ms"]
    total = sum(operators.values())
    shares = ", ".join(f"{name} {time:.2f}" for name, time in list(operators.items())[:8])
    return (
        f"{format_table(header, rows)}\n\n"
        f"Where edgekit's time goes, ms under onnxruntime's profiler, {total:.2f} in all: {shares}."
    )


def accuracy_tables(content: Content) -> str:
    """Returns a table of accuracies and one of paired differences for each test set."""
    parts = []
    for split, found in content["splits"].items():
        title = f"{SPLITS.get(split, split)}: {found['rows']:,} rows over {len(content['seeds'])} seed(s)"
        header = ["accuracy, %", "all", "95 % interval", *(f"seed {seed}" for seed in content["seeds"])]
        accuracies = [
            [MODELS[name], *_percent(row["accuracy"], row["interval"], row["by_seed"], "")]
            for name, row in sorted(found["accuracies"].items(), key=lambda item: list(MODELS).index(item[0]))
        ]
        differences = [
            [_difference_name(name), *_percent(row["difference"], row["interval"], row["by_seed"], "+")]
            for name, row in found["differences"].items()
        ]
        changes = ["difference, points", *header[1:]]
        parts.append(f"{title}\n\n{format_table(header, accuracies)}\n\n{format_table(changes, differences)}")
    return "\n\n".join(parts)


def startup_table(content: Content) -> str:
    """Returns a row for `--help` and one for an unchanged rebuild."""
    names = {"help": "`edgekit --help`", "rebuild": "rebuild, nothing changed"}
    header = ["fresh process", "p50 ms", "95 % interval", "limit ms", "runs"]
    rows = [
        [
            name,
            f"{found['p50_ms']:.0f}",
            _interval(found["p50_interval_ms"], ".0f"),
            f"{found['limit_ms']:.0f}",
            str(len(found["samples_ms"])),
        ]
        for key, name in names.items()
        for found in [content[key]]
    ]
    return format_table(header, rows)


DECODING = ["context", "prefill/s", "ratio", "95 % interval", "decode/s", "ratio", "95 % interval", "of the roofline"]
DECODING += ["peak MiB"]


def decoding_table(content: Content) -> str:
    """Returns one row for each model in its runtime and each number of tokens before the answer."""
    rows = [[content["names"][place], *figures] for place, figures in _decoding_figures(content)]
    return format_table(["", *DECODING], rows)


def quantization_speed_table(content: Content) -> str:
    """Returns one row for each kind of codes in a runtime: the file's size beside the speeds."""
    rows = [
        [content["names"][place], f"{content['bytes'][place] / 1e6:.1f}", *figures]
        for place, figures in _decoding_figures(content)
    ]
    return format_table(["", "MB", *DECODING], rows)


def _decoding_figures(content: Content) -> Iterator[tuple[int, list[str]]]:
    """Yields the place of each model and what `DECODING` names, for each number of tokens before the answer."""
    ratios = {(ratio["measurement"], ratio["context_tokens"]): ratio for ratio in content["ratios"]}
    for place, measured in enumerate(content["measurements"]):
        for depth in measured["depths"]:
            ratio = ratios.get((place, depth["context_tokens"]))
            share = depth["roofline_share"]
            yield (
                place,
                [
                    str(depth["context_tokens"]),
                    f"{depth['prefill_tokens_per_s']:.0f}",
                    *_speed_ratio(ratio, "first_token_time"),
                    f"{depth['decode_tokens_per_s']:.1f}",
                    *_speed_ratio(ratio, "token_time"),
                    "" if share is None else f"{share:.0%}",
                    f"{measured['peak_rss_bytes'] / MIB:.0f}",
                ],
            )


def quantization_table(content: Content) -> str:
    """Returns one row a way to quantize, by bits; seconds on another processor than the last row's are marked."""
    processors = list(dict.fromkeys(row.get("processor", "") for row in reversed(content["rows"])))
    header = ["linears", "MB", "PPL BoolQ", "KL mean", "KL p99", "top-1 %", "PPL XSum", "KL mean", "s"]
    rows = []
    for row in sorted(content["rows"], key=lambda row: (not row["reordered"], -row["bits"], row["bytes"])):
        near, far = row["splits"]["BoolQ"], row["splits"]["XSum"]
        figures = [f"{row['bytes'] / 1e6:.1f}", f"{near['perplexity']:.2f}", f"{near['kl_mean']:.4f}"]
        figures += [f"{near['kl_p99']:.3f}", f"{100 * near['top1_agreement']:.1f}"]
        mark = "*" * processors.index(row.get("processor", ""))
        seconds = f"{row['quantize_s']:.0f}{mark}"
        rows.append([row["name"], *figures, f"{far['perplexity']:.2f}", f"{far['kl_mean']:.4f}", seconds])
    notes = [f"{'*' * place}: on {processor}." for place, processor in enumerate(processors) if place]
    return "\n\n".join([format_table(header, rows), *notes])


def verdicts_table(content: Content) -> str:
    """Returns one row for each case, and how far the ratios of a model against itself spread over repeats."""
    names = ("better", "worse", "no difference", "inconclusive")
    header = ["the model against", "comparisons", *names, "median ratio", "lowest", "highest", "widest interval"]
    rows = []
    for case, found in content["cases"].items():
        ratios, counted = found["ratios"], [found["verdicts"].count(name) for name in names]
        widest = max(high - low for low, high in found["intervals"])
        figures = [f"{median(ratios):.3f}", f"{min(ratios):.3f}", f"{max(ratios):.3f}", f"{widest:.3f}"]
        rows.append([CASES[case], str(len(ratios)), *map(str, counted), *figures])
    return format_table(header, rows)


def overhead_table(content: Content) -> str:
    """Returns one row for each fresh process: the harness's time of an empty model, and the runtime's own."""
    header = ["p50 of an empty model", "harness us", "onnxruntime us", "above us", "harness, no profiler us"]
    names = ("harness_us", "runtime_us", "above_us", "without_profiler_us")
    rows = [
        [f"process {number}", *(f"{found[name]:.1f}" for name in names)]
        for number, found in enumerate(content["processes"], start=1)
    ]
    ends = _interval(content["above_interval_us"], ".1f")
    mean = f"{content['above_us']:.1f} us above ({ends}); the limit is {content['limit_us']:.0f} us."
    return f"{format_table(header, rows)}\n\nOn average {mean}"


SECTIONS: dict[str, tuple[str, Callable[[Content], str]]] = {
    "latency": ("Latency", latency_table),
    "runtime_matrix": ("One student in every format, precision and runtime", runtime_matrix_table),
    "accuracy": ("Accuracy", accuracy_tables),
    "startup": ("Startup", startup_table),
    "distillation_bf16": ("A step of distillation in bf16, against TRL", distillation_table),
    "distillation_bf16_cuda": ("A step of distillation on a GPU, against TRL", distillation_table),
    "distillation": ("A step of distillation in float32, against TRL", distillation_table),
    "distillation_memory": ("Losses over a large vocabulary", distillation_memory_table),
    "decoding": ("Writing with 4 bits, against onnxruntime-genai's builder and llama.cpp", decoding_table),
    "quantization": ("Quantizing to 8, 4, 3 and 2 bits", quantization_table),
    "quantization_speed": ("Speed at 8, 4, 3 and 2 bits", quantization_speed_table),
    "harness_overhead": ("What the harness adds to a call", overhead_table),
    "verdicts": ("Verdicts on a noisy machine", verdicts_table),
    "student_language_model": ("A student after a short run", student_table),
    "long_distillation": ("A student after 50 million tokens", long_section),
}


def results_text(results: Path) -> str:
    """Returns the sections of every benchmark; one that was never run says so."""
    parts = []
    for name, (title, table) in SECTIONS.items():
        content = read_result(results, name)
        if content is None:
            parts.append(f"### {title}\n\nNot measured yet.")
            continue
        machine = content["machine"]
        features = ", ".join(machine["cpu_features"])
        versions = ", ".join(f"{package} {version}" for package, version in content["versions"].items() if version)
        accelerator = f"{content['accelerator']} with " if content.get("accelerator") else ""
        where = (
            f"{accelerator}{machine['cpu']}, {machine['cores']} cores, {machine['architecture']} ({features}); "
            f"{machine['operating_system']}, Python {machine['python']}; {versions}; {content['date']}, "
            f"commit {content['commit']}. File: `results/{name}.json`."
        )
        parts.append(f"### {title}\n\n{table(content)}\n\nMeasured on {where}")
    return "\n\n".join(parts)


def rewrite_readme(results: Path) -> None:
    """Replaces what stands between the two marks in README.md."""
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n\n{results_text(results)}\n\n{END}{after}", encoding="utf-8")


def _interval(ends: list[float], spelling: str) -> str:
    return f"{ends[0]:{spelling}} to {ends[1]:{spelling}}"


def _speed_ratio(ratio: Content | None, time: str) -> list[str]:
    """Returns a ratio of speeds and its interval, from a ratio of times; None is of the model compared with."""
    if ratio is None:
        return ["1", ""]
    ends = ratio[f"{time}_interval"]
    return [f"{1 / ratio[time]:.2f}", _interval([1 / ends["high"], 1 / ends["low"]], ".2f")]


def _percent(value: float, ends: list[float], by_seed: list[float], sign: str) -> list[str]:
    spelling = f"{sign}.1f"
    shown = [100 * end for end in ends]
    return [f"{100 * value:{spelling}}", _interval(shown, spelling), *(f"{100 * seed:{spelling}}" for seed in by_seed)]


def _difference_name(name: str) -> str:
    one, _, other = name.partition(" - ")
    return f"{MODELS[one]} against {MODELS[other]}"


if __name__ == "__main__":
    rewrite_readme(COMMITTED)
    say(f"wrote {README}")
