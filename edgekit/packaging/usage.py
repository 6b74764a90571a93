"""`usage.py` of a bundle: twenty lines that classify a text with its runtime, tokenizers and numpy alone."""

from __future__ import annotations

USAGE_FILE = "usage.py"

_ONNXRUNTIME = '''\
"""Classifies a text: python usage.py "A fine film." It needs onnxruntime, tokenizers and numpy."""
import json, pathlib, sys
import numpy, onnxruntime, tokenizers

here = pathlib.Path(__file__).parent
manifest = json.loads((here / "manifest.json").read_text(encoding="utf-8"))
tokenizer = tokenizers.Tokenizer.from_file(str(here / manifest["tokenizer"]))
tokenizer.enable_truncation(manifest["max_length"])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = manifest["session"]["threads"]
for key, value in manifest["session"]["entries"].items():
    options.add_session_config_entry(key, value)
session = onnxruntime.InferenceSession(str(here / manifest["model"]), options, providers=["CPUExecutionProvider"])
ids = numpy.array([tokenizer.encode(" ".join(sys.argv[1:])).ids], dtype=numpy.int64)
given = {"input_ids": ids, "attention_mask": numpy.ones_like(ids), "token_type_ids": numpy.zeros_like(ids)}
logits = session.run(["logits"], {name: given[name] for name in manifest["inputs"]})[0][0].astype(float)
scores = numpy.exp(logits - logits.max()) / numpy.exp(logits - logits.max()).sum()
for label, score in zip(manifest["labels"], scores):
    print(f"{label}\\t{score:.4f}")
'''

_OPENVINO = '''\
"""Classifies a text: python usage.py "A fine film." It needs openvino, tokenizers and numpy."""
import json, pathlib, sys
import numpy, openvino, tokenizers

here = pathlib.Path(__file__).parent
manifest = json.loads((here / "manifest.json").read_text(encoding="utf-8"))
tokenizer = tokenizers.Tokenizer.from_file(str(here / manifest["tokenizer"]))
tokenizer.enable_truncation(manifest["max_length"])
settings = {"INFERENCE_NUM_THREADS": str(manifest["session"]["threads"]), **manifest["session"]["entries"]}
model = openvino.Core().compile_model(here / manifest["model"], "CPU", settings)
ids = numpy.array([tokenizer.encode(" ".join(sys.argv[1:])).ids], dtype=numpy.int64)
given = {"input_ids": ids, "attention_mask": numpy.ones_like(ids), "token_type_ids": numpy.zeros_like(ids)}
logits = model({name: given[name] for name in manifest["inputs"]})["logits"][0].astype(float)
scores = numpy.exp(logits - logits.max()) / numpy.exp(logits - logits.max()).sum()
for label, score in zip(manifest["labels"], scores):
    print(f"{label}\\t{score:.4f}")
'''

_LITERT = '''\
"""Classifies a text: python usage.py "A fine film." It needs ai-edge-litert, tokenizers and numpy."""
import json, pathlib, re, sys
import numpy, tokenizers
from ai_edge_litert.interpreter import Interpreter

here = pathlib.Path(__file__).parent
manifest = json.loads((here / "manifest.json").read_text(encoding="utf-8"))
tokenizer = tokenizers.Tokenizer.from_file(str(here / manifest["tokenizer"]))
tokenizer.enable_truncation(manifest["max_length"])
model = Interpreter(str(here / manifest["model"]), num_threads=manifest["session"]["threads"])
lengths = sorted(int(re.search(r"[0-9]+", name)[0]) for name in model.get_signature_list())
found = tokenizer.encode(" ".join(sys.argv[1:])).ids
length = next(length for length in lengths if length >= len(found))
ids = numpy.zeros((1, length), dtype=numpy.int32)
ids[0, : len(found)] = found
mask = (numpy.arange(length) < len(found)).astype(numpy.int32)[None]
given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": numpy.zeros_like(ids)}
run = model.get_signature_runner(f"length_{length}")
logits = run(**{name: given[name] for name in manifest["inputs"]})["logits"][0].astype(float)
scores = numpy.exp(logits - logits.max()) / numpy.exp(logits - logits.max()).sum()
for label, score in zip(manifest["labels"], scores):
    print(f"{label}\\t{score:.4f}")
'''

_EXECUTORCH = '''\
"""Classifies a text: python usage.py "A fine film." It needs executorch, torch and tokenizers."""
import json, pathlib, sys
import tokenizers, torch
from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
from executorch.runtime import Runtime

here = pathlib.Path(__file__).parent
manifest = json.loads((here / "manifest.json").read_text(encoding="utf-8"))
tokenizer = tokenizers.Tokenizer.from_file(str(here / manifest["tokenizer"]))
tokenizer.enable_truncation(manifest["max_length"])
_unsafe_reset_threadpool(manifest["session"]["threads"])  # before a method is loaded
program = Runtime.get().load_program(here / manifest["model"])
ids = torch.tensor([tokenizer.encode(" ".join(sys.argv[1:])).ids], dtype=torch.int64)
given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
logits = program.load_method("forward").execute([given[name] for name in manifest["inputs"]])[0][0]
for label, score in zip(manifest["labels"], logits.double().softmax(0).tolist()):
    print(f"{label}\\t{score:.4f}")
'''

_USAGES = {"onnxruntime": _ONNXRUNTIME, "openvino": _OPENVINO, "litert": _LITERT, "executorch": _EXECUTORCH}


_DISTRIBUTIONS = {"litert": "ai-edge-litert"}
"""Runtime to what pip calls it, where that is another name."""


def requirement(runtime: str, minimum: str) -> str:
    """Returns what pip installs for the example of `runtime`, from version `minimum` on."""
    return f"{_DISTRIBUTIONS.get(runtime, runtime)}>={minimum}"


def usage_files(runtime: str) -> dict[str, str]:
    """Returns name and content of the example for `runtime`; nothing for a plug-in's, which edgekit does not know."""
    return {USAGE_FILE: _USAGES[runtime]} if runtime in _USAGES else {}
