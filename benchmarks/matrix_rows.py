"""What the runtime matrix measures: files of one student, each in each runtime, and how far each is from torch.

Formats come from edgekit's own table, runtimes from what is installed. What cannot be written, opened or run is left
out with its reason. How anything is measured is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from measuring import say
from onnx_peers import PeerFile

from edgekit.artifact import Artifact
from edgekit.cache import Cache
from edgekit.circumstances import run_with, written_with
from edgekit.contract import StageInputs
from edgekit.errors import EdgekitError, ParityError
from edgekit.exporters.check_stage import CheckConfig
from edgekit.exporters.parity import Batch, Differences, make_batches, read_parity, run
from edgekit.exporters.stage import ExportConfig
from edgekit.formats import FORMATS
from edgekit.results import Parity
from edgekit.runtimes.protocol import OwnProcess, Runtime, SessionConfig, available_runtimes_for, get_runtime

if TYPE_CHECKING:
    from edgekit.exporters.parity import Logits

OWN = "edgekit"
BASE_FORMAT, BASE_RUNTIME = "onnx", "onnxruntime"
LENGTH = 64
TASK = "text-classification"
LEAST_AGREEMENT = 0.98
"""Share of texts for which a float32 file must find torch's label: below it, it is another model."""


@dataclass(frozen=True)
class Agreement:
    """How far logits are from a torch model's on the same texts."""

    max_abs_diff: float
    label_agreement: float
    """Share of texts with the same label, 0 to 1."""


@dataclass(frozen=True)
class Row:
    """One file in one runtime."""

    precision: str
    made_by: str
    written: str
    """The format, and what is special about it."""
    artifact: Artifact
    runtime: Runtime
    from_model: Agreement | None
    """Against the torch model that the file was made from; None for torch itself."""
    from_float: Agreement
    """Against the float32 student in torch."""

    @property
    def name(self) -> str:
        """Returns what people call it."""
        return f"{self.precision}, {self.made_by}, {self.written}, {self.runtime.name}"

    @property
    def is_base(self) -> bool:
        """True for the file that edgekit ships in onnxruntime, which the others of its precision are compared with."""
        return (self.made_by, self.written, self.runtime.name) == (OWN, BASE_FORMAT, BASE_RUNTIME)


@dataclass
class LeftOut:
    """What is no row, and why; told when it is found."""

    hidden: Sequence[Path] = ()
    """Directories that a reason must not name: it goes into a file that is published."""
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, reason: str) -> None:
        """Notes one."""
        for directory in self.hidden:
            reason = reason.replace(f"{directory}/", "").replace(str(directory), directory.name)
        self.reasons[name] = reason
        say(f"left out: {name}: {reason}")


@dataclass(frozen=True)
class FloatReference:
    """The float32 student in torch, and the texts that everything is compared with it on."""

    student: Artifact
    data: Artifact
    texts: int = 128
    """Texts of the validation split to compare."""

    @cached_property
    def batches(self) -> list[Batch]:
        """Validation texts, one a call, every second one padded."""
        from edgekit.data.prepared import PreparedData
        from edgekit.data.preprocessing import encode
        from edgekit.models.tasks import read_task
        from edgekit.models.tokenizer import TOKENIZER_FILE, load_bare_tokenizer
        from edgekit.runtimes.protocol import pad_token_id

        texts = PreparedData.open(self.data).split("validation").texts[: self.texts]
        length = read_task(self.student).max_length
        ids = encode(texts, load_bare_tokenizer(self.student.path / TOKENIZER_FILE), length, allow_empty=True)
        return make_batches(ids, [1], pad_id=pad_token_id(self.student), max_length=length, seed=0)

    @cached_property
    def logits(self) -> list[Logits]:
        """What torch makes of each batch."""
        session = get_runtime("torch").open(self.student, SessionConfig())
        return [run(session, batch) for batch in self.batches]

    def compare(self, artifact: Artifact, runtime: Runtime) -> Agreement:
        """Returns how far a file in a runtime is from the float32 student.

        Raises:
            ModelError: the runtime cannot open the file.
            ValueError: a logit is no number.
        """
        session, differences = runtime.open(artifact, SessionConfig()), Differences()
        for expected, batch in zip(self.logits, self.batches, strict=True):
            differences.add(expected, run(session, batch))
        if not differences.finite:
            raise ValueError("found a logit that is no number, expected numbers.")
        return Agreement(differences.largest, differences.agreement)


def exports(formats: Sequence[str]) -> Iterator[tuple[str, ExportConfig]]:
    """Yields the name and configuration of every export, the one that edgekit ships first."""
    for name, row in FORMATS.items():
        if TASK in row.tasks and name in formats:
            lengths = [LENGTH] if row.fixed_lengths else None
            yield name, ExportConfig.model_validate({"format": name, "lengths": lengths})
    if BASE_FORMAT in formats:
        yield "onnx, standard operators", ExportConfig(dialect="standard")


