"""Decode and prefill speed of edgekit's 4-bit exports against onnxruntime-genai's own builder, in turn in one run.

    python -m onnxruntime_genai.models.builder -i TEACHER -o BUILDER -p int4 -e cpu \
        --extra_options int4_accuracy_level=4 int4_block_size=32
    python benchmarks/decoding_speed.py --builder BUILDER [--threads 2]

The model is SmolLM2-135M-Instruct itself, 4 bits in groups of 32. Its table, which is also the head, has 4 bits as the
builder's head has, and in a second export 8 bits, which is edgekit's default. edgekit's ONNX file runs in onnxruntime
and onnxruntime-genai, the same codes as GGUF in llama.cpp, and the package's own GGUF (Q4_1 blocks, made by llama.cpp's
tools) beside them. Every model has a fresh process; ratios are of paired rounds.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from language_models import TEACHER, make_teacher
from measuring import make_parser, say, tell_stages, write_result
from tables import decoding_table

from edgekit.api import run
from edgekit.artifact import Artifact, Lineage, publish
from edgekit.benchmarking.generation import GenerationSampling, measure_generation
from edgekit.benchmarking.generation_process import GenerationSubject
from edgekit.exporters.stage import ExportConfig
from edgekit.models.tokenizer import load_tokenizer
from edgekit.quantization.stage import QuantizeConfig
from edgekit.resources import package_resource
from edgekit.runtimes.generation import get_generation_runtime

PROMPT = (
    "The harbour of the old town froze over in the winter of that year, and the ships that lay there could not leave "
    "before the end of March. Merchants who had sold their grain ahead of time had to buy it again at a higher price. "
)
PACKAGES = ("onnxruntime", "onnxruntime-genai", "torch", "transformers", "gguf")


def made(work: Path, name: str, kind: str, model: Artifact, config: Any, **roles: Artifact) -> Artifact:
    """Returns the artifact `name` in `work`, made unless it is there."""
    if (work / name).is_dir():
        return Artifact.open(work / name)
    say(f"{kind}: {work / name}")
    return run(kind, model, config, out=work / name, events=tell_stages, **roles)


def foreign(work: Path, name: str, kind: str, files: list[Path]) -> Artifact:
    """Returns files that edgekit did not make as an artifact, which is what the harness takes."""
    if (work / name).is_dir():
        return Artifact.open(work / name)
    with publish(work / name, kind=kind, lineage=Lineage(stage="copied")) as directory:
        for file in files:
            shutil.copyfile(file, directory / file.name)
    return Artifact.open(work / name)


def make_subjects(work: Path, builder: Path, threads: int, longest: int) -> list[GenerationSubject]:
    """Returns what takes part; the builder's file comes first, for all others are compared with it."""
    teacher = make_teacher(work)
    prompt = load_tokenizer(teacher.path)(PROMPT * longest)["input_ids"][:longest]
    schemes = {
        "int4": QuantizeConfig(bits=4, group_size=32, embeddings=8),
        "int4-table4": QuantizeConfig(bits=4, group_size=32, embeddings=4, embeddings_group_size=32),
    }
    onnx, gguf = {}, {}
    for name, scheme in schemes.items():
        coded = made(work, name, "quantize", teacher, scheme)
        onnx[name] = made(work, f"{name}-onnx", "export", coded, ExportConfig(format="onnx"))
        gguf[name] = made(work, f"{name}-gguf", "export", coded, ExportConfig(format="gguf"))
    beside = [teacher.path / "config.json", *sorted(path for path in builder.iterdir() if path.is_file())]
    built = foreign(work, "builder", "onnx", beside)
    packaged = package_resource(TEACHER)
    shipped = foreign(work, "packaged", "gguf", [teacher.path / "config.json", packaged])
    contenders = [
        (built, "onnxruntime-genai", "genai's builder, onnxruntime-genai"),
        (onnx["int4-table4"], "onnxruntime-genai", "edgekit, head of 4 bits, onnxruntime-genai"),
        (onnx["int4-table4"], "onnxruntime", "edgekit, head of 4 bits, onnxruntime"),
        (onnx["int4"], "onnxruntime", "edgekit, head of 8 bits, onnxruntime"),
        (gguf["int4-table4"], "llama.cpp", "edgekit's GGUF, head of 4 bits, llama.cpp"),
        (gguf["int4"], "llama.cpp", "edgekit's GGUF, head of 8 bits, llama.cpp"),
        (shipped, "llama.cpp", "packaged GGUF (Q4_1), llama.cpp"),
    ]
    return [
        GenerationSubject(model, get_generation_runtime(runtime), prompt, threads, label)
        for model, runtime, label in contenders
    ]


def main() -> None:
    """Measures and writes `decoding.json`."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--builder", type=Path, required=True, help="what onnxruntime-genai's builder wrote")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--depths", type=int, nargs="+", default=[16, 128, 512])
    parser.add_argument("--new-tokens", type=int, default=64)
    arguments = parser.parse_args()
    work = arguments.work / "decoding"
    subjects = make_subjects(work, arguments.builder, arguments.threads, max(arguments.depths))
    sampling = GenerationSampling(depths=tuple(arguments.depths), new_tokens=arguments.new_tokens)
    found = measure_generation(subjects, sampling, seed=0, events=tell_stages)
    samples = {"measurements": {"__all__": {"depths": {"__all__": {"inter_token_samples_ms"}}}}}  # thousands of numbers
    content = found.model_dump(mode="json", exclude=samples)
    say(decoding_table(content))
    say(str(write_result(arguments.results, "decoding", content, PACKAGES)))


if __name__ == "__main__":
    main()
