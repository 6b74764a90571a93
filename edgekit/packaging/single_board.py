"""Single-board computers: Python on a 64-bit Linux."""

from __future__ import annotations

from edgekit.packaging.manifest import Manifest
from edgekit.packaging.usage import requirement


def app_files(manifest: Manifest) -> dict[str, str]:
    """Returns nothing: `usage.py` is in every bundle."""
    return {}


def instructions(manifest: Manifest) -> str:
    """Returns how to run the bundle from Python on the board."""
    needed = requirement(manifest.versions.runtime, manifest.versions.runtime_minimum)
    cores = manifest.session.threads - 1
    cpus = "0" if cores < 1 else f"0-{cores}"
    return f"""\
On a 64-bit system (`uname -m` says `aarch64`; there are no wheels for 32 bits):

```sh
python3 -m venv .venv
.venv/bin/pip install '{needed}' tokenizers numpy
taskset -c {cpus} .venv/bin/python usage.py "A text to classify."
```

Sustained load heats the board: without a cooler it lowers its clock, and latency rises."""
