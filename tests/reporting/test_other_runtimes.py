"""What the runtimes besides the one that ships mean for a build: which difference fails it, and which only is told."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from edgekit.errors import EnvironmentLacksError, ParityError
from edgekit.exporters.parity import require_parity
from edgekit.pipeline import _exit_code, _failures
from edgekit.reporting import findings
from edgekit.reporting.html import render_html
from edgekit.reporting.junit import render_junit
from edgekit.reporting.markdown import render_markdown
from edgekit.results import AnyParity, BuildResult, ExportResult, Unverified
from tests.reporting.language_examples import language_build, language_parity

OF_TEXT = "engine: 2 of 56 texts are tokenized otherwise."
OF_FILE = "engine: divergence 3 is above 0.02."
MISSING = Unverified(runtime="llama.cpp", reason="Install it.", failures=["Unverified under llama.cpp: Install it."])


def failed(*failures: str, text: tuple[str, ...] = ()) -> AnyParity:
    return language_parity(*failures, *text).model_copy(update={"text_failures": list(text)})


def build_with(main: AnyParity, *others: AnyParity) -> BuildResult:
    good = language_build()
    exports = [
        export.model_copy(update={"parity": main, "other_parities": list(others)}) for export in good.exports[:1]
    ]
    return good.model_copy(update={"exports": exports, "exit_code": _exit_code(exports), "failures": told(exports[0])})


def told(export: ExportResult) -> list[str]:
    return _failures(export)


@pytest.mark.parametrize(
    ("main", "others", "code"),
    [
        (language_parity(), [], 0),
        (language_parity(), [MISSING], 0),
        (language_parity(), [failed(text=(OF_TEXT,))], 0),
        (language_parity(), [failed(OF_FILE, text=(OF_TEXT,))], 3),
        (failed(text=(OF_TEXT,)), [], 3),
        (MISSING, [], 4),
        (MISSING, [failed(OF_FILE)], 3),
    ],
    ids=[
        "alone",
        "other missing",
        "other reads otherwise",
        "file differs",
        "ships and reads otherwise",
        "missing",
        "both",
    ],
)
def test_the_exit_code(main, others, code):
    result = build_with(main, *others)
    assert result.exit_code == code
    assert bool(result.failures) == (code != 0)


def test_a_runtime_that_only_reads_otherwise_is_shown_and_skipped_and_fails_nothing():
    result = build_with(language_parity(), failed(text=(OF_TEXT,)), MISSING)
    assert findings.verdict(result).tone == "good"
    page = render_html(result)
    assert OF_TEXT in page
    assert "unverified" in page
    suites = ElementTree.fromstring(render_junit(result))
    cases = {case.get("name"): case for case in suites.iter("testcase")}
    assert cases["parity, onnxruntime-genai 0.18.0"].find("skipped").get("message") == OF_TEXT
    assert "Install it." in cases["parity, llama.cpp"].find("skipped").get("message")
    assert cases["parity"].find("failure") is None


def test_an_unverified_export_is_no_success_anywhere():
    result = build_with(MISSING)
    assert findings.verdict(result).title == "Not verified"
    assert "unverified" in render_markdown(result)
    assert "Install it." in render_html(result)
    suites = ElementTree.fromstring(render_junit(result))
    case = next(case for case in suites.iter("testcase") if case.get("name") == "parity")
    assert case.find("failure").get("type") == "unverified"
    with pytest.raises(EnvironmentLacksError, match="unverified: Install it"):
        require_parity(MISSING)


def test_a_runtime_for_which_the_file_differs_fails_the_build_by_name():
    result = build_with(language_parity(), failed(OF_FILE, text=(OF_TEXT,)))
    assert findings.verdict(result).title == "Parity failed"
    assert any("parity under onnxruntime-genai 0.18.0: engine: divergence" in failure for failure in result.failures)
    with pytest.raises(ParityError):
        require_parity(failed(OF_FILE))
