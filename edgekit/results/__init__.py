"""What edgekit finds out, as types that every later layer shares: quality, parity, measurements, estimates, budgets.

A classifier and a language model have types of their own where other things are asked of them; `AnyQuality`,
`AnyParity` and `AnyMeasurement` are either. `Estimate` is no kind of measurement on purpose: an estimate never looks
like one.
"""

from __future__ import annotations

from edgekit.results.base import Interval, Result
from edgekit.results.budget import BudgetCheck, BudgetResult, CheckStatus
from edgekit.results.build import BuildResult, ExportResult, PreparationResult, StageResult, StepResult
from edgekit.results.changes import Change, Changes, SettingChange
from edgekit.results.conditions import Conditions
from edgekit.results.energy import Energy
from edgekit.results.estimate import Estimate, EstimateCheck
from edgekit.results.generation import (
    DecodeFit,
    GenerationComparison,
    GenerationDepth,
    GenerationMeasurement,
    GenerationRatio,
)
from edgekit.results.headline import Headline, MetricName, Timing
from edgekit.results.load import (
    Conversations,
    ConversationsAtOnce,
    GenerationUnderLoad,
    Offline,
    OfflineBatch,
    Server,
    ServerTrial,
    Sustained,
    SustainedWindow,
    UnderLoad,
)
from edgekit.results.machine import Machine
from edgekit.results.matrix import LeftOut, Matrix, MatrixRow
from edgekit.results.measurement import AnyMeasurement, Comparison, Measurement, Sweep, TurnRatio
from edgekit.results.memory import MemoryLimit, MemorySplit, MemoryTrial
from edgekit.results.parity import AnyParity, Driving, Emulation, LanguageParity, Parity, TokenizerVector, Unverified
from edgekit.results.quality import (
    AnswersQuality,
    AnyQuality,
    Exchange,
    LanguageQuality,
    MultipleChoiceQuality,
    Quality,
)
from edgekit.results.verdict import Verdict

__all__ = [
    "AnswersQuality",
    "AnyMeasurement",
    "AnyParity",
    "AnyQuality",
    "BudgetCheck",
    "BudgetResult",
    "BuildResult",
    "Change",
    "Changes",
    "CheckStatus",
    "Comparison",
    "Conditions",
    "Conversations",
    "ConversationsAtOnce",
    "DecodeFit",
    "Driving",
    "Emulation",
    "Energy",
    "Estimate",
    "EstimateCheck",
    "Exchange",
    "ExportResult",
    "GenerationComparison",
    "GenerationDepth",
    "GenerationMeasurement",
    "GenerationRatio",
    "GenerationUnderLoad",
    "Headline",
    "Interval",
    "LanguageParity",
    "LanguageQuality",
    "LeftOut",
    "Machine",
    "Matrix",
    "MatrixRow",
    "Measurement",
    "MemoryLimit",
    "MemorySplit",
    "MemoryTrial",
    "MetricName",
    "MultipleChoiceQuality",
    "Offline",
    "OfflineBatch",
    "Parity",
    "PreparationResult",
    "Quality",
    "Result",
    "Server",
    "ServerTrial",
    "SettingChange",
    "StageResult",
    "StepResult",
    "Sustained",
    "SustainedWindow",
    "Sweep",
    "Timing",
    "TokenizerVector",
    "TurnRatio",
    "UnderLoad",
    "Unverified",
    "Verdict",
]
