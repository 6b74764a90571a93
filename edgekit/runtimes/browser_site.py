"""Serves one page over loopback, its library and a model, and hands commands to the page, which asks for them.

The page is `browser_page.html`; what is asked is not known here. Standard library only. Addresses begin with a word
that nobody can guess, so that no page in another browser reads the model; who may look at the processes of this machine
sees it among the browser's arguments.
"""

from __future__ import annotations

import json
import queue
import secrets
import shutil
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

Message = dict[str, Any]

ISOLATION = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
"""What a server must send so that the page may share memory between threads (MDN, crossOriginIsolated)."""

_HERE = Path(__file__).parent
_PAGE = {"": _HERE / "browser_page.html", "page.mjs": _HERE / "browser_page.mjs"}
_TYPES = {".html": "text/html", ".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm"}
_WAIT: Message = {"command": "wait"}
_LONGEST_WAIT_S = 20.0
_LOOK_S = 0.5
_POLL_S = 3600.0
"""How often the server wakes up to see whether it is to stop, which it is not."""


class Site:
    """A server on a free port, which ends with its process."""

    def __init__(self, *, isolated: bool) -> None:
        """Starts serving; without `isolated` the page is not told to be on its own."""
        self.library: Path | None = None
        """The directory of the package's files, served as `dist/`."""
        self.model: dict[str, Path] = {}
        """Files of the model by name, served as `model/`."""
        self.headers = ISOLATION if isolated else {}
        self._word = secrets.token_urlsafe(16)
        self._commands: queue.Queue[Message] = queue.Queue()
        self._answers: queue.Queue[Message] = queue.Queue()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(self))
        threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), daemon=True).start()

    @property
    def url(self) -> str:
        """Returns the address of the page."""
        return f"http://127.0.0.1:{self._server.server_port}/{self._word}/"

    def ask(self, request: Message, lost: Callable[[], str | None]) -> Message:
        """Returns the page's answer to a command.

        Args:
            request: the command.
            lost: says why no answer will come any more; None while one may.

        Raises:
            ConnectionError: the page is gone, as `lost` says.
        """
        self._commands.put(request)
        while True:
            try:
                return self._answers.get(timeout=_LOOK_S)
            except queue.Empty:
                reason = lost()
                if reason is not None:
                    raise ConnectionError(reason) from None

    def turn(self, answer: Message | None) -> Message:
        """Takes the page's answer and returns its next command; after a while without one, that it is to ask again."""
        if answer is not None:
            self._answers.put(answer)
        try:
            return self._commands.get(timeout=_LONGEST_WAIT_S)
        except queue.Empty:
            return _WAIT

    def find(self, path: str) -> Path | None:
        """Returns the file at the path of an address; None where there is none."""
        _, word, *rest = unquote(path).split("/", 3) if "/" in path else ("", "")
        if not secrets.compare_digest(word.encode(), self._word.encode()):
            return None
        if rest in ([""], ["page.mjs"]):
            return _PAGE[rest[0]]
        folder, name = rest if len(rest) == 2 else ("", "")
        if folder == "model":
            return self.model.get(name)
        library = {file.name: file for file in self.library.iterdir()} if folder == "dist" and self.library else {}
        return library.get(name)


def _handler_for(site: Site) -> type[BaseHTTPRequestHandler]:
    """Returns a class that answers requests for `site`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Writes nothing."""

        def do_GET(self) -> None:
            """Sends a file."""
            file = site.find(urlsplit(self.path).path)
            if file is None or not file.is_file():
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            self._begin(_TYPES.get(file.suffix, "application/octet-stream"), file.stat().st_size)
            with file.open("rb") as content:
                shutil.copyfileobj(content, self.wfile)

        def do_POST(self) -> None:
            """Takes an answer and sends the next command."""
            if self.path != urlsplit(site.url).path + "turn":  # before anything of a stranger's is read
                self.close_connection = True
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            command = json.dumps(site.turn(json.loads(body))).encode()
            self._begin("application/json", len(command))
            self.wfile.write(command)

        def _begin(self, kind: str, size: int) -> None:
            self.send_response(HTTPStatus.OK)
            headers = {"Content-Type": kind, "Content-Length": str(size), "Cache-Control": "no-store", **site.headers}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

    return Handler
