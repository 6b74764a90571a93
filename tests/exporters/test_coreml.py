"""Core ML packages, which nothing here runs: the codes read back, the program interpreted, and what a Mac is given."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest

import edgekit
from edgekit.errors import EnvironmentLacksError, ModelError, ParityError, UnsupportedError
from edgekit.exporters import coreml, coreml_needs
from edgekit.exporters.block_rounding import multiply_floats
from edgekit.exporters.coreml_file import MODEL, WEIGHTS, read_package
from edgekit.exporters.coreml_interpreter import interpret
from edgekit.exporters.coreml_operators import OPERATORS
from edgekit.exporters.coreml_program import ProgramWriter, codes_name
from edgekit.exporters.parity import read_parity, require_parity
from edgekit.exporters.reference import load_reference
from edgekit.models.quantized import QuantizedModule
from edgekit.models.source import load_model
from edgekit.packaging.manifest import read_versions
from edgekit.results import Unverified
from edgekit.runtimes.protocol import model_bytes, runtime_for
from edgekit.target import load_target
from tests.exporters.test_onnx import SCHEMES, SORTS
from tests.pico import pico_data_artifact, pico_model_artifact, pico_texts, publish_model
from tests.pico_decoders import pico_decoder

pytest.importorskip("coremltools")

PACKAGE = edgekit.ExportConfig(format="coreml")
EIGHT = {"bits": 8}


def export(settings, place, config=PACKAGE, **options):
    model = pico_model_artifact(place / "model", **{"layers": 1, **options})
    student = edgekit.quantize(model, edgekit.QuantizeConfig(**settings), out=place / "student")
    return student, edgekit.export(student, config, out=place / "package")


def described(made):
    return json.loads((made.path / "export.json").read_text())


def rows(model, count=6):
    """Yields the inputs of single texts, every second one padded."""
    tokenizer = load_model(model).tokenizer
    for place, text in enumerate(pico_texts(count, seed=7)[0]):
        ids = tokenizer(text)["input_ids"]
        padding = 5 if place % 2 else 0
        padded = np.array([[*ids, *[tokenizer.pad_token_id] * padding]])
        mask = np.array([[1] * len(ids) + [0] * padding])
        yield {"input_ids": padded, "attention_mask": mask, "token_type_ids": padded * 0}


def largest_difference(model, made):
    """Returns how far the interpreted program is from torch with the same codes and floats between them."""
    import torch

    network = load_reference(model, made)
    multiply_floats(network)
    program = read_package(made.path / "model.mlpackage")
    largest = 0.0
    for given in rows(model):
        given = {name: given[name] for name in program.inputs}
        with torch.inference_mode():
            wanted = network(**{name: torch.from_numpy(array) for name, array in given.items()}).logits.numpy()
        largest = max(largest, float(np.abs(interpret(program, given)["logits"] - wanted).max()))
    return largest


# Elsewhere floats are written as the float parts of a model on codes are.
@pytest.mark.parametrize("architecture", ["bert", "deberta-v2"])
def test_the_program_that_was_written_says_what_torch_computes(architecture, tmp_path):
    model = pico_model_artifact(tmp_path / "model", architecture=architecture, layers=2)
    made = edgekit.export(model, PACKAGE, out=tmp_path / "package")
    assert largest_difference(model, made) < 1e-5
    assert described(made)["interpreted_max_abs_diff"] < 1e-5


@pytest.mark.parametrize("architecture", SORTS)
def test_the_program_on_codes_says_what_torch_computes_with_them(architecture, tmp_path):
    student, made = export(EIGHT, tmp_path, architecture=architecture, layers=2)
    assert largest_difference(student, made) < 1e-5


@pytest.mark.parametrize("name", SCHEMES)
def test_the_package_holds_every_code_as_coremltools_itself_reads_it(name, tmp_path):
    student, made = export(SCHEMES[name], tmp_path)
    network = load_model(student).model
    modules = {key: module for key, module in network.named_modules() if isinstance(module, QuantizedModule)}
    groups: dict[str, list[str]] = {}
    for key in modules:
        prefix, _, last = key.rpartition(".")
        joined = f"{prefix}.query_key_value" if last in ("query", "key", "value") else key
        groups.setdefault(joined.replace(".", "_"), []).append(key)
    held = floats_by_coremltools(made.path / "model.mlpackage")
    assert set(held) == set(groups)
    for joined, keys in groups.items():
        wanted = np.concatenate([modules[key].quantized_weight().dequantize().numpy() for key in keys])
        np.testing.assert_array_equal(held[joined], wanted, err_msg=joined)
    blocks = SCHEMES[name]["bits"] != 8 or "group_size" in SCHEMES[name]
    assert described(made)["deployment_target"] == ("iOS18" if blocks else "iOS16")
    assert largest_difference(student, made) < 1e-5


def floats_by_coremltools(package):
    """Returns what the codes stand for, by coremltools' own reader and its own arithmetic."""
    import coremltools
    from coremltools.converters.mil.frontend.milproto.load import load

    spec = coremltools.utils.load_spec(str(package))
    weights = str((package / WEIGHTS).parent)
    program = load(spec, spec.specificationVersion, weights)
    operations = [each for each in program.functions["main"].operations if each.op_type.startswith("constexpr_")]
    return {each.name.removesuffix("_decoded"): each.materialized_val_inference() for each in operations}


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (EIGHT, "codes"),
        (EIGHT, "scales"),
        ({"bits": 4, "group_size": 16, "activations": "float"}, "codes"),
        ({"bits": 4, "group_size": 32, "activations": "float", "symmetric": False}, "zero_points"),
    ],
)
def test_one_altered_bit_of_a_weight_is_noticed(settings, part, tmp_path, monkeypatch):
    write = coreml.write_package

    def write_and_alter(exported, package, *options, **more):
        write(exported, package, *options, **more)
        stored = read_package(package).codes[codes_name("bert.encoder.layer.0.intermediate.dense.codes")]
        array = getattr(stored, part)
        content = (package / WEIGHTS).read_bytes()
        sought = array.tobytes() if settings is EIGHT else halves(array)
        assert content.count(sought) == 1
        altered = bytearray(content)
        altered[content.index(sought)] ^= 1
        (package / WEIGHTS).write_bytes(altered)

    monkeypatch.setattr(coreml, "write_package", write_and_alter)
    with pytest.raises(ModelError, match=r"not hold the codes of 'bert.*intermediate\.dense'\. Nothing was exported"):
        export(settings, tmp_path)
    assert not (tmp_path / "package").exists()


