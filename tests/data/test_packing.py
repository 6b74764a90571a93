"""Packing, the store that it reads from, and the proof that packed documents do not see each other."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForMaskedLM

from edgekit.artifact import Artifact, Lineage, publish
from edgekit.data import token_store
from edgekit.data.conversations import encode_documents
from edgekit.data.documents import Completion, Document, PlainText, schema_of, to_cells
from edgekit.data.packing import IGNORED, PADDING, PackedTokens, pack, pack_tokens
from edgekit.data.prepared import DataDescription, PreparedData, write_description
from edgekit.data.separation import find_separation, packed_inputs
from edgekit.data.token_store import TokenSettings, TokenStore, open_tokens, store_key
from edgekit.errors import CorruptArtifactError, DataError, EnvironmentLacksError, UnsupportedError
from edgekit.events import Event
from tests.pico import pico_texts
from tests.pico_decoders import DECODERS, pico_byte_tokenizer, pico_decoder
from tests.pico_language import pico_language_data

PAD = 3


def publish_documents(out: Path, documents: list[Document], form: str = "text") -> PreparedData:
    import pyarrow
    from pyarrow import parquet

    with publish(out, kind="data", lineage=Lineage(stage="source")) as staging:
        rows = [to_cells(document) for document in documents]
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema_of(form)), staging / "train.parquet")
        write_description(staging, DataDescription(labels=[], splits={"train": len(rows)}, forms={"train": form}))
    return PreparedData.open(Artifact.open(out))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    texts = [PlainText(text * (1 + index % 3)) for index, text in enumerate(pico_texts(60)[0])]
    return publish_documents(tmp_path_factory.mktemp("data") / "data", [*texts])


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Packing


def test_best_fit_decreasing_by_hand() -> None:
    """Of 10: 7 opens one, 6 another; 4 goes to the 6 (room 4 beats none), 3 to the 7; 2 and 2 open a third."""
    lengths = np.array([2, 7, 4, 3, 6, 2])
    packing = pack(lengths, 10, generator())
    found = {tuple(sorted(lengths[packing.members(index)].tolist())) for index in range(len(packing))}
    assert found == {(3, 7), (4, 6), (2, 2)}
    assert packing.padding == pytest.approx(6 / 30)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=80), st.integers(50, 70), st.integers(1, 100), st.integers(0, 5))
def test_each_piece_is_in_one_sequence_and_none_overflows(
    lengths: list[int], length: int, window: int, seed: int
) -> None:
    array = np.array(lengths, dtype=np.int64)
    packing = pack(array, length, generator(seed), window=window)
    assert sorted(packing.pieces.tolist()) == list(range(len(lengths)))
    sums = [int(array[packing.members(index)].sum()) for index in range(len(packing))]
    assert all(0 < total <= length for total in sums)
    if sums:
        assert packing.padding == pytest.approx(1 - sum(lengths) / (length * len(sums)))
    if window >= len(lengths):  # no two sequences could be one: best fit leaves none such
        assert all(first + second > length for first, second in zip(sorted(sums), sorted(sums)[1:], strict=False))
    again = pack(array, length, generator(seed), window=window)
    assert (packing.pieces == again.pieces).all()
    assert (packing.ends == again.ends).all()


def test_little_is_padding_at_the_lengths_of_real_text() -> None:
    lengths = generator().lognormal(mean=4.8, sigma=0.5, size=5000).astype(np.int64).clip(2, 512)
    assert pack(lengths, 512, generator()).padding < 0.01
    assert pack(lengths, 512, generator(), window=500).padding < 0.03


def test_long_and_short_pieces_are_spread_over_the_order() -> None:
    lengths = generator().integers(2, 100, 4000)
    packing = pack(lengths, 256, generator())
    longest = [int(lengths[packing.members(index)].max()) for index in range(len(packing))]
    half = len(longest) // 2
    assert np.mean(longest[:half]) == pytest.approx(np.mean(longest[half:]), rel=0.05)


@pytest.mark.parametrize("lengths", [[11], [0]])
def test_pieces_that_do_not_fit_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="expected 1 to 10"):
        pack(np.array(lengths), 10, generator())


def test_each_epoch_has_other_neighbours(tmp_path: Path, data: PreparedData) -> None:
    store = open_tokens(tmp_path, data, "train", pico_byte_tokenizer(), TokenSettings(64))
    first, second, other = (pack_tokens(store, 64, PAD, seed=s, epoch=e) for s, e in [(0, 0), (0, 1), (1, 0)])
    same = pack_tokens(store, 64, PAD, seed=0, epoch=0)
    assert first.packing.pieces.tolist() == same.packing.pieces.tolist()
    assert first.packing.pieces.tolist() != second.packing.pieces.tolist() != other.packing.pieces.tolist()


# The store


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.text(min_size=2, max_size=60), min_size=1, max_size=12),
    length=st.integers(2, 24),
    seed=st.integers(0, 3),
)
def test_every_token_is_learned_once_from_its_own_document(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], length: int, seed: int
) -> None:
    tokenizer, folder = pico_byte_tokenizer(), tmp_path_factory.mktemp("store")
    documents = [PlainText(text) for text in texts]
    try:
        encoded = list(encode_documents(documents, tokenizer, "here"))
    except DataError:  # two characters that are one token
        return
    data = publish_documents(folder / "data", [*documents])
    store = open_tokens(folder, data, "train", tokenizer, TokenSettings(length))
    packed = pack_tokens(store, length, PAD, seed=seed)
    batch = packed.batch(range(len(packed)))
    found = []
    for row in range(len(packed)):
        for place in np.flatnonzero(batch.labels[row] != IGNORED):
            assert batch.document_ids[row, place - 1] == batch.document_ids[row, place] != PADDING
            assert batch.position_ids[row, place - 1] == batch.position_ids[row, place] - 1
            assert batch.labels[row, place] == batch.input_ids[row, place]
            found.append((int(batch.input_ids[row, place - 1]), int(batch.input_ids[row, place])))
    expected = [pair for document in encoded for pair in zip(document.ids, document.ids[1:], strict=False)]
    assert sorted(found) == sorted(expected)
    assert store.description.learned == len(expected)
    assert (batch.input_ids[batch.document_ids == PADDING] == PAD).all()


def test_a_batch_by_hand(tmp_path: Path) -> None:
    tokenizer = pico_byte_tokenizer()
    data = publish_documents(tmp_path / "data", [Completion("ab", "cd"), Completion("x", "y")], "prompt-completion")
    store = open_tokens(tmp_path, data, "train", tokenizer, TokenSettings(10))
    packed = pack_tokens(store, 10, PAD, seed=0)
    assert len(packed) == 1
    batch = packed.batch([0])
    a, b, c, d, x, y = tokenizer.convert_tokens_to_ids([*"abcdxy"])
    assert batch.input_ids.tolist() == [[a, b, c, d, 2, x, y, 2, PAD, PAD]]
    no = IGNORED
    assert batch.labels.tolist() == [[no, no, c, d, 2, no, y, 2, no, no]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 1]]
    assert batch.document_ids.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1, PADDING, PADDING]]


def test_long_documents_are_cut_skipped_or_refused(tmp_path: Path) -> None:
    tokenizer = pico_byte_tokenizer()
    data = publish_documents(tmp_path / "data", [PlainText("xyz"), PlainText("0123456789")])
    cut = open_tokens(tmp_path, data, "train", tokenizer, TokenSettings(4))
    pieces = [tokenizer.decode(cut.piece(index).ids) for index in range(len(cut))]
    assert pieces == ["xyz", "0123", "3456", "6789"]
    assert [cut.piece(index).learned.tolist()[0] for index in range(4)] == [False] * 4
    assert (cut.description.documents, cut.description.long_documents, cut.description.learned) == (2, 1, 2 + 9)
    skipped = open_tokens(tmp_path, data, "train", tokenizer, TokenSettings(4, "skip"))
    assert (len(skipped), skipped.description.long_documents) == (1, 1)
    with pytest.raises(DataError, match=r"split 'train', row 1 .*: found 10 tokens, expected at most 4. Shorten it"):
        open_tokens(tmp_path, data, "train", tokenizer, TokenSettings(4, "error"))
    with pytest.raises(ValueError, match="length: found 1, expected at least 2"):
        TokenSettings(1)
    with pytest.raises(DataError, match="all 2 documents have more than 2 tokens and were skipped"):
        open_tokens(tmp_path, data, "train", tokenizer, TokenSettings(2, "skip"))


def test_parts_of_a_long_document_with_nothing_to_learn_are_left_out(tmp_path: Path) -> None:
    tokenizer = pico_byte_tokenizer()
    data = publish_documents(tmp_path / "data", [Completion("0123456789", "ab")], "prompt-completion")
    store = open_tokens(tmp_path, data, "train", tokenizer, TokenSettings(4))
    assert [tokenizer.decode(store.piece(index).ids) for index in range(len(store))] == ["9ab<|im_end|>"]


def test_a_store_is_made_once_and_its_key_follows_all_that_it_depends_on(
    tmp_path: Path, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, settings = pico_byte_tokenizer(), TokenSettings(64)
    events: list[Event] = []
    store = open_tokens(tmp_path, data, "train", tokenizer, settings, events.append)
    assert (events[-1].completed, events[-1].total) == (60, 60)
    assert store.description.dtype == "uint16"
    assert store.tokens.dtype == np.uint16
    assert isinstance(store.tokens, np.memmap)
    monkeypatch.setattr(token_store, "encode_documents", None)
    again = open_tokens(tmp_path, data, "train", tokenizer, settings)
    assert (again.tokens == store.tokens).all()
    tokenizer("some text", truncation=True, padding="max_length", max_length=5)  # leaves its mark on the backend
    keys = {store_key(data, ["train"], tokenizer, settings)}
    assert keys == {store.description.key}
    keys.add(store_key(data, ["train"], tokenizer, TokenSettings(32)))
    keys.add(store_key(data, ["train"], tokenizer, TokenSettings(64, "skip")))
    tokenizer.chat_template = "another"
    keys.add(store_key(data, ["train"], tokenizer, settings))
    tokenizer.add_tokens(["sea shore"])
    keys.add(store_key(data, ["train"], tokenizer, settings))
    assert len(keys) == 5


def directory_of(folder: Path) -> Path:
    return next(path for path in folder.iterdir() if not path.name.startswith("."))


def test_of_several_processes_one_makes_the_store_and_the_others_wait(
    tmp_path: Path, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Locks are held by open files, so threads stand for processes here."""
    made: list[int] = []

    def counting(*args, **kwargs):  # type: ignore[no-untyped-def]
        made.append(1)
        time.sleep(0.2)
        return encode_documents(*args, **kwargs)

    monkeypatch.setattr(token_store, "encode_documents", counting)
    with ThreadPoolExecutor() as pool:
        stores = list(
            pool.map(lambda _: open_tokens(tmp_path, data, "train", pico_byte_tokenizer(), TokenSettings(64)), range(3))
        )
    assert len(made) == 1
    assert len({store.description.key for store in stores}) == 1


