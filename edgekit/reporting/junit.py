"""JUnit XML: each parity gate and each budget check is a test case, so that CI shows which one failed."""

from __future__ import annotations

from xml.etree import ElementTree

from edgekit.reporting import agreement, findings
from edgekit.reporting.wording import check_title, printable
from edgekit.results import AnyParity, BudgetCheck, BuildResult, ExportResult


def render_junit(result: BuildResult) -> str:
    """Returns the XML: one suite for the build, one for each export.

    A missed or inconclusive check is a failure of that type; one that was not measured is skipped.
    """
    root = ElementTree.Element("testsuites", name=printable(f"edgekit {result.name}"))
    root.append(_build_suite(result))
    root.extend(_export_suite(result.name, export) for export in result.exports)
    for suite in root:
        _count(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _build_suite(result: BuildResult) -> ElementTree.Element:
    """Returns the suite of the build as a whole, with the stages' times as properties."""
    suite = ElementTree.Element("testsuite", name="build")
    properties = ElementTree.SubElement(suite, "properties")
    facts = {"edgekit": result.edgekit_version, "seed": str(result.seed)}
    facts |= {f"seconds.{stage.kind}": f"{stage.seconds:.3f}" for stage in result.stages}
    for name, value in facts.items():
        ElementTree.SubElement(properties, "property", name=printable(name), value=printable(value))
    seconds = sum(findings.step_seconds(result))
    case = ElementTree.SubElement(
        suite, "testcase", classname=printable(f"edgekit.{result.name}"), name="build", time=f"{seconds:.3f}"
    )
    if result.exit_code != 0:
        verdict = findings.verdict(result)
        text = "\n".join(result.failures) or verdict.explanation
        _fail(case, f"exit code {result.exit_code}: {verdict.title}", f"exit-{result.exit_code}", text)
    return suite


def _export_suite(name: str, export: ExportResult) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", name=printable(f"{export.format} for {export.target}"))
    classname = printable(f"edgekit.{name}.{export.format}.{export.target}")
    for name, found in [("parity", export.parity), *((f"parity, {one.runtime}", one) for one in export.other_parities)]:
        case = ElementTree.SubElement(suite, "testcase", classname=classname, name=printable(name))
        _judge_parity(case, found, needed=name == "parity")
    for check in export.budget.checks:
        case = ElementTree.SubElement(suite, "testcase", classname=classname, name=printable(check.name))
        _judge(case, check)
    return suite


def _judge_parity(case: ElementTree.Element, parity: AnyParity, *, needed: bool) -> None:
    """Marks the case as failed; as skipped where it only keeps a runtime besides the one that ships from the bundle."""
    verdict = agreement.verdict(parity)
    if verdict != "passed" and not needed and not parity.file_differs:
        ElementTree.SubElement(case, "skipped", message=printable(" ".join(parity.failures)))
    elif verdict == "unverified":
        _fail(case, "the exported file was not compared with torch", verdict, "\n".join(parity.failures))
    elif verdict == "failed":
        _fail(case, "the exported file differs from torch", "parity", "\n".join(parity.failures))


def _judge(case: ElementTree.Element, check: BudgetCheck) -> None:
    if check.status == "not-measured":
        ElementTree.SubElement(case, "skipped", message=printable(check.explanation))
    elif check.status != "met":
        _fail(case, f"{check_title(check.name)} {check.status}", check.status, check.explanation)


def _fail(case: ElementTree.Element, message: str, kind: str, text: str) -> None:
    failure = ElementTree.SubElement(case, "failure", message=printable(message), type=kind)
    failure.text = printable(text)


def _count(suite: ElementTree.Element) -> None:
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(sum(case.find("failure") is not None for case in cases)))
    suite.set("skipped", str(sum(case.find("skipped") is not None for case in cases)))
    suite.set("errors", "0")
    suite.set("time", f"{sum(float(case.get('time', '0')) for case in cases):.3f}")