def halves(array):
    nibbles = array.astype(np.uint8).reshape(-1) & 15
    return (nibbles[::2] | (nibbles[1::2] << 4)).tobytes()


def test_a_program_that_computes_something_else_is_not_exported(tmp_path, monkeypatch):
    monkeypatch.setitem(OPERATORS, "Tanh", OPERATORS["Sigmoid"])
    with pytest.raises(ParityError, match=r"interpreted, differs from torch by .*Nothing was exported"):
        export(EIGHT, tmp_path)
    assert not (tmp_path / "package").exists()


def test_an_operator_that_is_not_in_the_table_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.delitem(OPERATORS, "Gelu")
    with pytest.raises(UnsupportedError, match=r"coreml: found the operator Gelu, which edgekit does not write"):
        export(EIGHT, tmp_path)
    monkeypatch.undo()
    export(EIGHT, tmp_path / "next")  # a refusal leaves nothing behind


def test_groups_that_do_not_divide_the_rows_are_refused():
    codes, scales = (
        ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(kind), const_value=ir.tensor(array))
        for name, array, kind in (
            ("a.codes", np.zeros((4, 32), np.int8), ir.DataType.INT8),
            ("a.scales", np.ones((4, 3), np.float32), ir.DataType.FLOAT),
        )
    )
    node = ir.node("DequantizeLinear", [codes, scales], {"axis": 1, "block_size": 11})
    graph = ir.Graph([], node.outputs, nodes=[node], initializers=[codes, scales], opset_imports={"": 21})
    with pytest.raises(UnsupportedError, match=r"'a\.codes': found rows of 32 in 3 groups, expected groups of one"):
        ProgramWriter(None, blockwise=True).write(graph, {})


