"""`edgekit prepare-device`: what an emulated device needs, downloaded once."""

from __future__ import annotations

from edgekit.cli.options import AsJson, Offline
from edgekit.cli.terminal import listening, write_json_line


def prepare_device(name: str, *, offline: Offline = False, json: AsJson = False) -> int:
    """Download once what an emulated device needs: a small arm64 Debian system and the runtimes' packages for arm64.

    apt and pip download, about 90 MB; no root is needed, and this machine's packages stay as they are. It is kept in
    the user's cache directory, 230 MB. One that was broken off goes on with what it has.

    Parameters
    ----------
    name
        The device: qemu:cortex-a76.
    """
    from edgekit.emulation import preparation

    with listening(as_json=json) as events:
        device = preparation.prepare_device(name, offline=offline, events=events)
        found = device.describe()
    if json:
        write_json_line({"kind": "result", "place": str(device.place), "device": found.model_dump(mode="json")})
        return 0
    print(f"{device.name}: {found.cpu}, {found.architecture} with {', '.join(found.cpu_features)}; {found.emulator}.")
    print(device.place)
    return 0
