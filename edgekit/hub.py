"""Fetches from the Hugging Face hub: the only place where edgekit uses the network, and only for a name the user gave.

A branch or tag is turned into the commit it points at, so that what was fetched can be named exactly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from edgekit.artifact import write_atomically
from edgekit.errors import EnvironmentLacksError, UsageError
from edgekit.extras import install_command

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
        reference = _reference_file(repository, kind, revision)
        if not reference.is_file():
            raise _not_cached(repository, kind)
        return reference.read_text(encoding="utf-8").strip()
    with _explained(repository, kind, revision):
        from huggingface_hub import HfApi

        info = HfApi().repo_info(repository, repo_type=kind, revision=revision)
    if info.sha is None:
        raise EnvironmentLacksError(f"{repository}: the hub names no commit for {revision or 'it'}. Try again later.")
    commit = str(info.sha)
    _remember(repository, kind, revision, commit)
    return commit


def list_files(repository: str, kind: RepositoryKind, revision: str | None) -> list[str]:
    """Returns the paths of all files of a repository at a revision.

    Raises:
        UsageError: no such repository or revision.
        EnvironmentLacksError: the hub cannot be reached.
    """
    with _explained(repository, kind, revision):
        from huggingface_hub import HfApi

        return list(HfApi().list_repo_files(repository, repo_type=kind, revision=revision))


def download(
    repository: str, kind: RepositoryKind, revision: str | None, suffixes: Iterable[str], *, offline: bool
) -> Path:
    """Returns a directory, named by the commit, with the top-level files of a repository that end in `suffixes`.

    It is in the hub's own cache, where the same call with `offline` finds it again.

    Raises:
        UsageError: no such repository or revision.
        EnvironmentLacksError: the hub cannot be reached, or must not be and the files are not in the cache.
    """
    patterns = [f"*{suffix}" for suffix in suffixes]
    if offline:
        return _cached(repository, kind, revision, patterns)
    with _explained(repository, kind, revision):
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

        were_disabled = are_progress_bars_disabled()
        disable_progress_bars()
        try:
            directory = snapshot_download(
                repository, repo_type=kind, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]
            )
        finally:
            if not were_disabled:
                enable_progress_bars()
        return Path(directory)


def _reference_file(repository: str, kind: RepositoryKind, revision: str | None) -> Path:
    """Returns the file in the hub's cache that holds the commit of a branch or tag."""
    from huggingface_hub.constants import DEFAULT_REVISION, HF_HUB_CACHE

    folder = f"{kind}s--{repository.replace('/', '--')}"
    return Path(HF_HUB_CACHE) / folder / "refs" / (revision or DEFAULT_REVISION)


def _remember(repository: str, kind: RepositoryKind, revision: str | None, commit: str) -> None:
    """Notes in the hub's cache what a branch or tag pointed at, so that it is found by that name when offline."""
    write_atomically(_reference_file(repository, kind, revision), commit)


def _cached(repository: str, kind: RepositoryKind, revision: str | None, patterns: list[str]) -> Path:
    try:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(
                repository,
                repo_type=kind,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=["*/*"],
                local_files_only=True,
            )
        )
    except Exception as error:
        raise _not_cached(repository, kind) from error


def _not_cached(repository: str, kind: RepositoryKind) -> EnvironmentLacksError:
    return EnvironmentLacksError(
        f"{repository}: a hub {kind} that is not in the local cache, and --offline forbids fetching it. Run once "
        "without --offline, or give a directory or file on this machine, or pkg:NAME/path of an installed package."
    )


@contextmanager
def _explained(repository: str, kind: RepositoryKind, revision: str | None) -> Iterator[None]:
    """Turns the hub library's errors into edgekit's."""
    where = repository if revision is None else f"{repository}@{revision}"
    try:
        from huggingface_hub import errors
    except ImportError as error:
        raise EnvironmentLacksError(
            f"{where}: fetching from the hub needs huggingface_hub. Install it: {install_command('train')}"
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