def test_it_says_everywhere_that_nobody_has_run_it(tmp_path):
    student, made = export(EIGHT, tmp_path)
    told = described(made)
    assert told["verified"] is False
    assert told["notes"][0].startswith("UNVERIFIED: ")
    assert any("interpreted in numpy (not run)" in note for note in told["notes"])
    assert any("Activations are not rounded" in note for note in told["notes"])
    data = pico_data_artifact(tmp_path / "data")
    checked = edgekit.check(made, edgekit.CheckConfig(rows=4), reference=student, data=data, out=tmp_path / "parity")
    parity = read_parity(checked)
    assert isinstance(parity, Unverified)
    assert parity.passed is False
    with pytest.raises(EnvironmentLacksError, match=r"The export is unverified: Core ML runs on Apple's systems alone"):
        require_parity(parity)
    with pytest.raises(EnvironmentLacksError, match=r"runtime 'coreml' is not available: .*verify_on_mac\.py"):
        runtime_for(made)


def test_a_student_that_does_not_round_activations_gets_no_note_about_it(tmp_path):
    _, made = export({"bits": 8, "activations": "float"}, tmp_path)
    assert not any("Activations" in note for note in described(made)["notes"])


def test_float16_is_stored_and_computed_where_it_is_asked_for(tmp_path):
    model = pico_model_artifact(tmp_path / "model", layers=1)
    whole, half = (
        edgekit.export(model, edgekit.ExportConfig(format="coreml", precision=name), out=tmp_path / name)
        for name in ("float32", "float16")
    )
    assert [described(made)["computes_in"] for made in (whole, half)] == ["float32", "float16"]
    assert model_bytes(half) < 0.8 * model_bytes(whole)
    kinds = [array.dtype for array in read_package(half.path / "model.mlpackage").constants.values() if array_of(array)]
    assert np.float16 in kinds
    assert np.float32 not in kinds
    assert 0 < largest_difference(model, half) < 0.01


def array_of(value):
    return isinstance(value, np.ndarray) and value.ndim == 2


def test_equal_models_give_equal_files(tmp_path):
    first, second = (export({"bits": 4, "group_size": 16}, tmp_path / name)[1] for name in "ab")
    names = [str(file.relative_to(first.path)) for file in first.path.rglob("*") if file.is_file()]
    assert {f"model.mlpackage/{MODEL}", f"model.mlpackage/{WEIGHTS}", "test_vectors.json"} <= set(names)
    for name in set(names) - {"artifact.json"}:
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes(), name


def test_a_language_model_is_refused_with_the_reason(tmp_path):
    model = publish_model(pico_decoder(layers=1), tmp_path / "decoder")
    with pytest.raises(UnsupportedError, match=r"coreml: found a model for the task 'causal-lm', expected text-class"):
        edgekit.export(model, PACKAGE, out=tmp_path / "package")


def test_without_coremltools_nothing_is_written_and_the_command_is_told(tmp_path, monkeypatch):
    model = pico_model_artifact(tmp_path / "model", layers=1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentLacksError, match=r"'coremltools' is not installed\. Install it: .*\[coreml\]"):
        coreml_needs.require_coremltools()
    monkeypatch.undo()
    monkeypatch.setattr(coreml, "require_coremltools", _lacks)
    with pytest.raises(EnvironmentLacksError):
        edgekit.export(model, PACKAGE, out=tmp_path / "package")
    assert not (tmp_path / "package").exists()


def _lacks():
    raise EnvironmentLacksError("coreml: none")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return export(EIGHT, tmp_path_factory.mktemp("coreml"))


@pytest.mark.parametrize(
    ("name", "version", "system"), [("iphone-15", "15.4", "iOS 16"), ("laptop-apple-m", "12", "macOS 13")]
)
def test_a_target_whose_system_is_too_old_is_refused(name, version, system, made):
    target = load_target(name)
    assert read_versions(made[1], target, target.runtime("coreml")).runtime == "coreml"
    old = target.runtime("coreml").model_copy(update={"version": version})
    with pytest.raises(UnsupportedError, match=f"reads since {system}, but '{name}' promises {version}"):
        read_versions(made[1], target, old)


