"""The program that runs a classifier in a headless Chromium: `python -m edgekit.runtimes.browser_worker PROGRAM`.

It speaks as `edgekit.benchmarking.worker` does, one JSON object a line, hands each command on to its page
(`browser_site.py`, `browser_page.mjs`), which times its own calls, and adds what only the system knows: the memory of
the process that holds the page. It answers two more commands:

    {"command": "about"} -> {"user_agent": ..., "cross_origin_isolated": true, "clock_resolution_us": 5, "webgpu": ...}
    {"command": "run", "inputs": {"input_ids": [[...]], ...}} -> {"outputs": {"logits": [[...]]}}

`open` also takes "dist" (the directory of the package's files), "script" (the one of them that the page imports),
"files" (the model's own, the first of which is opened) and "isolated" (whether the page is served as one that may
share memory). Standard library only.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from edgekit.runtimes.browser_processes import Renderer, find_renderer
from edgekit.runtimes.browser_site import Message, Site

_FLAGS = (
    "--headless=new",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-breakpad",
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
    "--disable-features=SpareRendererForSitePerProcess",  # one process fewer that could be taken for the page's
    "--enable-blink-features=ForceEagerMeasureMemory",  # else the page's memory is told some ten seconds later
    "--js-flags=--expose-gc",
)
_START_S = 120.0
_LAST_WORDS_S = 1.0
"""How long a browser whose page is gone may take to end too, so that what is told is the cause."""


class Browser:
    """A Chromium with one page, its keeper and the server of the page."""

    def __init__(self, program: str, *, isolated: bool) -> None:
        """Starts them.

        Raises:
            ConnectionError: the browser does not start.
        """
        self.site = Site(isolated=isolated)
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # Chromium asks root for it
        self._keeper = subprocess.Popen(
            [sys.executable, "-P", "-m", "edgekit.runtimes.browser_keeper", program, self.site.url, *_FLAGS, *sandbox],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # what ends this process must not end the one that clears up
        )
        self._last_words: Message = {}
        self._ended = threading.Event()
        self._late = time.monotonic() + _START_S
        self.renderer: Renderer | None = None
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self.about = self.site.ask({"command": "about"}, self._lost_at_start)
            self.renderer = find_renderer(self._keeper.pid)
        except BaseException:
            self.close()
            raise

    def ask(self, request: Message) -> Message:
        """Returns the page's answer, which may tell an error.

        Raises:
            ConnectionError: the browser or its page is gone.
        """
        return self.site.ask(request, self._lost)

    def close(self) -> None:
        """Ends the browser; returns when nothing of it is left."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait()

    def _lost(self) -> str | None:
        """Says why the page will not answer any more; None while it may."""
        gone = self.renderer is not None and not self.renderer.is_alive()
        if not self._ended.wait(_LAST_WORDS_S if gone else 0):
            return "the process of its page ended (often: out of memory)." if gone else None
        code, output = self._last_words["exit_code"], self._last_words["error_output"]
        fate = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"the browser {fate}." + (f" The end of its error output:\n{output}" if output else "")

    def _lost_at_start(self) -> str | None:
        """Says the same, and that a browser which runs but shows no page has had its time."""
        late = f"its page did not answer within {_START_S:.0f} s." if time.monotonic() > self._late else None
        return self._lost() or late

    def _listen(self) -> None:
        """Waits for what the keeper tells when the browser has ended."""
        assert self._keeper.stdout is not None
        line = self._keeper.stdout.readline()
        self._last_words = json.loads(line) if line else {"exit_code": 1, "error_output": "its keeper was killed"}
        self._ended.set()


class Worker:
    """Answers the requests above; the browser starts at the first."""

    def __init__(self, program: str) -> None:
        """Starts nothing yet; `program` is the browser's."""
        self._program = program
        self._browser: Browser | None = None
        self._peak_bytes = 0

    def answer(self, request: Message) -> Message:
        """Returns the answer to a request, an error included."""
        try:
            answer = self._answer(request)
            self._note_peak()
            return answer
        except ConnectionError as error:
            return {"error": f"{self._program}: {error}", "type": "MeasurementError"}
        except Exception as error:  # noqa: BLE001 (whatever it is, the parent must hear of it)
            return {"error": str(error) or type(error).__name__, "type": type(error).__name__}

    def close(self) -> None:
        """Ends the browser, if there is one."""
        if self._browser is not None:
            self._browser.close()

    def _answer(self, request: Message) -> Message:
        if self._browser is None:
            self._browser = Browser(self._program, isolated=request.get("isolated", True))
        command = request["command"]
        if command == "about":
            return self._browser.about
        if command == "open":
            return self._open(self._browser, request)
        answer = self._browser.ask(request)
        if command == "memory" and "error" not in answer:
            self._note_peak()
            return {**_memory(self._browser), "peak_bytes": self._peak_bytes, **answer}
        return answer

    def _note_peak(self) -> None:
        """Notes the largest memory until now: Chromium lets the kernel start its peak anew now and then."""
        if self._browser is not None:
            self._peak_bytes = max(self._peak_bytes, _memory(self._browser)["peak_bytes"])

    def _open(self, browser: Browser, request: Message) -> Message:
        files = [Path(file) for file in request["files"]]
        browser.site.library, browser.site.model = Path(request["dist"]), {file.name: file for file in files}
        settings = {key: request[key] for key in ("threads", "graph_optimization", "isolated", "script")}
        baseline = _memory(browser)["resident_bytes"]
        imported = browser.ask({"command": "library", **settings})
        if "error" in imported:
            return imported
        library = _memory(browser)["resident_bytes"]
        names = [file.name for file in files]
        opened = browser.ask({"command": "open", "file": str(files[0]), "names": names, **settings})
        facts = {"cores": request.get("cores", []), "baseline_bytes": baseline, "library_bytes": library}
        process = {} if browser.renderer is None else {"pid": browser.renderer.pid}
        return opened if "error" in opened else {**browser.about, **facts, **process, **opened}


def _memory(browser: Browser) -> dict[str, int]:
    """Returns the memory of the process that holds the page; zeros where the system does not tell."""
    return Renderer.NO_MEMORY if browser.renderer is None else browser.renderer.memory()


def main() -> None:
    """Answers one JSON line with one until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process in order
    worker = Worker(sys.argv[1])
    try:
        for line in sys.stdin:
            sys.stdout.write(json.dumps(worker.answer(json.loads(line))) + "\n")
            sys.stdout.flush()
    finally:
        worker.close()


if __name__ == "__main__":
    main()