def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    tmp_path: Path, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, settings = pico_byte_tokenizer(), TokenSettings(40)
    whole = open_tokens(tmp_path / "whole", data, "train", tokenizer, settings)
    monkeypatch.setattr(token_store, "_CHECKPOINT", 7)
    encoded: list[int] = []

    def dying(documents, *args, first=0, **kwargs):  # type: ignore[no-untyped-def]
        for document in encode_documents(documents, *args, first=first, **kwargs):
            encoded.append(first)
            if len(encoded) == 25:
                raise KeyboardInterrupt
            yield document

    monkeypatch.setattr(token_store, "encode_documents", dying)
    with pytest.raises(KeyboardInterrupt):
        open_tokens(tmp_path / "killed", data, "train", tokenizer, settings)
    partial = next((tmp_path / "killed").glob(".*.partial"))
    with (partial / "tokens.bin").open("ab") as stream:
        stream.write(b"half a document")
    resumed = open_tokens(tmp_path / "killed", data, "train", tokenizer, settings)
    assert encoded[25] == 21  # the documents of three checkpoints are not encoded again
    assert resumed.description == whole.description
    assert not partial.exists()
    for file in directory_of(tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "killed" / file.parent.name / file.name).read_bytes()


def test_a_store_that_is_not_whole_is_refused(tmp_path: Path, data: PreparedData) -> None:
    open_tokens(tmp_path, data, "train", pico_byte_tokenizer(), TokenSettings(64))
    path = directory_of(tmp_path)
    os.truncate(path / "ends.bin", 8)
    with pytest.raises(CorruptArtifactError, match=r"ends.bin: found 8 bytes, expected \d+. Remove .*made again"):
        TokenStore.open(path)
    (path / "tokens.json").write_text(json.dumps({"key": "x"}))
    with pytest.raises(CorruptArtifactError, match="holds no tokens"):
        TokenStore.open(path)