def runtimes_of(written: str, kind: str) -> list[Runtime]:
    """Returns the runtimes at hand for an export.

    Programs such as Node.js and browsers run the file that edgekit ships alone: in them the other ONNX files use the
    same kernels, and each row costs a process for every set.
    """
    found = available_runtimes_for(kind)
    return [runtime for runtime in found if written == BASE_FORMAT or not isinstance(runtime, OwnProcess)]


@dataclass(frozen=True)
class RowMaker:
    """Makes rows; stages run through `cache`, and what is no row goes to `left_out`."""

    reference: FloatReference
    cache: Cache
    left_out: LeftOut
    check: CheckConfig = field(default_factory=CheckConfig)
    """What must hold of edgekit's files."""
    formats: tuple[str, ...] = tuple(FORMATS)
    """Which are written."""

    def own_rows(self, students: dict[str, Artifact], by_channel: dict[str, Artifact] | None = None) -> list[Row]:
        """Returns edgekit's files, by precision, that passed their check in a runtime, and the students in torch.

        `by_channel` holds students of the same precision for formats that cannot hold codes in groups.
        """
        rows: list[Row] = []
        for precision, model in students.items():
            for written, config in exports(self.formats):
                made = self._exported(precision, model, written, config)
                if not made and by_channel and precision in by_channel:
                    made = self._exported(precision, by_channel[precision], f"{written}, by channel", config)
                rows += made
            torch = get_runtime("torch")
            rows.append(Row(precision, OWN, "torch", model, torch, None, self.reference.compare(model, torch)))
        return rows

    def peer_rows(self, files: Sequence[PeerFile]) -> list[Row]:
        """Returns the files of other tools in onnxruntime; they were all made from the float32 student."""
        rows = []
        for file in files:
            runtime = get_runtime(BASE_RUNTIME)
            try:
                agreement = self.reference.compare(file.artifact, runtime)
            except Exception as error:  # noqa: BLE001 (as below)
                self.left_out.add(f"{file.precision}, {file.made_by}", reason_of(error))
                continue
            if file.precision == "float32" and agreement.label_agreement < LEAST_AGREEMENT:
                found = f"found the label of torch for {agreement.label_agreement:.1%} of the texts"
                self.left_out.add(f"{file.precision}, {file.made_by}", f"{found}, expected {LEAST_AGREEMENT:.0%}.")
                continue
            rows.append(Row(file.precision, file.made_by, "onnx", file.artifact, runtime, agreement, agreement))
        return rows

    def _exported(self, precision: str, model: Artifact, written: str, config: ExportConfig) -> list[Row]:
        """Returns the rows of one file, written now unless it was before."""
        name = f"{precision}, {OWN}, {written}"
        runtimes = runtimes_of(written, config.format)
        if not runtimes:
            self.left_out.add(name, "no runtime on this machine opens it.")
            return []
        rows = []
        try:
            outside = written_with(config.format)
            export = self.cache.run("export", StageInputs(model=model), config, outside=outside).artifact
        except Exception as error:  # noqa: BLE001 (one format must not end a long run; the reason is kept)
            self.left_out.add(name, reason_of(error))
            return []
        for runtime in runtimes:
            try:
                own = self._check(model, export, runtime)
                compared = self.reference.compare(export, runtime)
            except Exception as error:  # noqa: BLE001 (nor must one runtime)
                self.left_out.add(f"{name}, {runtime.name}", reason_of(error))
                continue
            rows.append(Row(precision, OWN, written, export, runtime, own, compared))
        return rows

    def _check(self, model: Artifact, export: Artifact, runtime: Runtime) -> Agreement:
        """Returns how far an export is from the model that it was made from, as `edgekit check` finds.

        Raises:
            ParityError: it is too far.
            ModelError: the runtime cannot open it.
        """
        inputs = StageInputs(model=export, reference=model, data=self.reference.data)
        config = self.check.model_copy(update={"runtime": runtime.name})
        outside = run_with(runtime.name, "torch")
        parity = read_parity(self.cache.run("check", inputs, config, outside=outside).artifact)
        if not isinstance(parity, Parity) or not parity.passed:
            raise ParityError(" ".join(parity.failures))
        return Agreement(parity.max_abs_diff, parity.label_agreement)


def reason_of(error: Exception) -> str:
    """Returns an error in one line; those that are not edgekit's own with their type."""
    text = " ".join(str(error).split())
    return text if isinstance(error, EdgekitError) else f"{type(error).__name__}: {text}"
