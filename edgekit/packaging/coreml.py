"""Core ML packages on iPhone, iPad and Mac: what to run first, and where the files go. Nothing here compiles Swift."""

from __future__ import annotations

from edgekit.packaging.manifest import Manifest


def instructions(manifest: Manifest) -> str:
    """Returns how to verify the package, how to add it to an Xcode project, and what it takes and gives."""
    package = manifest.model.partition("/")[0]
    inputs = ", ".join(f"`{name}`" for name in manifest.inputs)
    return f"""\
1. On a Mac, run the package once: `pip install coremltools numpy`, then `python verify_on_mac.py` in this directory. It
   compares the package with `test_vectors.json`, writes `verified.json` where it was started, and exits with 0 where
   every logit is within the tolerance.
2. In Xcode, add `{package}` to the app's target, and the package `https://github.com/huggingface/swift-transformers`
   (product `Tokenizers`) with this directory as a folder reference named `{manifest.name}`.
3. `AutoTokenizer.from(modelFolder:)` opens the tokenizer. Cut its ids to {manifest.max_length}, and give {inputs} as
   `MLMultiArray` of 1 x ids, int32: one text a call, without padding. A softmax over `logits` gives the scores, in the
   order of `labels.json`.

edgekit did not compile or run this. Check the app's tokenizer on the device against `tokenizer_vectors.json`: a test
that encodes every text there and compares the ids finds any difference."""
