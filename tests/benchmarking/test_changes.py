"""Two saved results side by side: figures, verdicts, what was set otherwise, and what may not be compared."""

from __future__ import annotations

import json

import pytest

from edgekit.benchmarking.changes import Named, compare_saved, obstacles
from edgekit.benchmarking.saved import read_baseline, read_saved
from edgekit.errors import UsageError
from edgekit.results import BuildResult
from tests.benchmarking.examples import LAPTOP, measurement, steady
from tests.reporting.examples import build
from tests.reporting.language_examples import generation, language_build


def changes(before, after, *, margin=0.1, doubts=lambda found: ""):
    return compare_saved(Named("old", before), Named("new", after), margin=margin, doubts=doubts)


def verdicts(before, after, **settings) -> dict[str, str | None]:
    return {figure.name: figure.verdict for figure in changes(before, after, **settings).figures}


def test_a_slower_and_larger_model_is_worse_in_what_is_slower_and_larger():
    old = measurement(steady(10.0))
    new = measurement(steady(13.0), model_bytes=9_000_000, model_digest="1" * 64)
    found = changes(old, new)
    p50, p95, memory, size = found.figures
    assert (p50.name, p50.verdict) == ("p50 latency", "worse")
    assert p50.change == pytest.approx(1.3)
    assert p50.interval.low < 1.3 < p50.interval.high
    assert (p95.name, p95.verdict) == ("p95 latency", None)
    assert (memory.verdict, memory.change, memory.interval) == ("no difference", 1.0, None)
    assert (size.verdict, size.change) == ("worse", 1.125)
    assert found.worse == [p50, size]
    assert [setting.name for setting in found.settings] == ["model_digest"]
    assert any("measured apart" in note for note in found.notes)


def test_the_other_way_round_it_is_better():
    assert verdicts(measurement(steady(13.0)), measurement(steady(10.0)))["p50 latency"] == "better"


def test_equal_samples_make_no_difference_and_a_margin_within_the_noise_is_inconclusive():
    same = measurement(steady(10.0))
    assert verdicts(same, same)["p50 latency"] == "no difference"
    assert verdicts(same, same, margin=0.0005)["p50 latency"] == "inconclusive"


def test_what_a_busy_machine_spoilt_is_not_judged():
    found = changes(
        measurement(steady(10.0)),
        measurement(steady(20.0), load_average=7.0, model_bytes=16_000_000),
        doubts=lambda each: "The machine was not quiet." if each.load_average > 1 else "",
    )
    assert [figure.verdict for figure in found.figures] == ["inconclusive", None, "no difference", "worse"]
    assert "later: The machine was not quiet." in found.notes


def test_an_unknown_memory_is_not_judged():
    found = verdicts(measurement(steady(10.0), peak_rss_bytes=0), measurement(steady(10.0)))
    assert found["peak memory"] is None


def test_language_models_are_compared_at_the_depths_of_both():
    old, new = generation(contexts=(64, 512)), generation(contexts=(512, 2048))
    # the scenario is the deepest one: they did other work
    assert "context_tokens 512 and 2048" in obstacles(old, new)[0]
    names = list(verdicts(old, new))
    assert names == ["first token after 512 tokens", "decode after 512 tokens", "peak memory", "model files"]
    assert obstacles(old, old) == []
    assert verdicts(old, old)["decode after 512 tokens"] in ("no difference", "inconclusive")


def test_decoding_faster_is_better():
    old = generation()
    depth = old.depths[0]
    faster = depth.model_copy(
        update={
            "decode_tokens_per_s": 2 * depth.decode_tokens_per_s,
            "decode_tokens_per_s_interval": depth.decode_tokens_per_s_interval.model_copy(
                update={
                    "low": 2 * depth.decode_tokens_per_s_interval.low,
                    "high": 2 * depth.decode_tokens_per_s_interval.high,
                }
            ),
        }
    )
    new = old.model_copy(update={"depths": [faster, *old.depths[1:]]})
    name = f"decode after {depth.context_tokens:,} tokens"
    assert verdicts(old, new)[name] == "better"
    assert verdicts(new, old)[name] == "worse"


def test_another_machine_or_scenario_says_which():
    old = measurement(steady(10.0))
    other = measurement(steady(10.0), machine=LAPTOP.model_copy(update={"cpu": "Another", "cores": 4}))
    assert obstacles(old, other) == ["another machine: found cpu 'Some Laptop CPU' and 'Another', cores 8 and 4"]
    assert obstacles(old, measurement(steady(10.0), length=128)) == ["another scenario: found length 64 and 128"]
    assert "expected two of a kind" in obstacles(old, generation())[0]
    assert "expected two of a kind" in obstacles(old, build())[0]


