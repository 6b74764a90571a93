"""The table of platforms: form factor of a target, or its system where it is held in the hand, to the module for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgekit.packaging import browser, coreml, ios, language_platforms, laptop, phone, single_board
from edgekit.packaging.manifest import Manifest, is_handheld


@dataclass(frozen=True)
class Platform:
    """What a platform adds to a bundle."""

    app_files: Callable[[Manifest], dict[str, str]]
    """File name to content: snippets in the platform's language."""
    instructions: Callable[[Manifest], str]
    """Markdown for the model card: what to install and where files go."""


_WRITING = Platform(lambda manifest: {}, language_platforms.instructions)
_CORE_ML = Platform(lambda manifest: {}, coreml.instructions)
_LAPTOP = Platform(laptop.app_files, laptop.instructions)
PLATFORMS: dict[str, Platform] = {
    "android": Platform(phone.app_files, phone.instructions),
    "ios": Platform(ios.app_files, ios.instructions),
    "laptop": _LAPTOP,
    "desktop": _LAPTOP,
    "server": _LAPTOP,
    "single-board": Platform(single_board.app_files, single_board.instructions),
    "browser": Platform(browser.app_files, browser.instructions),
}


def platform_of(manifest: Manifest) -> Platform:
    """Returns the platform of the manifest's target; a phone of an older manifest, which names no system, is Android's.

    A language model is run alike everywhere: its platform has one row. So is a Core ML package on Apple's systems.
    """
    if manifest.writing is not None:
        return _WRITING
    if manifest.format == "coreml":
        return _CORE_ML
    target = manifest.target
    return PLATFORMS[(target.operating_system or "android") if is_handheld(target) else target.form_factor]
