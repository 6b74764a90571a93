"""The server of the browser's page: what it serves, to whom, and how commands go through it."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request

import pytest

from edgekit.runtimes.browser_site import ISOLATION, Site


@pytest.fixture
def site(tmp_path):
    made = Site(isolated=True)
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "library.wasm").write_bytes(b"\0asm")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "model.onnx").write_bytes(b"model")
    made.library, made.model = tmp_path / "dist", {"model.onnx": tmp_path / "model.onnx"}
    return made


def get(url: str) -> tuple[bytes, dict[str, str]]:
    with urllib.request.urlopen(url) as answer:
        return answer.read(), dict(answer.headers)


def test_page_library_and_model_are_served_as_what_may_share_memory(site):
    kinds = {"": "text/html", "page.mjs": "text/javascript", "dist/library.wasm": "application/wasm"}
    for path, kind in kinds.items():
        content, headers = get(site.url + path)
        assert content
        assert headers["Content-Type"] == kind
        assert headers.items() >= ISOLATION.items()
    assert get(site.url + "model/model.onnx")[0] == b"model"


def test_without_isolation_the_headers_are_not_sent():
    assert not get(Site(isolated=False).url)[1].keys() & ISOLATION.keys()


@pytest.mark.parametrize("path", ["secret", "dist/../secret", "dist/..%2Fsecret", "model/secret", "dist/", "model/"])
def test_nothing_else_is_served(site, path):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(site.url + path)


def test_who_does_not_know_the_word_gets_nothing(site):
    root = site.url.rsplit("/", 2)[0]
    for path in ("/", "/guess/", "/guess/model/model.onnx"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(root + path)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{root}/guess/turn", data=b"null")


def test_a_command_goes_to_the_page_and_its_answer_back(site):
    found = []
    asking = threading.Thread(target=lambda: found.append(site.ask({"command": "add"}, lambda: None)))
    asking.start()
    with urllib.request.urlopen(site.url + "turn", data=b"null") as turn:
        assert json.load(turn) == {"command": "add"}
    threading.Thread(target=urllib.request.urlopen, args=(site.url + "turn", b'{"sum": 3}'), daemon=True).start()
    asking.join(timeout=10)
    assert found == [{"sum": 3}]
    site._commands.put({"command": "wait"})  # lets the page's last request go


def test_no_answer_from_a_page_that_is_lost(site):
    with pytest.raises(ConnectionError, match="gone"):
        site.ask({"command": "add"}, lambda: "gone")