def test_builds_are_compared_export_by_export():
    old = build()
    settings = {**old.recipe, "seed": 99}
    export = old.exports[0]
    larger = export.model_copy(update={"bytes": 2 * export.bytes})
    new = old.model_copy(update={"exports": [larger, *old.exports[2:]], "recipe": settings, "edgekit_version": "9"})
    found = changes(old, new)
    of = f"{export.format} for {export.target}"
    assert [(figure.of, figure.name) for figure in found.worse] == [(of, "model files")]
    changed = {setting.name: setting.after for setting in found.settings}
    assert changed["edgekit_version"] == "9"
    assert changed["recipe.seed"] == "99"
    gone = old.exports[1]
    assert f"{gone.format} for {gone.target}: only the earlier build has it." in found.notes
    assert all(figure.verdict in ("no difference", "inconclusive", None) for figure in changes(old, old).figures)


def test_a_worse_perplexity_is_worse_and_a_better_accuracy_better():
    for whole, factor, expected in ((language_build(), 1.5, "worse"), (build(), 1.15, "better")):
        export = next(export for export in whole.exports if export.quality is not None)
        quality = export.quality
        name = quality.headline.metric
        interval = getattr(quality, f"{name}_interval")
        moved = {"low": factor * interval.low, "high": factor * interval.high}
        after = quality.model_copy(
            update={
                name: factor * quality.headline.value,
                f"{name}_interval": interval.model_copy(update=moved),
            }
        )
        new = whole.model_copy(update={"exports": [export.model_copy(update={"quality": after})]})
        old = whole.model_copy(update={"exports": [export]})
        assert verdicts(old, new)[name] == expected


def write(path, text: str):
    path.write_text(text, encoding="utf-8")
    return path


def test_what_was_written_reads_back(tmp_path):
    for result in (measurement(steady(10.0)), generation(), build(), language_build()):
        text = result.model_dump_json()
        assert json.loads(text)["schema"] == 1
        assert read_saved(write(tmp_path / "saved.json", text)) == result
    (tmp_path / "built").mkdir()
    write(tmp_path / "built" / "build.json", build().model_dump_json())
    assert isinstance(read_saved(tmp_path / "built"), BuildResult)


def test_a_file_of_a_version_before_schemas_reads_as_the_first(tmp_path):
    fields = json.loads(measurement(steady(10.0)).model_dump_json())
    for name in ("schema", "mad_ms", "outliers", "conditions"):
        del fields[name]
    assert read_saved(write(tmp_path / "old.json", json.dumps(fields))).p50_ms == pytest.approx(10, rel=0.01)


def test_another_schema_is_refused_or_read_as_far_as_it_is_known(tmp_path):
    for result in (measurement(steady(10.0)), generation(), build()):
        fields = {**json.loads(result.model_dump_json()), "schema": 2, "unheard_of": 1}
        if "exports" in fields:
            fields["exports"][0]["measurement"]["unheard_of"] = 1
        path = write(tmp_path / "new.json", json.dumps(fields))
        with pytest.raises(UsageError, match=r"found schema 2, expected 1(.|\n)*--anyway"):
            read_saved(path)
        assert read_saved(path, any_schema=True) == result
    del fields["exports"]
    fields["samples_ms"] = []
    path = write(tmp_path / "broken.json", json.dumps(fields))
    with pytest.raises(UsageError, match="measure again"):
        read_saved(path, any_schema=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "found a JSON list"),
        ("{}", "expected a measurement or a build"),
        ('{"samples_ms": []}', "measure again"),
    ],
)
def test_a_file_that_is_neither_is_refused(text, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        read_saved(write(tmp_path / "x.json", text))
    with pytest.raises(UsageError, match="a directory that holds one"):
        read_saved(tmp_path)


def test_a_build_with_several_measurements_is_no_baseline(tmp_path):
    whole = build()
    measured = [export for export in whole.exports if export.measurement is not None]
    path = write(tmp_path / "build.json", whole.model_copy(update={"exports": measured[:1]}).model_dump_json())
    assert read_baseline(path) == measured[0].measurement
    path = write(
        tmp_path / "build.json", whole.model_copy(update={"exports": [*measured, *measured]}).model_dump_json()
    )
    with pytest.raises(UsageError, match=f"found a build with {2 * len(measured)} measurements, expected one"):
        read_baseline(path)