def test_a_full_disk_is_named_and_nothing_is_lost(
    tmp_path: Path, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(token_store.os, "fsync", full)
    with pytest.raises(EnvironmentLacksError, match=r"No space left on device.*What was written is kept"):
        open_tokens(tmp_path, data, "train", pico_byte_tokenizer(), TokenSettings(64))
    monkeypatch.undo()
    assert len(open_tokens(tmp_path, data, "train", pico_byte_tokenizer(), TokenSettings(64))) >= 60


def test_a_batch_reads_its_own_pages_alone(tmp_path: Path, data: PreparedData) -> None:
    store = open_tokens(tmp_path, data, "train", pico_byte_tokenizer(), TokenSettings(64))
    touched: list[tuple[int, int]] = []

    class Watched(np.ndarray):  # type: ignore[type-arg]
        def __getitem__(self, key):  # type: ignore[no-untyped-def]
            touched.append((key.start, key.stop))
            return super().__getitem__(key)

    watched = TokenStore(store.description, store.tokens.view(Watched), store.learned, store.ends)
    packed = PackedTokens(watched, pack_tokens(store, 64, PAD, seed=0).packing, PAD)
    packed.batch([2])
    spans = [(int(store.ends[m - 1]) if m else 0, int(store.ends[m])) for m in packed.packing.members(2).tolist()]
    assert touched == spans


# Separation

CASES = [(architecture, attention) for architecture in DECODERS for attention in ("sdpa", "eager")]


@pytest.mark.parametrize(("architecture", "attention"), CASES)
def test_packed_documents_give_the_logits_of_each_alone(
    architecture: str, attention: str, tmp_path: Path, data: PreparedData
) -> None:
    """Documents of up to 64 tokens: longer than the sliding window of 16 of Gemma 3."""
    loaded = pico_decoder(architecture)
    loaded.model.set_attn_implementation(attention)
    store = open_tokens(tmp_path, data, "train", loaded.tokenizer, TokenSettings(64))
    packed = pack_tokens(store, 96, PAD, seed=0)
    batch = packed.batch(range(8))
    assert (batch.document_ids.max(axis=1) >= 1).any()
    ids, positions, documents = map(torch.from_numpy, (batch.input_ids, batch.position_ids, batch.document_ids))
    separation = find_separation(loaded.model)
    assert separation == ("mask" if architecture == "opt" else "positions")
    with torch.no_grad():
        found = loaded.model(**packed_inputs(ids, positions, documents, separation)).logits
        for row in range(len(ids)):
            for number in range(int(documents[row].max()) + 1):
                own = documents[row] == number
                alone = loaded.model(input_ids=ids[row, own][None]).logits[0]
                torch.testing.assert_close(found[row, own], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", DECODERS)
def test_no_gradient_crosses_from_one_document_to_another(architecture: str) -> None:
    loaded = pico_decoder(architecture)
    lengths = (20, 1, 30)
    documents = torch.cat([torch.full((n,), number) for number, n in enumerate(lengths)])[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    ids = torch.randint(4, 290, (1, sum(lengths)), generator=torch.Generator().manual_seed(0))
    inputs = packed_inputs(ids, positions, documents, find_separation(loaded.model))
    vectors = loaded.model.get_input_embeddings()(inputs.pop("input_ids")).detach().requires_grad_()
    logits = loaded.model(inputs_embeds=vectors, **inputs).logits
    logits[0, 21:].square().sum().backward()
    assert vectors.grad is not None
    gradient = vectors.grad[0].abs().sum(dim=-1)
    assert (gradient[:21] == 0).all()
    assert (gradient[21:] > 0).all()


def test_a_model_that_looks_across_documents_is_refused() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = BertForMaskedLM(BertConfig(**sizes, vocab_size=40)).train()
    model.forward = _without_cache(model.forward)  # type: ignore[method-assign]
    with pytest.raises(UnsupportedError, match="model type 'bert': packed documents are not kept apart"):
        find_separation(model)
    assert model.training


def _without_cache(forward):  # type: ignore[no-untyped-def]
    return lambda use_cache=False, **inputs: forward(**inputs)


def test_several_splits_are_one_store_and_a_kill_between_them_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = PreparedData.open(pico_language_data(tmp_path, documents=120))
    tokenizer, settings = pico_byte_tokenizer(), TokenSettings(40)
    first, second = (open_tokens(tmp_path / "each", data, name, tokenizer, settings) for name in ("train", "test"))
    both = open_tokens(tmp_path / "both", data, ["train", "test"], tokenizer, settings)
    assert both.tokens.tolist() == [*first.tokens.tolist(), *second.tokens.tolist()]
    assert both.description.documents == data.rows["train"] + data.rows["test"]
    assert both.description.key != first.description.key
    monkeypatch.setattr(token_store, "_CHECKPOINT", 5)
    for stop in (data.rows["train"] - 1, data.rows["train"], data.rows["train"] + 6):
        begun: list[int] = []

        def dying(documents, *args, last=stop, begun=begun, **kwargs):  # type: ignore[no-untyped-def]
            for document in encode_documents(documents, *args, **kwargs):
                begun.append(1)
                if len(begun) > last:
                    raise KeyboardInterrupt
                yield document

        with monkeypatch.context() as patched:
            patched.setattr(token_store, "encode_documents", dying)
            with pytest.raises(KeyboardInterrupt):
                open_tokens(tmp_path / str(stop), data, ["train", "test"], tokenizer, settings)
        resumed = open_tokens(tmp_path / str(stop), data, ["train", "test"], tokenizer, settings)
        assert resumed.description == both.description
        assert resumed.tokens.tolist() == both.tokens.tolist()
