"""iPhones and iPads: which Swift packages open the files. There is no Swift example: nothing here compiles one."""

from __future__ import annotations

from edgekit.packaging.manifest import Manifest


def app_files(manifest: Manifest) -> dict[str, str]:
    """Returns nothing: `usage.py` shows the calls, and an untried Swift file would only look like one that works."""
    return {}


def instructions(manifest: Manifest) -> str:
    """Returns what to add to an Xcode project, where the files go, and which calls `usage.py` makes there."""
    options = "".join(
        f'\n   - `addConfigEntry(withKey: "{key}", value: "{value}")`'
        for key, value in manifest.session.entries.items()
    )
    inputs = ", ".join(f"`{name}`" for name in manifest.inputs)
    return f"""\
1. In Xcode, add the packages `https://github.com/microsoft/onnxruntime-swift-package-manager` (product `onnxruntime`,
   {manifest.versions.runtime_minimum} or newer) and `https://github.com/huggingface/swift-transformers`
   (product `Tokenizers`).
2. Add this directory to the app's resources as a folder reference named `{manifest.name}`.
3. Open `{manifest.model}` once, off the main thread, with an `ORTSession` whose `ORTSessionOptions` have:
   - `setIntraOpNumThreads({manifest.session.threads})`{options}
4. `AutoTokenizer.from(modelFolder:)` opens the tokenizer. Cut its ids to {manifest.max_length}, and give {inputs}
   as int64 of 1 x ids, as `usage.py` does; a softmax over the logits gives the scores, in the order of `labels.json`.

edgekit did not compile this: it checks and measures the file under Python's onnxruntime. Check the app's tokenizer on
the device against `tokenizer_vectors.json`: a test that encodes every text there and compares the ids finds any
difference."""
