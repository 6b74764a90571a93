"""Browsers: transformers.js, which opens the directory as it is."""

from __future__ import annotations

from edgekit.packaging.manifest import Manifest

_ISOLATION = """

Threads need a page that is cross-origin isolated: serve it with `Cross-Origin-Opener-Policy: same-origin` and
`Cross-Origin-Embedder-Policy: require-corp`. Without them onnxruntime-web runs on one thread, and slower."""


def app_files(manifest: Manifest) -> dict[str, str]:
    """Returns nothing: the page's own code is the lines below."""
    return {}


def instructions(manifest: Manifest) -> str:
    """Returns the lines that classify a text in a page, and what threads ask of the server."""
    threads = manifest.session.threads
    isolation = _ISOLATION if threads > 1 else ""
    return f"""\
Serve this directory below `models/`, and in the page:

```js
import {{ env, pipeline }} from "@huggingface/transformers"; // npm install @huggingface/transformers
env.allowRemoteModels = false;
env.localModelPath = "/models/";
env.backends.onnx.wasm.numThreads = {threads};
const classify = await pipeline("text-classification", "{manifest.name}", {{ device: "wasm", dtype: "fp32" }});
console.log(await classify("A text to classify.", {{ top_k: null }}));
```

`dtype` names the file, not the numbers: `fp32` is `{manifest.model}`, whatever its codes.{isolation}"""
