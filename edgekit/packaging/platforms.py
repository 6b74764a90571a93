"""The table of platforms: form factor of a target to the module that knows how an app is built there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgekit.packaging import language_platforms, laptop, phone, single_board
from edgekit.packaging.manifest import Manifest


@dataclass(frozen=True)
class Platform:
    """What a platform adds to a bundle."""

    app_files: Callable[[Manifest], dict[str, str]]
    """File name to content: snippets in the platform's language."""
    instructions: Callable[[Manifest], str]
    """Markdown for the model card: what to install and where files go."""


_WRITING = Platform(lambda manifest: {}, language_platforms.instructions)
_LAPTOP = Platform(laptop.app_files, laptop.instructions)
PLATFORMS: dict[str, Platform] = {
    "phone": Platform(phone.app_files, phone.instructions),
    "laptop": _LAPTOP,
    "desktop": _LAPTOP,
    "server": _LAPTOP,
    "single-board": Platform(single_board.app_files, single_board.instructions),
}


def platform_of(manifest: Manifest) -> Platform:
    """Returns the platform of the manifest's target; a form factor without a module gets the laptop's.

    A language model is run alike everywhere: its platform has one row.
    """
    if manifest.writing is not None:
        return _WRITING
    return PLATFORMS.get(manifest.target.form_factor, _LAPTOP)
