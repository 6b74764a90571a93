"""The tables of `runtime_matrix.json`, one for each precision, and what they say of onnxruntime's fastest file."""

from __future__ import annotations

from typing import Any

from measuring import format_table

MIB = 1024**2
BASE = "onnxruntime"
HEADER = [
    "made by, format, runtime",
    "threads",
    "p50 ms",
    "95 % interval",
    "p95 ms",
    "ratio",
    "95 % interval",
    "MB",
    "peak MiB",
    "largest difference",
    "same label",
    "from float32",
    "label of float32",
]

Content = dict[str, Any]


def runtime_matrix_table(content: Content) -> str:
    """Returns a table for each precision, each number of threads by speed, then the fastest and what is left out."""
    rows = content["rows"]
    parts = []
    for precision in dict.fromkeys(row["precision"] for row in rows):
        chosen = [row for row in rows if row["precision"] == precision]
        chosen.sort(key=lambda row: (row["threads"], row["p50_ms"]))
        parts.append(f"{precision}:\n\n{format_table(HEADER, [_line(row) for row in chosen])}")
    parts.append("Fastest under onnxruntime:\n\n" + "\n".join(f"- {line}" for line in fastest(rows)))
    made = [f"- {name}: `{how}`" for name, how in content["peers"]["files"].items()]
    if made:
        parts.append("How the other tools' files were made:\n\n" + "\n".join(made))
    left_out = [f"- {name}: {reason}" for name, reason in content["left_out"].items()]
    if left_out:
        parts.append("Left out:\n\n" + "\n".join(left_out))
    return "\n\n".join(parts)


def fastest(rows: list[Content]) -> list[str]:
    """Returns for each precision and number of threads which file onnxruntime runs fastest, and what comes next.

    Where the interval of the ratio reaches over 1, the two are not told apart.
    """
    lines = []
    for precision, threads in dict.fromkeys((row["precision"], row["threads"]) for row in rows):
        own, others = None, []
        for row in rows:
            if (row["precision"], row["threads"], row["runtime"]) == (precision, threads, BASE):
                if row["ratio"] is None:
                    own = row
                elif row["made_by"] != "edgekit":
                    others.append(row)
        if own is None or not others:
            continue
        next_one = min(others, key=lambda row: float(row["ratio"]))
        low, high = next_one["ratio_interval"]
        told = "edgekit's" if low > 1 else next_one["made_by"] if high < 1 else "not told apart, edgekit's"
        labels = f"{next_one['from_float']['label_agreement']:.1%} of float32's labels"
        lines.append(
            f"{precision}, {threads} thread(s): {told}; {next_one['made_by']} takes {next_one['ratio']:.2f} times as "
            f"long ({low:.2f} to {high:.2f}), {labels}"
        )
    return lines


def _line(row: Content) -> list[str]:
    own, compared = row["from_model"], row["from_float"]
    interval = row["ratio_interval"]
    return [
        f"{row['made_by']}, {row['format']}, {row['runtime']}",
        str(row["threads"]),
        f"{row['p50_ms']:.2f}",
        _interval(row["p50_interval_ms"]),
        f"{row['p95_ms']:.2f}",
        "1" if interval is None else f"{row['ratio']:.2f}",
        "" if interval is None else _interval(interval),
        f"{row['bytes'] / 1e6:.1f}",
        f"{row['peak_rss_bytes'] / MIB:.0f}",
        "" if own is None else f"{own['max_abs_diff']:.1e}",
        "" if own is None else f"{own['label_agreement']:.1%}",
        f"{compared['max_abs_diff']:.1e}",
        f"{compared['label_agreement']:.1%}",
    ]


def _interval(ends: list[float]) -> str:
    return f"{ends[0]:.2f} to {ends[1]:.2f}"
