"""`edgekit init`: a recipe to start from, with every choice explained."""

from __future__ import annotations

from pathlib import Path

from edgekit.artifact import write_atomically
from edgekit.errors import UsageError

_TEMPLATE = """\
# An edgekit recipe. Build it with: edgekit build {file}
name = "{name}"
seed = 0

[task]
kind = "text-classification"
labels = ["negative", "positive"]       # in the order of the model's outputs
max_length = 128                        # longer texts are cut, everywhere alike

[teacher]
source = "path/to/a/transformers/model" # or a hub id, or pkg:NAME/path

[data]
source = "reviews.csv"                  # .csv .tsv .jsonl .parquet .txt, a hub id, or pkg:NAME/path; beside this file
columns = {{ text = "text", label = "label" }}
# label_map = {{ "0" = "negative", "1" = "positive" }}

[[stage]]
kind = "finetune"                       # leave out when the teacher knows the task already
epochs = 3

[[stage]]
kind = "prune"
layers = 3

[[stage]]
kind = "distill"
epochs = 3

[[stage]]
kind = "quantize"
bits = 8

[[export]]
format = "onnx"
targets = ["laptop-x86", "pixel-8"]     # `edgekit targets` lists them; a path to your own .toml works too

[budget]
# Largest loss of accuracy against the teacher: 0.05 is 5 points. The whole 95 % interval of the change must keep it,
# which reaches about 1.96 * sqrt(share of the test rows where the two differ / test rows) to either side. Where they
# differ on 5 % of them, 0.05 needs about 120 test rows, 0.02 about 550 and 0.01 about 2,000. A tenth of the data are
# test rows.
quality_drop = 0.05
"""


def init(path: Path = Path("recipe.toml")) -> int:
    """Write a recipe to start from.

    Parameters
    ----------
    path
        File to write; must not exist.
    """
    if path.suffix != ".toml":
        raise UsageError(f"{path}: a recipe's name ends in .toml.")
    if path.exists():
        raise UsageError(f"{path}: already exists. Choose another name.")
    write_atomically(path, _TEMPLATE.format(name=path.stem.lower().replace(" ", "-").replace("_", "-"), file=path))
    print(f"{path}: written. Edit the teacher and the data, then run: edgekit build {path}")
    return 0