def script_of(made):
    """Returns the script beside a package as a module."""
    spec = importlib.util.spec_from_file_location("verify_on_mac", made.path / "verify_on_mac.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def interpreted(package, units):
    """Stands for Core ML: the program, interpreted."""
    program = read_package(package)
    return lambda inputs: interpret(program, inputs)["logits"]


def test_the_vectors_are_torchs_answers(made):
    import torch

    student, package = made
    network = load_model(student).model.eval()
    multiply_floats(network)
    content = json.loads((package.path / "test_vectors.json").read_text())
    assert len(content["vectors"]) > 20
    assert any(0 in vector["inputs"]["attention_mask"] for vector in content["vectors"])
    for vector in content["vectors"]:
        with torch.inference_mode():
            logits = network(**{name: torch.tensor([ids]) for name, ids in vector["inputs"].items()}).logits[0]
        np.testing.assert_allclose(logits.numpy(), vector["logits"], atol=1e-6)


def test_the_script_accepts_what_computes_the_same(made, tmp_path, capsys):
    script, out = script_of(made[1]), tmp_path / "verified.json"
    assert script.main(["--out", str(out), "--compute-units", "CPU_ONLY"], opener=interpreted) == 0
    found = json.loads(out.read_text())
    assert found["passed"] is True
    assert found["max_abs_diff"] < 1e-5
    assert found["label_agreement"] == 1.0
    assert found["compute_units"] == "CPU_ONLY"
    assert found["model_sha256"] == json.loads((made[1].path / "test_vectors.json").read_text())["model_sha256"]
    assert "model.mlpackage verified: " in capsys.readouterr().out


@pytest.mark.parametrize("off", [0.01, float("nan"), float("inf")])
def test_the_script_refuses_what_computes_something_else(off, made, tmp_path, capsys):
    def opener(package, units):
        predict = interpreted(package, units)
        return lambda inputs: predict(inputs) + off

    out = tmp_path / "verified.json"
    assert script_of(made[1]).main(["--out", str(out)], opener=opener) == 1
    assert json.loads(out.read_text())["passed"] is False
    assert "model.mlpackage differs: " in capsys.readouterr().out


def test_one_row_that_differs_is_enough(made):
    script = script_of(made[1])
    vectors = json.loads((made[1].path / "test_vectors.json").read_text())["vectors"]
    answers = iter([np.array(vector["logits"]) for vector in vectors[:-1]] + [np.array(vectors[-1]["logits"]) + 0.5])
    found = script.compare(vectors, lambda inputs: next(answers))
    assert found["max_abs_diff"] == pytest.approx(0.5)
    assert found["mean_abs_diff"] == pytest.approx(0.5 / len(vectors))
    assert not script.is_within(found, 0.001)


def test_the_script_does_not_judge_another_package_or_another_shape(made, tmp_path, capsys):
    import shutil

    script, copy = script_of(made[1]), tmp_path / "copy"
    wrong = ["--directory", str(made[1].path), "--out", str(tmp_path / "verified.json")]
    assert script.main(wrong, opener=lambda package, units: lambda inputs: np.zeros((1, 3))) == 2
    assert "found 3 logits, expected 2" in capsys.readouterr().err
    shutil.copytree(made[1].path, copy)
    (copy / "model.mlpackage" / WEIGHTS).write_bytes(b"")
    assert script.main(["--directory", str(copy), "--out", str(tmp_path / "verified.json")], opener=interpreted) == 2
    assert "another package than the vectors are of" in capsys.readouterr().err
    assert not (tmp_path / "verified.json").exists()


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML runs here")
def test_the_script_says_here_that_nothing_was_verified(made, tmp_path):
    command = [sys.executable, str(made[1].path / "verify_on_mac.py")]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ran.returncode == 2
    assert "Not verified: " in ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_index_from_the_end_is_refused():
    """Core ML counts none from the end: it would read beyond the array."""
    from edgekit.exporters.coreml_interpreter import _gather

    given = {"x": np.arange(6.0).reshape(2, 3), "indices": np.array([-1]), "axis": np.array(1)}
    with pytest.raises(UnsupportedError, match="found the index -1 in a gather"):
        _gather(given)
    assert _gather({**given, "indices": np.array([2])}).tolist() == [[2.0], [5.0]]
