"""Targets: TOML files that name a device, what it can do, and what ships there. No target is known to Python.

Built-in targets live in `targets/`; any path to a `.toml` file works as well.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from edgekit.errors import TargetError
from edgekit.spelling import did_you_mean
from edgekit.validation import explain

READERS_OF_ONNX = ("onnxruntime", "onnxruntime-web", "onnxruntime-web-node")
"""Runtimes of one source and one numbering: what a version of the first reads, that version of the others reads."""

FormFactor = Literal["phone", "tablet", "laptop", "desktop", "single-board", "browser", "server"]


class TargetPart(BaseModel):
    """Base of the parts of a target file."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Figure(TargetPart):
    """A number and where it comes from."""

    value: float = Field(gt=0)
    """In the unit that the figure's name ends with."""
    source: str = Field(min_length=4)
    """Publication, data sheet or measurement that the number is from."""


class RuntimeOnTarget(TargetPart):
    """A runtime that the device ships, and its ceilings."""

    name: str
    """Name of a runtime, for example `onnxruntime`. A recipe ships only those that edgekit runs."""
    version: str
    """Oldest version that the target promises."""
    opset: int | None = Field(default=None, ge=7, le=30)
    """Highest ONNX operator set that this version reads; None for a runtime of another format."""
    ir_version: int | None = Field(default=None, ge=3, le=20)
    """Highest ONNX IR version that this version reads; None for a runtime of another format."""
    threads: int = Field(default=1, ge=1, le=256)
    """Threads that an app should give it."""

    def is_older_than(self, version: str) -> bool:
        """Returns whether the version that is promised comes before `version`."""
        return version_numbers(self.version) < version_numbers(version)


def version_numbers(version: str) -> tuple[int, ...]:
    """Returns the numbers of a version, by which versions are in order: (1, 23, 2)."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


class Budget(TargetPart):
    """Limits that an export must keep; None leaves a quantity free."""

    file_bytes: int | None = Field(default=None, gt=0)
    """Largest size of the model files."""
    peak_memory_bytes: int | None = Field(default=None, gt=0)
    """Largest VmHWM of the process that runs the model."""
    p95_ms: float | None = Field(default=None, gt=0)
    """Classifiers: largest 95th percentile of latency, in the recipe's scenario."""
    quality_drop: float | None = Field(default=None, ge=0, le=1)
    """Classifiers: largest loss of accuracy against the teacher, as a share (0.01 is one point)."""
    first_token_ms: float | None = Field(default=None, gt=0)
    """Language models: largest median time from the prompt to the first token, at the deepest context measured."""
    decode_tokens_per_s: float | None = Field(default=None, gt=0)
    """Language models: least tokens a second after the first, at the deepest context measured."""
    perplexity_ratio: float | None = Field(default=None, gt=0)
    """Language models: largest perplexity over the teacher's (1.1 is a tenth more)."""
    answered: float | None = Field(default=None, gt=0, lt=1)
    """Language models: least share of conversations' prompts that get an answer at all, 0 to 1."""


class Target(TargetPart):
    """A device or class of devices."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """The file's name without `.toml`."""
    description: str
    """The device in a few words, as reports name it."""
    form_factor: FormFactor
    """What it is: by this, and by the system, a bundle says how an app is built there."""
    operating_system: Literal["android", "ios", "linux", "macos", "windows"] | None = None
    """System that apps are built for; a phone or a tablet must name it (iPadOS is `ios`). None: any."""
    architecture: Literal["x86_64", "aarch64", "wasm32"]
    """Instruction set family."""
    cpu: str
    """Processor or system on chip."""
    cpu_features: list[str] = []
    """Vector extensions that kernels may use, as Linux names them in /proc/cpuinfo."""
    host_pattern: str | None = None
    """Regular expression for what a machine must call itself (device or processor) for its latency to count as this
    target's. None: any machine of the architecture with all of `cpu_features` counts, as for a class of devices."""
    memory_bytes: int = Field(gt=0)
    """Physical memory."""
    memory_bandwidth_bytes_per_s: Figure
    """Peak memory bandwidth."""
    peak_int8_operations_per_s: Figure
    """Peak int8 operations per second of one core (a multiply and an add are two operations)."""
    peak_float32_operations_per_s: Figure
    """Peak float32 operations per second of one core."""
    runtimes: list[RuntimeOnTarget] = Field(min_length=1)
    """Runtimes that an app can bring along there, or that the device has."""
    bundle_bytes: int | None = Field(default=None, gt=0)
    """Largest download that the platform's store allows, if any."""
    budget: Budget = Budget()
    """Limits used where the recipe gives none."""

    @field_validator("runtimes")
    @classmethod
    def _check_ceilings(cls, runtimes: list[RuntimeOnTarget]) -> list[RuntimeOnTarget]:
        for runtime in runtimes:
            if runtime.name in READERS_OF_ONNX and (runtime.opset is None or runtime.ir_version is None):
                raise ValueError(
                    f"found {runtime.name} without opset and ir_version, expected both: exports keep to them."
                )
        return runtimes

    @field_validator("host_pattern")
    @classmethod
    def _check_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"found {pattern!r}, expected a regular expression ({error}).") from error
        return pattern

    @model_validator(mode="after")
    def _check_system(self) -> Self:
        if self.form_factor in ("phone", "tablet") and self.operating_system not in ("android", "ios"):
            raise ValueError(
                f"operating_system: found {self.operating_system or 'none'} for a {self.form_factor}, expected android "
                "or ios: apps are built otherwise for each."
            )
        return self

    def runtime(self, name: str) -> RuntimeOnTarget:
        """Returns the entry for the runtime called `name`.

        Raises:
            TargetError: the target does not ship it.
        """
        for runtime in self.runtimes:
            if runtime.name == name:
                return runtime
        known = ", ".join(runtime.name for runtime in self.runtimes)
        raise TargetError(f"target '{self.name}': does not ship the runtime '{name}'; it ships: {known}.")


def target_directory() -> Path:
    """Returns the directory of built-in targets: inside the wheel, or the checkout's `targets/`."""
    inside_wheel = Path(__file__).parent / "targets"
    return inside_wheel if inside_wheel.is_dir() else Path(__file__).parent.parent / "targets"


def list_targets() -> list[str]:
    """Returns the names of the built-in targets, sorted."""
    return sorted(path.stem for path in target_directory().glob("*.toml"))


def load_target(name_or_path: str) -> Target:
    """Returns the built-in target of that name, or the one in the TOML file at that path.

    Raises:
        TargetError: unknown name, unreadable file, or an impossible value (naming file and key).
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        if name_or_path not in list_targets():
            raise TargetError(
                f"target '{name_or_path}' is unknown.{did_you_mean(name_or_path, list_targets())} "
                f"Built in: {', '.join(list_targets())}. A path to a .toml file works too."
            )
        path = target_directory() / f"{name_or_path}.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TargetError(f"{path}: cannot be read ({error.strerror}). Check the path.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TargetError(f"{path}: is not valid TOML: {error}.") from error
    try:
        target = Target.model_validate(values)
    except ValidationError as error:
        raise TargetError(explain(error, Target, str(path))) from error
    if target.name != path.stem:
        raise TargetError(f"{path}: name: found '{target.name}', expected '{path.stem}', the file's name.")
    return target


def target_schema() -> str:
    """Returns the JSON Schema of a target file, the content of `docs/target.schema.json`."""
    schema = Target.model_json_schema()
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "edgekit target"}
    return json.dumps({**head, **{key: value for key, value in schema.items() if key != "title"}}, indent=2) + "\n"
