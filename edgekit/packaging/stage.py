"""The stage `package`: an exported model and the evidence about it become a bundle, or nothing does."""

from __future__ import annotations

from edgekit.artifact import Artifact, publish
from edgekit.contract import StageContext, StageInputs, lineage_of
from edgekit.errors import BudgetError, EnvironmentLacksError, ParityError, UsageError
from edgekit.formats import FORMATS
from edgekit.packaging.config import PackageConfig
from edgekit.packaging.facts import BundleFacts
from edgekit.results import AnyParity, Parity, Unverified
from edgekit.target import Target

__all__ = ["BundleFacts", "PackageConfig", "package"]


def package(inputs: StageInputs, config: PackageConfig, context: StageContext) -> Artifact:
    """Makes a bundle: the export's files unchanged, with manifest, labels, vectors, model card and usage examples.

    Requires an exported artifact whose parity check passed and whose budget, if it has one, is met. Ensures
    that the bundle's tokenizer and model were run as an app runs them before it was published. A format that only other
    systems run may be bundled unseen where the configuration allows it, and the bundle says so.

    Raises:
        UsageError: no model, no parity check, or evidence about another model.
        ParityError: the parity check failed.
        BudgetError: a budget is not met; as BundleSizeError: the bundle is larger than the target's store allows.
        UnsupportedError: the target's runtime does not read the file.
        EnvironmentLacksError: the disk is full, or the runtime is not installed.
    """
    from edgekit.packaging.assembly import fill

    model = inputs.require("model", "package")
    if model.kind not in FORMATS:
        raise UsageError(
            f"package: {model.path}: found kind '{model.kind}', expected an export: {' or '.join(FORMATS)}. Export it "
            "first."
        )
    require_evidence(model, config)
    lineage = lineage_of("package", inputs, config, context)
    with publish(context.out, kind="bundle", lineage=lineage) as staging:
        fill(staging, model, config)
    return Artifact.open(context.out, kind="bundle", verify=False)


def require_evidence(model: Artifact, config: PackageConfig) -> None:
    """Refuses what may not ship; a file that only other systems run may, unseen, where the configuration says so.

    Raises:
        UsageError: no parity check, one on an emulated processor that is not the target's, or evidence about another
            model.
        ParityError: the parity check failed.
        EnvironmentLacksError: nothing was compared, for the runtime is not here.
        BudgetError: the budget is not met; names each limit.
    """
    facts, target = config.facts, config.target
    if facts.parity is None:
        raise UsageError(
            "package: found no parity check, and nothing ships unverified. Run `edgekit check` and give its artifact "
            "in `facts`."
        )
    if isinstance(facts.parity, Unverified):
        if config.unverified == "refuse" or not FORMATS[model.kind].runs_elsewhere:
            raise EnvironmentLacksError(
                f"package: the export is unverified: {facts.parity.reason} Nothing was bundled."
            )
    elif _is_of_another_processor(facts.parity, target):
        raise UsageError(
            f"package: found a parity check on an emulated processor, expected one on {target.architecture}, which "
            f"'{target.name}' is. Run `edgekit check` on this machine."
        )
    elif not facts.parity.passed:
        raise ParityError(f"package: the parity check failed: {' '.join(facts.parity.failures)} Nothing was bundled.")
    if facts.budget is not None and not facts.budget.met:
        failed = [check for check in facts.budget.checks if check.status in ("missed", "inconclusive")]
        found = " ".join(f"{check.name} {check.status}: {check.explanation}" for check in failed)
        raise BudgetError(f"package: the budget is not met: {found} Nothing was bundled.")
    _require_same_model(model, facts)


def _is_of_another_processor(parity: AnyParity, target: Target) -> bool:
    emulation = parity.emulation if isinstance(parity, Parity) else None
    return emulation is not None and emulation.architecture != target.architecture


def _require_same_model(model: Artifact, facts: BundleFacts) -> None:
    """Refuses evidence about another file, and evidence that does not say which file it is about."""
    remedies = (
        (facts.parity, "parity check", "check"),
        (facts.quality, "quality", "evaluate"),
        (facts.measurement, "measurement", "bench"),
    )
    for found, what, command in remedies:
        if found is not None and found.model_digest != model.digest:
            raise UsageError(
                f"package: the {what} is of the model {found.model_digest[:12] or '(not named)'}, expected "
                f"{model.digest[:12]} ({model.path}). Run `edgekit {command}` on this model."
            )
