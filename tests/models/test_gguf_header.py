import struct
from pathlib import Path

import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import ModelError
from edgekit.exporters.gguf import export_gguf
from edgekit.models.gguf_header import read_header
from tests.pico_decoders import pico_decoder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    export_gguf(pico_decoder(layers=1), file, lineage={"version": "1"})
    return file


def small_gguf(*, kind: int = 0, offset: int = 0, extra: bytes = b"", data: bytes = bytes(8)) -> bytes:
    """Returns a GGUF by hand: no metadata, one tensor `x` of two numbers."""
    start = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1) + b"x" + struct.pack("<I", 1)
    start += struct.pack("<QIQ", 2, kind, offset) + extra
    return start + bytes(-len(start) % 32) + data


def entry_by_hand(key: str, kind: int, value: bytes) -> bytes:
    """Returns a GGUF of one metadata entry."""
    name = key.encode()
    return b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(name)) + name + struct.pack("<I", kind) + value


def test_a_header_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(small_gguf())
    header = read_header(file)
    assert header.version == 3
    entry = header.tensors["x"]
    assert (entry.type, entry.shape, entry.offset, entry.bytes) == ("F32", (2,), 64, 8)


def test_it_reads_what_the_gguf_package_reads(whole: Path) -> None:
    header, reference = read_header(whole), GGUFReader(whole)
    assert header.metadata == {
        key: field.contents() for key, field in reference.fields.items() if not key.startswith("GGUF.")
    }
    assert [(e.name, e.type, e.offset, e.bytes) for e in header.tensors.values()] == [
        (t.name, t.tensor_type.name, t.data_offset, t.n_bytes) for t in reference.tensors
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found nothing at its start, .* it is not a GGUF file. Check the path, or download it again"),
        (b"GGU", "it is not a GGUF file"),
        (b"GGUF", "found 4 bytes, fewer than its header needs"),
        (b"ggml" + bytes(40), "found b'ggml' at its start, expected b'GGUF'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"GGUF" + struct.pack(">IQQ", 3, 1, 0), "is a big-endian GGUF, expected a little-endian one"),
        (b"GGUF" + struct.pack("<IQQ", 1, 1, 0), "found GGUF version 1, expected 2 or 3"),
        (small_gguf(kind=77), "'x' has the quantization number 77, which the installed gguf package cannot decode"),
        (small_gguf(kind=9), "'x' has the quantization number 9"),  # Q8_1, which nothing decodes
        (small_gguf(kind=2), r"the tensor 'x' of the type Q4_0 has the shape \(2,\)"),
        (small_gguf(offset=8), "starts at 8, not at a multiple of 32"),
        (small_gguf(data=bytes(7)), "found 71 bytes; the tensor 'x' ends at byte 72"),
        (entry_by_hand("general.alignment", 4, struct.pack("<I", 0)), "the alignment is 0"),
        (entry_by_hand("x", 9, struct.pack("<IQ", 9, 1)), "a list of values of the kind 9"),
        (entry_by_hand("x", 99, b""), "its header is not valid"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "fewer than its header needs"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**63), "fewer than its header needs"),
    ],
)
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_header(file)


def test_one_part_of_several_is_refused(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "part.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"is one of 3 parts of a model.*llama-gguf-split --merge"):
        read_header(tmp_path / "part.gguf")


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1, exclude_max=True))
def test_every_truncation_is_found(whole: Path, tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    data = whole.read_bytes()
    header = read_header(whole)
    end = max(entry.offset + entry.bytes for entry in header.tensors.values())
    file = tmp_path_factory.mktemp("cut") / "x.gguf"
    file.write_bytes(data[: int(end * share)])
    with pytest.raises(ModelError):
        read_header(file)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2000), st.integers(1, 255))
def test_a_flipped_byte_in_the_header_never_fails_in_another_way(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, position: int, change: int
) -> None:
    data = bytearray(whole.read_bytes())
    data[position] ^= change
    file = tmp_path_factory.mktemp("flip") / "x.gguf"
    file.write_bytes(data)
    header = message = None
    try:  # an exception of another kind fails the test
        header = read_header(file)
    except ModelError as error:
        message = str(error)
    if header is None:
        assert str(file) in message
    else:
        assert all(entry.offset + entry.bytes <= len(data) for entry in header.tensors.values())
