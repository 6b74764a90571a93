"""The hub's own protocol, spoken by a server in this process: what edgekit fetches, and what it says when it cannot."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from edgekit.hub import is_hub_id
from tests.pico import pico_classifier

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(BaseHTTPRequestHandler):
    """Serves `root/<owner>/<name>/` as repositories of one commit, on the branch `main` and the tag `v1`."""

    root: Path
    asked: list[str]

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        wanted = json.loads(self.rfile.read(length) or b"{}").get("paths", [])
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        repository = self.root / parts[2] / parts[3]
        self._send([entry for entry in self._tree(repository) if entry["path"] in wanted])

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlparse(self.path).path).strip("/")
        self.asked.append(path)
        parts = path.split("/")
        if parts[0] == "api":
            self._describe(parts)
            return
        owner, name, _, revision, *inner = parts[1:] if parts[0] == "datasets" else parts
        file = self.root / owner / name / "/".join(inner)
        if not file.is_file() or revision not in (COMMIT, "main", "v1"):
            self._refuse("EntryNotFound")
            return
        content = file.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def _describe(self, parts: list[str]) -> None:
        repository = self.root.joinpath(*parts[2:4])
        if len(parts) < 4 or not repository.is_dir():
            self._refuse("RepoNotFound", status=401)
            return
        if len(parts) > 5 and parts[5] not in (COMMIT, "main", "v1"):
            self._refuse("RevisionNotFound")
            return
        if len(parts) > 4 and parts[4] == "tree":
            self._send(self._tree(repository))
            return
        siblings = [{"rfilename": entry["path"]} for entry in self._tree(repository)]
        self._send({"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})

    def _tree(self, repository: Path) -> list[dict[str, object]]:
        files = sorted(file for file in repository.rglob("*") if file.is_file())
        return [
            {"type": "file", "path": str(file.relative_to(repository)), "size": file.stat().st_size, "oid": "0" * 40}
            for file in files
        ]

    def _send(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, code: str, status: int = 404) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the test's output clean."""


class Hub:
    """A running server and a fresh cache for its client, which must be a process of its own."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "hub"
        self.home = directory / "home"
        self.root.mkdir()
        self.asked: list[str] = []
        handler = type("Handler", (_Hub,), {"root": self.root, "asked": self.asked})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def run(self, code: str) -> subprocess.CompletedProcess[str]:
        """Runs Python code against this hub; an edgekit error is printed with its exit code."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}", "HF_HOME": str(self.home)}
        environment |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "TMPDIR": str(self.root.parent)}
        wrapped = "import sys\nfrom edgekit.errors import EdgekitError\ntry:\n"
        wrapped += "".join(f"    {line}\n" for line in code.splitlines())
        wrapped += (
            "except EdgekitError as error:\n    print(type(error).__name__, error)\n    sys.exit(error.exit_code)\n"
        )
        return subprocess.run([sys.executable, "-c", wrapped], env=environment, capture_output=True, text=True)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    running = Hub(tmp_path)
    yield running
    running.close()


def resolve_code(source: str, more: str = "") -> str:
    return (
        "from edgekit.models.source import resolve\n"
        f"files = resolve({source!r}{more})\n"
        "print(files.commit, sorted(file.name for file in files.path.iterdir()))"
    )


def test_a_model_is_fetched_without_what_it_does_not_need_and_then_found_offline(hub: Hub) -> None:
    repository = pico_classifier(hub.root / "owner" / "teacher")
    (repository / "pytorch_model.bin").write_bytes(b"a pickle that must not be fetched")
    (repository / "modeling_teacher.py").write_text("raise SystemExit")
    (repository / "onnx").mkdir()
    (repository / "onnx" / "config.json").write_text("{}")
    refused = hub.run(resolve_code("owner/teacher", ", offline=True"))
    assert refused.returncode == 4
    assert "--offline forbids" in refused.stdout
    assert hub.asked == []
    fetched = hub.run(resolve_code("owner/teacher", ", revision='v1'"))
    assert (fetched.returncode, fetched.stderr) == (0, "")
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert fetched.stdout.strip() == f"{COMMIT} {names}"
    hub.asked.clear()
    offline = hub.run(resolve_code("owner/teacher", ", revision='v1', offline=True"))
    assert offline.stdout == fetched.stdout
    assert hub.asked == []


def test_pickles_on_the_hub_are_refused_before_they_are_fetched(hub: Hub) -> None:
    repository = pico_classifier(hub.root / "owner" / "pickled")
    (repository / "model.safetensors").rename(repository / "pytorch_model.bin")
    refused = hub.run(resolve_code("owner/pickled"))
    assert refused.returncode == 2
    assert refused.stdout.startswith("UntrustedModelError owner/pickled: found pytorch_model.bin")
    assert not any("resolve" in path for path in hub.asked)


@pytest.mark.parametrize(
    ("source", "more", "status", "message"),
    [
        ("owner/nothing", "", 2, "ModelError owner/nothing: found no such model on the hub, and nothing of that name"),
        ("owner/teacher", ", revision='v9'", 2, "ModelError owner/teacher: has no revision 'v9'"),
    ],
)
def test_what_the_hub_does_not_have_is_said(hub: Hub, source: str, more: str, status: int, message: str) -> None:
    pico_classifier(hub.root / "owner" / "teacher")
    refused = hub.run(resolve_code(source, more))
    assert refused.returncode == status
    assert message in refused.stdout


def test_a_hub_that_does_not_answer_is_an_environment_error(hub: Hub) -> None:
    code = "import huggingface_hub.constants as constants\nconstants.ENDPOINT = 'http://127.0.0.1:9'\n"
    code += "import os\nos.environ['HF_ENDPOINT'] = 'http://127.0.0.1:9'\n"
    refused = hub.run(code + resolve_code("owner/teacher"))
    assert refused.returncode == 4
    assert "could not be fetched from the hub" in refused.stdout


def test_a_data_set_is_read_from_the_hub(hub: Hub) -> None:
    repository = hub.root / "owner" / "reviews"
    repository.mkdir(parents=True)
    (repository / "test.csv").write_text("text,label\ngood,1\nbad,0\n")
    (repository / "train.csv").write_text("text,label\nfine,1\n")
    code = (
        "from edgekit.data.source import DataSource, digest_of, read_table\n"
        "source = DataSource(source='owner/reviews', split={split!r})\n"
        "print(sorted(read_table(source)['text']), digest_of(source))"
    )
    found = hub.run(code.format(split="test"))
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("['bad', 'good'] ")
    default = hub.run(code.format(split=None))
    assert default.stdout.startswith("['fine'] ")
    missing = hub.run(code.format(split="tset"))
    assert missing.returncode == 2
    assert "owner/reviews" in missing.stdout
    assert not list(hub.root.parent.glob("edgekit-data-*"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("bert-base-uncased", True),
        ("owner/name.v1", True),
        ("a/b/c", False),
        ("./owner/name", False),
        ("../name", False),
        ("/name", False),
        ("pkg:name/model", False),
        ("~/name", False),
        ("", False),
    ],
)
def test_hub_ids_are_told_from_paths(source: str, expected: bool) -> None:
    assert is_hub_id(source) is expected
