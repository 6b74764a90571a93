"""The stage `check`: the parity gate on a prepared data set."""

from __future__ import annotations

from pydantic import Field

from edgekit.artifact import Artifact, publish
from edgekit.contract import StageConfig, StageContext, StageInputs, lineage_of

_WITHOUT_VNNI = (
    "This processor has no VNNI: signed int8 codes of the full range saturate in its kernel. "
    "Quantize with reduce_range = true."
)


class CheckConfig(StageConfig):
    """On what an export is compared with torch, and how far apart they may be."""

    split: str = "validation"
    """Split of the data whose texts are compared."""
    rows: int = Field(default=128, ge=1)
    """Texts to compare, from the start of the split."""
    batch_sizes: list[int] = Field(default=[1, 8], min_length=1)
    """Every text is compared once in batches of each of these sizes."""
    runtime: str | None = None
    """Runtime to run the export with; by default the one that opens such a file."""
    max_abs_diff: float = Field(default=0.15, ge=0)
    """Largest difference of any logit."""
    mean_abs_diff: float = Field(default=0.02, ge=0)
    """Largest mean difference over all logits."""
    label_agreement: float = Field(default=0.98, ge=0, le=1)
    """Smallest share of texts with the same label."""


def check(inputs: StageInputs, config: CheckConfig, context: StageContext) -> Artifact:
    """Compares an export with the model it was made from; the artifact says whether it passed, and does not raise.

    Raises:
        DataError: the split is missing or empty.
        ModelError: the runtime cannot open the file.
    """
    from edgekit.data.prepared import PreparedData
    from edgekit.data.preprocessing import encode
    from edgekit.errors import DataError
    from edgekit.exporters import parity
    from edgekit.models.tasks import read_task
    from edgekit.models.tokenizer import NASTY_TEXTS, TOKENIZER_FILE, load_bare_tokenizer
    from edgekit.runtimes.protocol import runtime_for

    export, model = inputs.require("model", "check"), inputs.require("reference", "check")
    data = inputs.require("data", "check")
    texts = PreparedData.open(data).split(config.split).texts[: config.rows]
    if not texts:
        raise DataError(f"{data.path}: the split '{config.split}' is empty, expected texts to compare on.")
    max_length = read_task(model).max_length
    tokenizer = load_bare_tokenizer(export.path / TOKENIZER_FILE)
    ids = encode(texts, tokenizer, max_length, allow_empty=True, where=f"split '{config.split}'")
    batches = parity.make_batches(ids, config.batch_sizes, _pad_id(model))
    expected = parity.run_torch(model, export, batches, context.events)
    found = parity.run_export(export, config.runtime, batches, context.events)
    probes = [*texts, *NASTY_TEXTS]
    runtime = runtime_for(export, config.runtime)
    result = parity.judge(
        parity.compare_logits(expected, found),
        parity.tokenizer_differences(model, export, probes, max_length),
        len(probes),
        parity.Thresholds(config.max_abs_diff, config.mean_abs_diff, config.label_agreement),
        f"{runtime.name} {runtime.version()}",
    )
    if not result.passed and _may_saturate(model):
        result = result.model_copy(update={"failures": [*result.failures, _WITHOUT_VNNI]})
    with publish(context.out, kind="parity", lineage=lineage_of("check", inputs, config, context)) as directory:
        (directory / parity.PARITY_FILE).write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return Artifact.open(context.out)


def _pad_id(model: Artifact) -> int:
    import json

    pad_id = json.loads((model.path / "config.json").read_text(encoding="utf-8")).get("pad_token_id")
    return pad_id if isinstance(pad_id, int) else 0


def _may_saturate(model: Artifact) -> bool:
    """Returns whether this processor's int8 kernel may overflow on the model's codes."""
    import platform
    from pathlib import Path

    from edgekit.models.quantized import read_quantization

    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file() or "vnni" in cpuinfo.read_text(encoding="utf-8", errors="replace"):
        return False
    schemes = (read_quantization(model.path) or {}).values()
    return any(scheme.activations == "dynamic-int8" and not scheme.reduce_range for scheme in schemes)
