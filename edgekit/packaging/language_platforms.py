"""How an app runs a language model's bundle, for the model card: by format, with a word on each kind of device."""

from __future__ import annotations

from edgekit.packaging.manifest import Manifest, is_handheld

_SNIPPETS = {
    "onnxruntime": (
        "pip install 'onnxruntime>={minimum}' tokenizers jinja2 numpy",
        "python usage_onnxruntime.py {example}",
    ),
    "onnxruntime-genai": (
        "pip install 'onnxruntime-genai>={minimum}'",
        "python usage_onnxruntime_genai.py {example}",
    ),
    "llama.cpp": ("npm install node-llama-cpp @huggingface/jinja", "node usage_llama_cpp.mjs {example}"),
}
_BROWSER = ("npm install @huggingface/transformers", "node usage_transformers_js.mjs {example}")
_EXAMPLE = '"Who wrote Faust?"'
_IN_APPS = {
    "onnx": "In an app, onnxruntime-genai's interface for Java, Swift or C opens the directory as it is: copy it to "
    "the app's files. The Python example makes the same calls.",
    "gguf": "In an app, llama.cpp's C interface opens `model.gguf`, which holds tokenizer and chat template as well.",
}
_IN_IOS_APPS = {
    "onnx": "In an app, onnxruntime's Swift package opens `onnx/model.onnx`: past keys and values go in, present ones "
    "come out, as in the Python example, which makes the same calls. edgekit did not compile this.",
    "gguf": "In an app, llama.cpp's XCFramework opens `model.gguf`, which holds tokenizer and chat template as well.",
}
_ON_BOARDS = (
    "On a 64-bit system (`uname -m` says `aarch64`). Sustained load heats the board: without a cooler it lowers its "
    "clock, and writing slows down."
)


def instructions(manifest: Manifest) -> str:
    """Returns Markdown: what to install and what to run, for each runtime under which the file passed its checks."""
    assert manifest.writing is not None
    snippets = [
        (lines, minimum) for name, minimum in manifest.writing.runtimes.items() if (lines := _SNIPPETS.get(name))
    ]
    if manifest.target.form_factor == "browser" and manifest.format == "onnx":
        snippets.append((_BROWSER, ""))
    blocks = [
        "```sh\n" + "\n".join(line.format(minimum=minimum, example=_EXAMPLE) for line in lines) + "\n```"
        for lines, minimum in snippets
    ]
    return "\n\n".join([*_remarks(manifest), *blocks])


def _remarks(manifest: Manifest) -> list[str]:
    if is_handheld(manifest.target):
        return [(_IN_IOS_APPS if manifest.target.operating_system == "ios" else _IN_APPS)[manifest.format]]
    return [_ON_BOARDS] if manifest.target.form_factor == "single-board" else []
