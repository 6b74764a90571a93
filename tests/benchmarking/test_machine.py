"""The fingerprint, and the cores to measure on."""

from __future__ import annotations

import os

import pytest

from edgekit.benchmarking import machine
from edgekit.benchmarking.machine import choose_cores, cpu_features, machine_fingerprint, usable_cores
from edgekit.benchmarking.memory import parse_status, read_memory
from edgekit.target import load_target

PI = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU part\t: 0xd0b

Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""
BIG_LITTLE = "Features\t: asimd asimddp i8mm sve2\n\nFeatures\t: asimd asimddp\n"


def test_the_fingerprint_is_stable_and_names_this_machine():
    found = machine_fingerprint()
    assert found == machine_fingerprint()
    assert found.cpu
    assert found.architecture == os.uname().machine
    assert found.cores == len(os.sched_getaffinity(0))
    assert found.memory_bytes > 2**28
    assert not set(found.cpu_features) - machine.FEATURES


def test_features_are_those_that_matter_and_that_all_cores_have():
    assert cpu_features(PI) == ["asimd", "asimddp", "asimdhp"]
    assert cpu_features("flags\t\t: fpu sse4_2 avx avx2 fma avx_vnni rdtscp\n") == [
        "avx",
        "avx2",
        "avx_vnni",
        "fma",
        "sse4_2",
    ]
    assert cpu_features(BIG_LITTLE) == ["asimd", "asimddp"]
    assert cpu_features("") == []


def test_an_arm_board_is_named_by_what_its_kernel_says():
    assert machine._cpu_name(PI) == "Raspberry Pi 5 Model B Rev 1.0"
    assert machine._cpu_name("CPU part\t: 0xd0b\n") == "ARM part 0xd0b"


def test_an_arm_laptop_is_named_by_its_device_tree(monkeypatch):
    tree = "lenovo,thinkpad-t14s\0qcom,x1e78100\0qcom,x1e80100\0"
    monkeypatch.setattr(machine, "_read", lambda path: tree if path == "/proc/device-tree/compatible" else "")
    assert machine._cpu_name("CPU part\t: 0x001\n") == "qcom,x1e80100 ARM part 0x001"


def test_an_android_phone_is_named_by_its_chip(monkeypatch):
    """Kernels of newer phones leave the chip out of cpuinfo; Android 12 and newer tell it."""
    told = {"ro.soc.model": "SM6375", "ro.soc.manufacturer": "QTI"}
    monkeypatch.setattr(machine, "_output_of", lambda program, name: told.get(name, ""))
    assert machine._cpu_name("CPU part\t: 0xd41\n") == "QTI SM6375"
    told.clear()
    assert machine._cpu_name("CPU part\t: 0xd41\n") == "ARM part 0xd41"


def test_a_mac_has_the_extensions_that_laptop_apple_m_asks_for(monkeypatch):
    names = ("AdvSIMD", "arm.FEAT_FP16", "arm.FEAT_DotProd", "arm.FEAT_SME")
    found = {f"hw.optional.{name}": "1" for name in names} | {"hw.optional.arm.FEAT_SME": "0"}
    monkeypatch.setattr(machine, "_sysctl", lambda name: found.get(name, ""))
    assert cpu_features("") == load_target("laptop-apple-m").cpu_features


def fake_system(monkeypatch, tmp_path, cores: dict[int, tuple[str, int]]) -> None:
    """Makes a /sys with these cores: number to siblings and kHz."""
    for core, (siblings, frequency) in cores.items():
        for folder, name, text in (
            ("topology", "thread_siblings_list", siblings),
            ("cpufreq", "cpuinfo_max_freq", str(frequency)),
        ):
            place = tmp_path / f"cpu{core}" / folder
            place.mkdir(parents=True)
            (place / name).write_text(f"{text}\n")
    monkeypatch.setattr(machine, "_SYSTEM", tmp_path)
    monkeypatch.setattr(machine, "usable_cores", lambda: sorted(cores))


def test_fast_cores_come_before_slow_ones_and_siblings_last(monkeypatch, tmp_path):
    fast, slow = 4_400_000, 3_300_000
    cores = {0: ("0-1", fast), 1: ("0-1", fast), 2: ("2-3", fast), 3: ("2,3", fast), 4: ("4", slow), 5: ("5", slow)}
    fake_system(monkeypatch, tmp_path, cores)
    assert choose_cores(1) == [2]
    assert choose_cores(2) == [0, 2]
    assert choose_cores(4) == [0, 2, 4, 5]
    assert choose_cores(6) == [0, 1, 2, 3, 4, 5]


def test_without_affinity_nothing_is_pinned(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == []
    assert choose_cores(2) == []
    assert machine_fingerprint().cores == os.cpu_count()


def test_memory_is_read_from_the_kernels_text():
    text = "Name:\tpython\nVmHWM:\t  102400 kB\nVmRSS:\t   51200 kB\nRssAnon:\t   30720 kB\nRssFile:\t   20480 kB\n"
    found = parse_status(text)
    assert (found.peak_bytes, found.resident_bytes) == (100 * 2**20, 50 * 2**20)
    assert (found.anonymous_bytes, found.file_bytes) == (30 * 2**20, 20 * 2**20)
    assert parse_status("Name:\tpython\n").peak_bytes == 0


def test_the_peak_grows_with_what_is_touched():
    before = read_memory().peak_bytes
    block = bytearray(300 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    assert read_memory().peak_bytes > before
    assert read_memory().resident_bytes >= 300 * 2**20


@pytest.mark.parametrize(("text", "numbers"), [("0", [0]), ("0,4-6\n", [0, 4, 5, 6]), ("", [])])
def test_kernel_lists(text, numbers):
    assert machine._numbers(text) == numbers
