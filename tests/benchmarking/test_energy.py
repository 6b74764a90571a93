"""Energy: from counters and a meter's files made by hand; where there is neither, a reason and no figure."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.benchmarking.energy import meter_energy, rapl_joules, read_meter, read_rapl, why_no_rapl
from edgekit.benchmarking.result_files import read_measurement
from edgekit.benchmarking.stage import BenchConfig, bench
from edgekit.contract import StageContext, StageInputs
from edgekit.errors import UsageError
from edgekit.reporting import resources
from edgekit.results import Energy
from tests.benchmarking.examples import measurement, steady
from tests.runtimes.tiny import tiny_onnx_artifact


def package(directory, name: str, energy_uj: int, largest_uj: int = 10_000_000):
    (directory / name).mkdir(exist_ok=True)
    (directory / name / "energy_uj").write_text(f"{energy_uj}\n")
    (directory / name / "max_energy_range_uj").write_text(f"{largest_uj}\n")


def test_counters_of_packages_add_up_and_may_begin_anew(tmp_path):
    for name, energy in (("intel-rapl:0", 1_000_000), ("intel-rapl:1", 9_000_000), ("intel-rapl:0:0", 5)):
        package(tmp_path, name, energy)
    before = read_rapl(tmp_path)
    assert before == {"intel-rapl:0": 1_000_000, "intel-rapl:1": 9_000_000}
    package(tmp_path, "intel-rapl:0", 3_500_000)
    package(tmp_path, "intel-rapl:1", 500_000)
    assert rapl_joules(before, read_rapl(tmp_path), tmp_path) == pytest.approx(2.5 + 1.5)


def test_without_counters_there_is_a_reason(tmp_path):
    assert read_rapl(tmp_path) is None
    assert "no RAPL counters" in why_no_rapl(tmp_path)
    (tmp_path / "intel-rapl:0").mkdir()  # a counter that cannot be read
    assert read_rapl(tmp_path) is None
    assert "may not be read by this user" in why_no_rapl(tmp_path)


def meter(tmp_path, lines: list[str], header: str = "time,watts"):
    file = tmp_path / "meter.csv"
    file.write_text("\n".join([header, *lines]) + "\n")
    return file


def test_a_meters_power_is_integrated_within_the_windows(tmp_path):
    # 2 W until 10, then rising by 1 W a second
    file = meter(tmp_path, [f"{time},{2 + max(0, time - 10)}" for time in range(21)])
    found = meter_energy(file, [(2.5, 5.5), (10.0, 14.0)], items=4)
    assert found.joules == pytest.approx(2 * 3 + (2 * 4 + 4 * 4 / 2))
    assert found.seconds == pytest.approx(7)
    assert found.joules_per_item == pytest.approx(22 / 4)
    assert (found.source, found.reason) == ("meter", "")


@given(st.floats(0.1, 100), st.floats(0, 50), st.floats(4, 40))
@settings(max_examples=40, deadline=None)
def test_constant_power_is_power_times_time(tmp_path_factory, watts, begin, length):
    file = meter(tmp_path_factory.mktemp("meter"), [f"{time},{watts}" for time in range(100)])
    found = meter_energy(file, [(begin, begin + length)], items=1)
    assert math.isclose(found.joules, watts * length, rel_tol=1e-9)


def test_windows_that_follow_at_once_are_one(tmp_path):
    file = meter(tmp_path, [f"{time},5" for time in range(10)])
    assert meter_energy(file, [(1.0, 2.4), (2.42, 3.9)], items=1).joules == pytest.approx(5 * 2.9)


def test_other_columns_and_dates_are_understood(tmp_path):
    lines = [f"5.1,2026-11-25T12:00:0{second}+00:00,0.4,2.5" for second in range(3)]
    times, watts = read_meter(meter(tmp_path, lines, header="volts,time,amperes,watts"))
    assert (times - times[0]).tolist() == [0, 1, 2]
    assert watts.tolist() == [2.5, 2.5, 2.5]


def test_a_meter_that_did_not_see_the_samples_gives_no_figure(tmp_path):
    file = meter(tmp_path, [f"{time},5" for time in range(10)])
    for windows, reason in (([(5.0, 12.0)], "covers"), ([(5.1, 5.4)], "has 0 samples within a span")):
        found = meter_energy(file, windows, items=1)
        assert (found.source, found.joules) == ("unavailable", None)
        assert reason in found.reason
    assert "covers no time at all" in meter_energy(meter(tmp_path, []), [(1.0, 2.0)], items=1).reason


@pytest.mark.parametrize(
    ("lines", "header", "message"),
    [
        (["1,2"], "time,power", "found time, power, expected the columns time, watts"),
        (["now,2"], "time,watts", "line 2: found time 'now'"),
        (["2026-11-25T12:00:00,2"], "time,watts", "with an offset"),
        (["1"], "time,watts", "watts None"),
        (["2,1", "1,1"], "time,watts", "times that do not rise"),
    ],
)
def test_a_file_that_is_no_meters_is_refused(lines, header, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        read_meter(meter(tmp_path, lines, header))
    with pytest.raises(UsageError, match="cannot be read"):
        read_meter(tmp_path / "nowhere.csv")


def test_a_measurement_has_energy_or_the_reason_why_not(tmp_path):
    tiny = tiny_onnx_artifact(tmp_path / "onnx")
    quick = {"min_samples": 30, "min_seconds": 0.02, "length": 8}
    found = read_measurement(bench(StageInputs(model=tiny), BenchConfig(**quick), StageContext(tmp_path / "m"))).energy
    if read_rapl() is None:
        assert found == Energy(source="unavailable", reason=why_no_rapl())
    else:
        assert found.source == "rapl"
        assert found.joules_per_item > 0
    config = BenchConfig(energy_csv=str(tmp_path / "nowhere.csv"), **quick)
    with pytest.raises(UsageError, match="cannot be read"):
        bench(StageInputs(model=tiny), config, StageContext(tmp_path / "n"))
    config = BenchConfig(energy_csv=str(meter(tmp_path, ["0,5", "99999999999,5"])), **quick)
    metered = read_measurement(bench(StageInputs(model=tiny), config, StageContext(tmp_path / "o"))).energy
    assert metered.source == "unavailable"
    assert "has 0 samples within a span" in metered.reason


def test_energy_in_words():
    spent = Energy(source="rapl", joules=6.0, seconds=2.0, joules_per_item=0.015)
    assert resources.energy(measurement(steady(5.0), energy=spent)) == "15.0 mJ a call, 3.00 W (processor, RAPL)"
    nothing = Energy(source="unavailable", reason="there is no meter.")
    assert resources.energy(measurement(steady(5.0), energy=nothing)) == "unavailable: there is no meter."
