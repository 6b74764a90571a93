"""Reading and writing speed of SmolLM2-135M at 8, 4, 3 and 2 bits, all in turn in one run.

    python benchmarks/quantization_speed.py [--threads 2]

Speed depends on how codes are stored, not on the algorithm that chose them: one export for each kind of codes of
`quantization_table.py`, rounded to nearest, in onnxruntime, and in llama.cpp where it has such a block. Codes of 2 bits
are GPTQ's: rounded to nearest they leave no model, and its export is refused. The float32 export comes first, for all
others are compared with it. The table, which is also the head, has 8 bits in each but that.
"""

from __future__ import annotations

from pathlib import Path

from decoding_speed import PACKAGES, PROMPT, made
from language_models import make_passages, make_teacher
from measuring import make_parser, say, tell_stages, write_result
from tables import quantization_speed_table

from edgekit.benchmarking.generation import GenerationSampling, measure_generation
from edgekit.benchmarking.generation_process import GenerationSubject
from edgekit.exporters.stage import ExportConfig
from edgekit.models.tokenizer import load_tokenizer
from edgekit.quantization.stage import QuantizeConfig
from edgekit.runtimes.generation import get_generation_runtime
from edgekit.runtimes.protocol import model_bytes

SCHEMES = [(8, True), (4, True), (4, False), (3, True), (3, False), (2, True), (2, False)]
"""Bits, and whether the codes are symmetric."""
LLAMA_CPP = [(8, True), (4, True), (4, False)]


def make_subjects(work: Path, threads: int, longest: int) -> tuple[list[GenerationSubject], list[int]]:
    """Returns what takes part, float32 first, and the bytes of each."""
    teacher = make_teacher(work)
    prompt = load_tokenizer(teacher.path)(PROMPT * longest)["input_ids"][:longest]
    onnx, gguf = ExportConfig(format="onnx"), ExportConfig(format="gguf")
    contenders = [(made(work, "float32-onnx", "export", teacher, onnx), "onnxruntime", "float32, onnxruntime")]
    for bits, symmetric in SCHEMES:
        kind = "symmetric" if symmetric else "asymmetric"
        name = f"{bits}-{kind}"
        scheme = QuantizeConfig(bits=bits, group_size=32, symmetric=symmetric, embeddings=8)
        roles = {}
        if bits == 2:
            scheme = scheme.model_copy(update={"algorithm": "gptq", "calibration_rows": 32, "calibration_length": 128})
            roles["data"] = make_passages(work)
        coded = made(work, name, "quantize", teacher, scheme, **roles)
        exported = made(work, f"{name}-onnx", "export", coded, onnx)
        contenders.append((exported, "onnxruntime", f"{bits} bits, {kind}, onnxruntime"))
        if (bits, symmetric) in LLAMA_CPP:
            exported = made(work, f"{name}-gguf", "export", coded, gguf)
            contenders.append((exported, "llama.cpp", f"{bits} bits, {kind}, llama.cpp"))
    subjects = [
        GenerationSubject(model, get_generation_runtime(runtime), prompt, threads, label)
        for model, runtime, label in contenders
    ]
    return subjects, [model_bytes(model) for model, *_ in contenders]


def main() -> None:
    """Measures and writes `quantization_speed.json`."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--depth", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--new-tokens", type=int, default=64)
    arguments = parser.parse_args()
    subjects, sizes = make_subjects(arguments.work / "quantization_speed", arguments.threads, arguments.depth)
    sampling = GenerationSampling(depths=(arguments.depth,), new_tokens=arguments.new_tokens)
    found = measure_generation(subjects, sampling, seed=0, events=tell_stages)
    samples = {"measurements": {"__all__": {"depths": {"__all__": {"inter_token_samples_ms"}}}}}  # thousands of numbers
    content = {"bytes": sizes, **found.model_dump(mode="json", exclude=samples)}
    say(quantization_speed_table(content))
    say(str(write_result(arguments.results, "quantization_speed", content, PACKAGES)))


if __name__ == "__main__":
    main()
