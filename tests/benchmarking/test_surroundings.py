"""What is read from the kernel's texts, by hand, and that work beside a process is told apart from its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from edgekit.benchmarking.machine import load_average
from edgekit.benchmarking.processor_time import core_ticks, look_at, process_ticks, read_frequency_mhz
from edgekit.benchmarking.surroundings import Surroundings

STAT = """cpu  93395 509 8320 37313 280 0 69 142 0 0
cpu0 100 10 20 500 7 3 2 30 5 1
cpu1 200 0 40 400 0 0 1 0 0 0
intr 1 2 3
"""
SPIN = "import sys\nsys.stdout.write('.'); sys.stdout.flush()\nwhile True: pass"


def test_ticks_of_cores_by_hand():
    # user + nice + system + interrupts + soft interrupts; stolen; and these with idle and waiting
    assert core_ticks(STAT, [0]) == (135, 30, 672)
    assert core_ticks(STAT, [0, 1]) == (135 + 241, 30, 672 + 641)
    assert core_ticks(STAT, [2]) is None
    assert core_ticks(STAT, []) is None


def test_the_time_of_a_process_whose_name_has_spaces():
    assert process_ticks("77 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 41 2 0 0 20 0 1 0") == 43


def test_the_frequency_is_that_of_the_slowest_core_or_not_known(tmp_path):
    for core, khz in ((0, 2_400_000), (1, 1_800_000)):
        (tmp_path / f"cpu{core}" / "cpufreq").mkdir(parents=True)
        (tmp_path / f"cpu{core}" / "cpufreq" / "scaling_cur_freq").write_text(f"{khz}\n")
    assert read_frequency_mhz([0, 1], tmp_path) == 1800
    assert read_frequency_mhz([0, 2], tmp_path) is None
    assert read_frequency_mhz([], tmp_path) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_work_beside_a_process_on_its_core_is_seen():
    core = max(os.sched_getaffinity(0))
    spinning = [subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for each in spinning:
            os.sched_setaffinity(each.pid, [core])
            each.stdout.read(1)
        surroundings = Surroundings()
        with surroundings.watch(lambda: look_at(spinning[0].pid, [core])):
            time.sleep(1.0)
    finally:
        for each in spinning:
            each.kill()
            each.communicate()
    found = surroundings.conditions(load_average())
    assert surroundings.conditions(load_average()).load_average_after > 0
    # the other one takes its turns on the same core: half of the time, more or less
    assert 0.1 < found.other_work_share <= 1.0
    assert 0.0 <= found.stolen_share <= 1.0


def test_nothing_is_told_of_a_process_without_cores_of_its_own():
    surroundings = Surroundings()
    with surroundings.watch(lambda: look_at(os.getpid(), [])):
        pass
    found = surroundings.conditions(load_average())
    assert (found.other_work_share, found.stolen_share, found.frequency_low_mhz) == (None, None, None)
