"""Tables of what the benchmarks of language-model distillation found; they need no torch."""

from __future__ import annotations

from typing import Any

from measuring import format_table

MIB = 1024**2
STUDENTS = {
    "teacher": "teacher, 30 layers",
    "cut": "20 layers, not trained",
    "refitted": "20 layers, refitted on calibration text",
    "distilled": "refitted, then forward KL from the teacher",
    "alone": "refitted, then cross-entropy alone",
}
Content = dict[str, Any]


def distillation_table(content: Content) -> str:
    """Returns a row for each trainer at each size."""
    header = ("trainer", "tokens a step", "tokens/s", "of TRL", "by CPU time", "peak MiB", "of TRL", "first loss")
    rows = [
        (
            row["contender"],
            f"{row['tokens']:,}",
            f"{row['tokens_per_s']:.0f}",
            *(f"{row[name]:.2f}" if name in row else "" for name in ("speed_ratio", "cpu_ratio")),
            f"{row['peak_bytes'] / MIB:,.0f}",
            f"{row['memory_ratio']:.2f}" if "memory_ratio" in row else "",
            f"{row['losses'][0]:.6f}",
        )
        for row in content["rows"]
    ]
    return format_table(header, rows)


def distillation_memory_table(content: Content) -> str:
    """Returns a row for each way to compute the losses over a large vocabulary."""
    header = ("way", "tokens", "dtype", "peak MiB", "of dense", "processor s", "of dense")
    rows = [
        (
            row["contender"],
            f"{row['tokens']:,}",
            row["dtype"],
            f"{row['peak_growth_bytes'] / MIB:,.0f}",
            f"{row['memory_ratio']:.3f}",
            f"{row['cpu_s']:.1f}",
            f"{row['cpu_ratio']:.2f}",
        )
        for row in content["steps"]
    ]
    return format_table(header, rows)


def student_table(content: Content) -> str:
    """Returns a row for each model that was judged."""
    header = ("model", "perplexity", "95 % interval", "KL from the teacher", "minutes")
    rows = [
        (
            STUDENTS[name],
            f"{found['perplexity']:.2f}",
            "{low:.2f} to {high:.2f}".format(**found["perplexity_interval"]),
            "" if found.get("divergence") is None else f"{found['divergence']:.3f}",
            f"{content['training'][name]['minutes']:.1f}" if name in content["training"] else "",
        )
        for name, found in content["quality"].items()
    ]
    return format_table(header, rows)


def long_table(content: Content) -> str:
    """Returns a row for each model and split that was judged."""
    header = ("model", "judged on", "perplexity", "95 % interval", "KL from the teacher", "same likeliest token")
    rows = [
        (
            STUDENTS[name],
            split,
            f"{found['perplexity']:.2f}",
            "{low:.2f} to {high:.2f}".format(**found["perplexity_interval"]),
            "" if found.get("divergence") is None else f"{found['divergence']:.3f}",
            "" if found.get("teacher_agreement") is None else f"{100 * found['teacher_agreement']:.1f} %",
        )
        for name, splits in content["quality"].items()
        for split, found in splits.items()
        if split != "written"
    ]
    return format_table(header, rows)


def long_section(content: Content) -> str:
    """Returns how the long run went, the judgement, and how each model writes."""
    went = [
        f"{STUDENTS[name]}: {how['minutes']:.1f} minutes, {how['tokens_per_s']:,.0f} tokens/s with validation and "
        f"checkpoints, {how['peak_bytes'] / 1e9:.0f} GB of the accelerator."
        for name, how in content["training"].items()
    ]
    written = [(STUDENTS[name], " ".join(splits["written"][0].split())) for name, splits in content["quality"].items()]
    lines = [f"- {name}: *{text}*" for name, text in written]
    return "\n\n".join(
        [
            long_table(content),
            *went,
            "Each goes on from the same four words, the likeliest token each time:",
            "\n".join(lines),
        ]
    )
