"""Fetches from the Hugging Face hub: the only place where edgekit uses the network, and only for a name the user gave.

A branch or tag is turned into the commit it points at, so that what was fetched can be named exactly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from edgekit.artifact import write_atomically
from edgekit.errors import EnvironmentLacksError, UsageError

RepositoryKind = Literal["model", "dataset"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_hub_id(source: str) -> bool:
    """Returns True when `source` is spelled like a hub id: `name` or `owner/name`."""
    return _NAME.fullmatch(source) is not None


def commit_of(repository: str, kind: RepositoryKind, revision: str | None, *, offline: bool) -> str:
    """Returns the commit that `revision` (a branch, a tag, a commit; None: the default branch) points at.

    Raises:
        UsageError: no such repository or revision.
        EnvironmentLacksError: the hub cannot be reached, or must not be and the repository is not in the cache.
    """
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    if offline:
        return _cached(repository, kind, revision).name
    with _explained(repository, kind, revision):
        from huggingface_hub import HfApi

        info = HfApi().repo_info(repository, repo_type=kind, revision=revision)
    if info.sha is None:
        raise EnvironmentLacksError(f"{repository}: the hub names no commit for {revision or 'it'}. Try again later.")
    commit = str(info.sha)
    _remember(repository, kind, revision, commit)
    return commit


def list_files(repository: str, kind: RepositoryKind, commit: str) -> list[str]:
    """Returns the paths of all files of a repository at a commit.

    Raises:
        UsageError: no such repository or commit.
        EnvironmentLacksError: the hub cannot be reached.
    """
    with _explained(repository, kind, commit):
        from huggingface_hub import HfApi

        return list(HfApi().list_repo_files(repository, repo_type=kind, revision=commit))


def download(repository: str, kind: RepositoryKind, commit: str, patterns: list[str], *, offline: bool) -> Path:
    """Returns a directory with the files of a repository at `commit` that match `patterns`, in the hub's own cache.

    Raises:
        UsageError: no such repository or commit.
        EnvironmentLacksError: the hub cannot be reached, or must not be and the files are not in the cache.
    """
    if offline:
        return _cached(repository, kind, commit)
    with _explained(repository, kind, commit):
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

        were_disabled = are_progress_bars_disabled()
        disable_progress_bars()
        try:
            return Path(snapshot_download(repository, repo_type=kind, revision=commit, allow_patterns=patterns))
        finally:
            if not were_disabled:
                enable_progress_bars()


def _remember(repository: str, kind: RepositoryKind, revision: str | None, commit: str) -> None:
    """Notes in the hub's cache what a branch or tag pointed at, so that it is found by that name when offline."""
    from huggingface_hub.constants import DEFAULT_REVISION, HF_HUB_CACHE

    folder = f"{kind}s--{repository.replace('/', '--')}"
    write_atomically(Path(HF_HUB_CACHE) / folder / "refs" / (revision or DEFAULT_REVISION), commit)


def _cached(repository: str, kind: RepositoryKind, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repository, repo_type=kind, revision=revision, local_files_only=True))
    except Exception as error:
        raise EnvironmentLacksError(
            f"{repository}: a hub {kind} that is not in the local cache, and --offline forbids fetching it. Run once "
            "without --offline, or give a directory or file on this machine, or pkg:NAME/path of an installed package."
        ) from error


@contextmanager
def _explained(repository: str, kind: RepositoryKind, revision: str | None) -> Iterator[None]:
    """Turns the hub library's errors into edgekit's."""
    where = repository if revision is None else f"{repository}@{revision}"
    try:
        from huggingface_hub import errors
    except ImportError as error:
        raise EnvironmentLacksError(
            f"{where}: fetching from the hub needs huggingface_hub. Install it: pip install 'edgekit[train]'"
        ) from error
    try:
        yield
    except errors.GatedRepoError as error:
        raise UsageError(
            f"{where}: the hub asks for permission to read it. Accept its terms on the hub, then run `hf auth login`."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UsageError(
            f"{where}: found no such {kind} on the hub, and nothing of that name on this machine. Check the spelling; "
            "a path on this machine may start with './'."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(f"{repository}: has no revision '{revision}'. Give a branch, a tag or a commit.") from error
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EnvironmentLacksError(
            f"{where}: could not be fetched from the hub ({reason}). Check the connection, or give a directory or "
            "file on this machine."
        ) from error
