"""Usage examples of a language model's bundle: some twenty lines for each runtime under which it passed its checks.

Each answers one question, greedily; for a model without a chat template it writes a text on.
"""

from __future__ import annotations

from edgekit.packaging.manifest import Manifest

MAX_NEW_TOKENS = 256

_ONNXRUNTIME = '''\
"""{purpose} (onnxruntime, tokenizers, {jinja}numpy): python usage_onnxruntime.py "{example}"."""
import json, pathlib, sys
import {jinja_module}numpy, onnxruntime, tokenizers

here = pathlib.Path(__file__).parent
manifest = json.loads((here / "manifest.json").read_text(encoding="utf-8"))
tokenizer = tokenizers.Tokenizer.from_file(str(here / manifest["tokenizer"]))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = manifest["session"]["threads"]
session = onnxruntime.InferenceSession(str(here / manifest["model"]), options, providers=["CPUExecutionProvider"])
{prompt}
past = [entry for entry in session.get_inputs() if entry.name.startswith("past_key_values")]
cache = {{entry.name: numpy.zeros((1, entry.shape[1], 0, entry.shape[3]), dtype=numpy.float32) for entry in past}}
names, taken, new, answer = ["logits", *(name.replace("past_key_values", "present") for name in cache)], 0, ids, []
for _ in range(min({limit}, manifest["max_length"] - len(ids))):
    taken += len(new)
    feeds = {{"input_ids": numpy.array([new]), "attention_mask": numpy.ones((1, taken), dtype=numpy.int64), **cache}}
    logits, *present = session.run(names, feeds)
    new, cache = [int(logits[0, -1].argmax())], dict(zip(cache, present))
    if new[0] in manifest["writing"]["ends"]:
        break
    answer += new
print(tokenizer.decode(answer))
'''
_RENDER = """\
environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
template = environment.from_string((here / "{template}").read_text(encoding="utf-8"))
messages = [{{"role": "user", "content": " ".join(sys.argv[1:])}}]
prompt = template.render(messages=messages, add_generation_prompt=True, **manifest["writing"]["special_tokens"])
ids = tokenizer.encode(prompt, add_special_tokens=False).ids"""
_ENCODE = 'ids = tokenizer.encode(" ".join(sys.argv[1:])).ids'

_GENAI = '''\
"""{purpose} (onnxruntime-genai): python usage_onnxruntime_genai.py "{example}"."""
import json, pathlib, sys
import onnxruntime_genai

here = pathlib.Path(__file__).parent
manifest = json.loads((here / "manifest.json").read_text(encoding="utf-8"))
config = onnxruntime_genai.Config(str(here))
options = {{"intra_op_num_threads": manifest["session"]["threads"]}}
config.overlay(json.dumps({{"model": {{"decoder": {{"session_options": options}}}}}}))
model = onnxruntime_genai.Model(config)
tokenizer = onnxruntime_genai.Tokenizer(model)
{prompt}
parameters = onnxruntime_genai.GeneratorParams(model)
parameters.set_search_options(max_length=min(len(ids) + {limit}, manifest["max_length"]), do_sample=False)
generator = onnxruntime_genai.Generator(model, parameters)
generator.append_tokens(ids)
answer = []
while not generator.is_done():
    generator.generate_next_token()
    answer.append(int(generator.get_next_tokens()[0]))
print(tokenizer.decode([token for token in answer if token not in manifest["writing"]["ends"]]))
'''
_GENAI_RENDER = """\
messages = json.dumps([{"role": "user", "content": " ".join(sys.argv[1:])}])
ids = tokenizer.encode(tokenizer.apply_chat_template(messages, add_generation_prompt=True))"""
_GENAI_ENCODE = 'ids = tokenizer.encode(" ".join(sys.argv[1:]))'

_LLAMA_CPP = """\
// {purpose}: npm install node-llama-cpp {jinja}; node usage_llama_cpp.mjs "{example}"
import {{ readFileSync }} from "node:fs";
import {{ fileURLToPath }} from "node:url";
import {{ getLlama }} from "node-llama-cpp";
{imports}
const here = (name) => fileURLToPath(new URL(name, import.meta.url));
const manifest = JSON.parse(readFileSync(here("manifest.json"), "utf8"));
const llama = await getLlama({{ gpu: false, build: "never" }});
const model = await llama.loadModel({{ modelPath: here(manifest.model) }});
const threads = manifest.session.threads;
const context = await model.createContext({{ contextSize: manifest.max_length, threads }});
{prompt}
const answer = [];
for await (const token of context.getSequence().evaluate(ids, {{ temperature: 0 }})) {{
  if (model.isEogToken(token)) break;
  answer.push(token);
  if (answer.length === {limit}) break;
}}
console.log(model.detokenize(answer));
process.exit(0);
"""
_LLAMA_CPP_RENDER = """\
const template = new Template(readFileSync(here("{template}"), "utf8"));
const messages = [{{ role: "user", content: process.argv.slice(2).join(" ") }}];
const given = {{ messages, add_generation_prompt: true, ...manifest.writing.special_tokens }};
const ids = model.tokenize(template.render(given), true);"""
_LLAMA_CPP_ENCODE = 'const ids = model.tokenize(process.argv.slice(2).join(" "));'

