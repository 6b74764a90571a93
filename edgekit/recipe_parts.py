"""The parts of a recipe: what an export, a stage and the file's top level may hold, each validated by itself.

Whether they fit together is `recipe_checks.py`'s matter.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgekit.benchmarking.stage import BenchConfig, EvaluateConfig
from edgekit.contract import StageConfig
from edgekit.distillation.config import WriteConfig
from edgekit.exporters.check_stage import CheckConfig
from edgekit.formats import FORMATS, FormatName
from edgekit.models.tasks import TaskConfig
from edgekit.target import Budget
from edgekit.tuning.stage import AutotuneConfig


class ExportEntry(BaseModel):
    """One `[[export]]`: a format, how it is written, and the targets it ships to."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: FormatName = "onnx"
    """The file format; `ort`, `openvino`, `litert`, `executorch` and `coreml` hold classifiers, `gguf` language
    models."""
    runtime: str = "onnxruntime"
    """The runtime that ships it: it is checked and measured with this one. Unless given: openvino for `openvino`,
    litert for `litert`, executorch for `executorch`, coreml for `coreml`, llama.cpp for `gguf`."""
    precision: Literal["as-is", "float32", "float16"] = "as-is"
    """`as-is` keeps the student's codes; the others write floats."""
    lowering: Literal["scheme", "measured"] = "scheme"
    """How linears on codes are written: as their scheme asks for, or as is measured to be fastest on the runtime."""
    lengths: list[Annotated[int, Field(ge=1)]] | None = Field(default=None, min_length=1)
    """`litert`: tokens of each signature besides what the model reads at most; left out: 16, 32, 64 and so on."""
    unverified: Literal["refuse", "allow"] = "refuse"
    """`coreml`, which nothing but Apple's systems runs: `allow` bundles it without a check, marked unverified; the
    build's exit code is 4 nevertheless."""
    targets: list[str] = Field(min_length=1)
    """Names of built-in targets, or paths to target files."""
    budget: Budget = Budget()
    """Limits for this export alone; they go before the recipe's and the target's."""

    @model_validator(mode="before")
    @classmethod
    def _choose_runtime(cls, values: Any) -> Any:
        """Fills in the runtime that usually runs the format."""
        written = FORMATS.get(str(values.get("format"))) if isinstance(values, dict) else None
        return values if written is None else {"runtime": written.runtime, **values}

    @model_validator(mode="after")
    def _check_unverified(self) -> Self:
        if self.unverified == "allow" and not FORMATS[self.format].runs_elsewhere:
            known = " or ".join(name for name, row in FORMATS.items() if row.runs_elsewhere)
            raise ValueError(
                f"unverified: found 'allow' for {self.format}, expected it for {known} alone: what runs here is "
                "verified here. Remove it."
            )
        return self


class RecipeStage(BaseModel):
    """One `[[stage]]` after validation."""

    model_config = ConfigDict(frozen=True)

    kind: str
    config: StageConfig


class Frame(BaseModel):
    """The top level of a recipe file; sections are validated by the classes of their stages afterwards."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    description: str = ""
    seed: int = Field(default=0, ge=0, lt=2**32)
    task: TaskConfig
    teacher: dict[str, Any]
    data: dict[str, Any]
    write: WriteConfig | None = None
    stage: list[dict[str, Any]]
    export: list[ExportEntry] = Field(min_length=1)
    budget: Budget = Budget()
    evaluate: EvaluateConfig = EvaluateConfig()
    parity: CheckConfig = CheckConfig()
    bench: BenchConfig = BenchConfig()
    autotune: AutotuneConfig = AutotuneConfig()