_TRANSFORMERS_JS = """\
// {purpose}: npm install @huggingface/transformers; node usage_transformers_js.mjs "{example}"
// In a page it is the same, with `env.localModelPath` the address that the bundle's parent is served from.
import {{ basename, dirname }} from "node:path";
import {{ fileURLToPath }} from "node:url";
import {{ AutoModelForCausalLM, AutoTokenizer, env }} from "@huggingface/transformers";

const directory = dirname(fileURLToPath(import.meta.url));
env.allowRemoteModels = false;
env.localModelPath = dirname(directory);
const name = basename(directory);
const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModelForCausalLM.from_pretrained(name);
const text = process.argv.slice(2).join(" ");
{prompt}
const output = await model.generate({{ ...inputs, max_new_tokens: {limit}, do_sample: false }});
const answer = output.slice(null, [inputs.input_ids.dims[1], null]);
console.log(tokenizer.batch_decode(answer, {{ skip_special_tokens: true }})[0]);
"""
_TRANSFORMERS_JS_RENDER = """\
const messages = [{ role: "user", content: text }];
const inputs = tokenizer.apply_chat_template(messages, { add_generation_prompt: true, return_dict: true });"""
_TRANSFORMERS_JS_ENCODE = "const inputs = tokenizer(text);"


def usage_files(manifest: Manifest) -> dict[str, str]:
    """Returns file name to content for each runtime of the manifest, and for transformers.js in a browser's bundle."""
    assert manifest.writing is not None
    makers = {"onnxruntime": _onnxruntime, "onnxruntime-genai": _genai, "llama.cpp": _llama_cpp}
    found = dict(makers[name](manifest) for name in manifest.writing.runtimes if name in makers)
    if manifest.target.form_factor == "browser" and manifest.format == "onnx":
        found |= dict([_transformers_js(manifest)])
    return found


def _onnxruntime(manifest: Manifest) -> tuple[str, str]:
    template = _template(manifest)
    jinja = {"jinja": "jinja2, ", "jinja_module": "jinja2, "} if template else {"jinja": "", "jinja_module": ""}
    prompt = _RENDER.format(template=template) if template else _ENCODE
    return "usage_onnxruntime.py", _ONNXRUNTIME.format(**_words(manifest), **jinja, prompt=prompt)


def _genai(manifest: Manifest) -> tuple[str, str]:
    prompt = _GENAI_RENDER if _template(manifest) else _GENAI_ENCODE
    return "usage_onnxruntime_genai.py", _GENAI.format(**_words(manifest), prompt=prompt)


def _llama_cpp(manifest: Manifest) -> tuple[str, str]:
    template = _template(manifest)
    parts = {"jinja": "", "imports": "", "prompt": _LLAMA_CPP_ENCODE}
    if template:
        render = _LLAMA_CPP_RENDER.format(template=template)
        imports = 'import { Template } from "@huggingface/jinja";\n'
        parts = {"jinja": "@huggingface/jinja", "imports": imports, "prompt": render}
    return "usage_llama_cpp.mjs", _LLAMA_CPP.format(**_words(manifest), **parts)


def _transformers_js(manifest: Manifest) -> tuple[str, str]:
    prompt = _TRANSFORMERS_JS_RENDER if _template(manifest) else _TRANSFORMERS_JS_ENCODE
    return "usage_transformers_js.mjs", _TRANSFORMERS_JS.format(**_words(manifest), prompt=prompt)


def _template(manifest: Manifest) -> str | None:
    return None if manifest.writing is None else manifest.writing.chat_template


def _words(manifest: Manifest) -> dict[str, str]:
    if _template(manifest):
        purpose, example = "Answers a question", "Who wrote Faust?"
    else:
        purpose, example = "Writes a text on", "Faust was written by"
    return {"purpose": purpose, "example": example, "limit": str(MAX_NEW_TOKENS)}
