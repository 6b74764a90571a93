import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.data.source import Columns, DataSource, digest_of, read_table
from edgekit.errors import DataError, EnvironmentLacksError

ROWS = [("a good film", "1", "x"), ("a bad film", "0", "y"), ('say "no", twice', "0", "x"), ("NA", "1", "x")]


def write_csv(file: Path, delimiter: str = ",") -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerow(["text", "label", "origin"])
        writer.writerows(ROWS)


def write_json_lines(file: Path) -> None:
    lines = [json.dumps({"text": text, "label": int(label), "origin": origin}) for text, label, origin in ROWS]
    file.write_text("\n\n".join(lines) + "\n", encoding="utf-8")


def write_json(file: Path) -> None:
    rows = [{"text": text, "label": float(label), "origin": origin} for text, label, origin in ROWS]
    file.write_text(json.dumps(rows), encoding="utf-8")


def write_parquet(file: Path) -> None:
    import datasets
    from pyarrow import parquet

    text = datasets.Value("string")
    features = datasets.Features(text=text, label=datasets.ClassLabel(names=["0", "1"]), origin=text)
    columns = {name: [row[index] for row in ROWS] for index, name in enumerate(features)}
    parquet.write_table(datasets.Dataset.from_dict(columns, features=features).data.table, file)


WRITERS: dict[str, Callable[[Path], None]] = {
    "a.csv": write_csv,
    "a.tsv": lambda file: write_csv(file, "\t"),
    "a.jsonl": write_json_lines,
    "a.json": write_json,
    "a.parquet": write_parquet,
}


def rows_of(source: DataSource, *, seed: int = 0, labelled: bool = True) -> list[tuple[str, ...]]:
    table = read_table(source, seed=seed, labelled=labelled)
    return list(zip(*(list(table[name]) for name in ("text", "label") if name in table.column_names), strict=True))


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    label_map = {"0": "bad", "1": "good"}
    source = DataSource(source=str(tmp_path / name), label_map=label_map)
    assert sorted(rows_of(source)) == sorted((text, label_map[label]) for text, label, _ in ROWS)
    assert sorted(rows_of(source.model_copy(update={"where": {"origin": "x"}}))) == [
        ("NA", "good"),
        ("a good film", "good"),
        ('say "no", twice', "bad"),
    ]
    by_label = DataSource(source=str(tmp_path / name), where={"label": 1})
    assert sorted(rows_of(by_label, labelled=False)) == [("NA",), ("a good film",)]


def test_a_text_file_has_one_text_a_line_and_no_labels(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n  two \r\nthree\u2028still three", encoding="utf-8", newline="")
    source = DataSource(source=str(tmp_path / "a.txt"))
    table = read_table(source, labelled=False)
    assert sorted(zip(table["place"], table["text"], strict=True)) == [
        ("line 1", "one"),
        ("line 3", "  two "),
        ("line 4", "three\u2028still three"),
    ]
    with pytest.raises(DataError, match=r"a\.txt: columns\.label: no column 'label'.* Columns: 'text'"):
        read_table(source)


def test_columns_are_mapped_and_a_byte_order_mark_is_no_part_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\ufeffreview,stars\nfine,5\n", encoding="utf-8")
    source = DataSource(source=str(tmp_path / "a.csv"), columns=Columns(text="review", label="stars"))
    assert rows_of(source) == [("fine", "5")]


def test_a_seed_shuffles_and_what_one_source_skips_another_takes(tmp_path: Path) -> None:
    lines = [f"text {index}" for index in range(50)]
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    whole = DataSource(source=str(tmp_path / "a.txt"))
    first = rows_of(whole.model_copy(update={"max_rows": 20}), labelled=False)
    rest = rows_of(whole.model_copy(update={"skip": 20}), labelled=False)
    assert first + rest == rows_of(whole, labelled=False) != [(line,) for line in lines]
    assert sorted(first + rest) == sorted((line,) for line in lines)
    assert rows_of(whole, seed=1, labelled=False) != rows_of(whole, labelled=False)
    with pytest.raises(DataError, match="skip = 50 leaves none of its 50 rows"):
        rows_of(whole.model_copy(update={"skip": 50}), labelled=False)


def test_sentences_come_from_the_texts_that_skip_leaves(tmp_path: Path) -> None:
    lines = [f"First sentence of text {index}. Second sentence of text {index}." for index in range(20)]
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    whole = DataSource(source=str(tmp_path / "a.txt"))
    skipped = {text for (text,) in rows_of(whole.model_copy(update={"max_rows": 5}), labelled=False)}
    cut = whole.model_copy(update={"skip": 5, "sentences": True})
    found = [text for (text,) in rows_of(cut, labelled=False)]
    assert sorted(found) == sorted(part + "." for line in set(lines) - skipped for part in line[:-1].split(". "))
    assert [text for (text,) in rows_of(cut.model_copy(update={"max_rows": 7}), labelled=False)] == found[:7]
    places = read_table(cut, labelled=False)["place"]
    assert {place.split(", ")[1] for place in places} == {"sentence 1", "sentence 2"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.text(min_size=1), st.sampled_from(["0", "1"])), min_size=1, max_size=8))
def test_any_text_survives_csv_and_json_lines(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    rows = [(text, label) for text, label in rows if text.strip()]
    if not rows:
        return
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows(rows)
    lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name in ("a.csv", "a.jsonl"):
        assert sorted(rows_of(DataSource(source=str(tmp_path / name)))) == sorted(rows)


BAD_FILES = [
    ("a.csv", "", "a.csv: is empty, expected rows"),
    ("a.csv", "\n\n", "a.csv: is empty, expected a header line"),
    ("a.csv", "text,label\n", "a.csv: holds no rows"),
    ("a.csv", "text,label,text\na,b,c\n", "names the column 'text' more than once"),
    ("a.csv", "texts,label\na,b\n", "columns.text: no column 'text'. Did you mean 'texts'? Columns: 'texts', 'label'"),
    ("a.csv", "text,lable\na,b\n", "columns.label: no column 'label'. Did you mean 'lable'?"),
    ("a.csv", "text,label\na,0\nb,1,c\n", "a.csv, line 3: found 3 fields, expected 2"),
    ("a.csv", "text,label\na,0,c\n", "a.csv, line 2: found 3 fields, expected 2"),
    ("a.csv", "text,label\na\n", "a.csv, line 2: found 1 fields, expected 2"),
    ("a.csv", 'text,label\n"a\nb",0\n\n" ",1\n', "a.csv, line 5, column 'text': found only white space (' ')"),
    ("a.csv", "text,label\na,0\n,1\n", "a.csv, line 3, column 'text': found only white space ('')"),
    ("a.csv", "text,label\na,0\nb,\n", "a.csv, line 3, column 'label': found no label"),
    ("a.csv", 'text,label\na,0\n"b,1\n', "a.csv, line 3: is not valid (unexpected end of data). Check its quotes"),
    ("a.csv", 'text,label\na,0\n"b"c,1\n', "a.csv, line 3: is not valid"),
    ("a.jsonl", '{"text": "a", "label": 0}\n{"text": \n', "a.jsonl, line 2: is not valid JSON"),
    ("a.jsonl", '{"text": "a", "label": 0}\n["b", 1]\n', "a.jsonl, line 2: found a list, expected an object"),
    ("a.jsonl", '{"text": "a", "label": 0}\n\n{"text": "b"}\n', "a.jsonl, line 3, column 'label': found no label"),
    ("a.jsonl", '{"text": "a", "label": null}\n', "a.jsonl, line 1, column 'label': found no label"),
    ("a.jsonl", '{"text": null, "label": 0}\n', "a.jsonl, line 1, column 'text': found no text"),
    ("a.jsonl", '{"text": 7, "label": 0}\n', "a.jsonl, line 1, column 'text': found 7 (int), expected text"),
    ("a.jsonl", '{"text": "\\ud800", "label": 0}\n', "a.jsonl, line 1, column 'text': found half of a surrogate pair"),
    ("a.json", "[1", "a.json: is not valid JSON"),
    ("a.json", '[{"text": "a", "label": 0}, 3]', "a.json, item 2: found a int, expected an object"),
    ("a.parquet", "PAR1 no", "a.parquet: is not a readable parquet file"),
    ("a.txt", "\n \n", "a.txt: holds no rows"),
    ("a.xlsx", "x", "found the suffix '.xlsx', expected one of .csv, .tsv, .jsonl, .json, .parquet, .txt"),
]


@pytest.mark.parametrize(
    ("name", "content", "message"), BAD_FILES, ids=[f"{row[0]}: {row[2][:50]}" for row in BAD_FILES]
)
def test_bad_files_name_the_file_the_place_and_what_was_expected(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    with pytest.raises(DataError) as caught:
        read_table(DataSource(source=str(tmp_path / name)))
    assert str(caught.value).startswith(str(tmp_path / name))
    assert message in str(caught.value)


def test_bytes_that_are_not_utf8_are_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text,label\ncafé,0\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.csv: is not UTF-8 text .*Save it as UTF-8"):
        read_table(DataSource(source=str(tmp_path / "a.csv")))


def test_a_label_outside_the_map_names_row_and_known_values(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,pos\nb,Neg\n", encoding="utf-8")
    source = DataSource(source=str(tmp_path / "a.csv"), label_map={"pos": "good", "neg": "bad"})
    with pytest.raises(DataError) as caught:
        read_table(source)
    assert "a.csv, line 3, column 'label': found 'Neg', expected one of label_map's 'pos', 'neg'." in str(caught.value)
    assert "Did you mean 'neg'?" in str(caught.value)


def test_a_bad_row_that_where_leaves_out_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label,origin\na,0,x\n,1,y\n", encoding="utf-8")
    assert rows_of(DataSource(source=str(tmp_path / "a.csv"), where={"origin": "x"})) == [("a", "0")]


def test_a_filter_that_nothing_passes_shows_what_there_is(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"where\.origin: no row holds 'z'.* Found: 'x', 'y'\."):
        read_table(DataSource(source=str(tmp_path / "a.csv"), where={"origin": "z"}))
    with pytest.raises(DataError, match=r"where\.origni: no column 'origni'. Did you mean 'origin'\?"):
        read_table(DataSource(source=str(tmp_path / "a.csv"), where={"origni": "z"}))


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,0\n", encoding="utf-8")
    for source, error, message in (
        (DataSource(source=str(tmp_path / "b.csv")), DataError, "b.csv: not found; expected a file, a hub id"),
        (DataSource(source="missing.csv"), DataError, "missing.csv: not found"),
        (DataSource(source=str(tmp_path)), DataError, "is a directory, expected a file in it"),
        (DataSource(source="pkg:no_such_package/a.csv"), EnvironmentLacksError, "pip install no-such-package"),
        (DataSource(source="pkg:pytest/a.csv"), DataError, "the package 'pytest' holds no 'a.csv'"),
        (DataSource(source="owner/name"), EnvironmentLacksError, "--offline forbids fetching it"),
        (
            DataSource(source=str(tmp_path / "a.csv"), split="test"),
            DataError,
            "split is given, which only a hub id has",
        ),
    ):
        with pytest.raises(error) as caught:
            read_table(source, offline=True)
        assert message in str(caught.value)
        with pytest.raises(error):
            digest_of(source, offline=True)


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    write_csv(file)
    before = digest_of(DataSource(source=str(file)))
    file.rename(tmp_path / "b.csv")
    assert digest_of(DataSource(source=str(tmp_path / "b.csv"))) == before
    with (tmp_path / "b.csv").open("a", encoding="utf-8") as stream:
        stream.write("more,1,x\n")
    assert digest_of(DataSource(source=str(tmp_path / "b.csv"))) != before


def test_reading_leaves_nothing_behind_and_says_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    code = "from edgekit.data.source import DataSource, read_table\n"
    for name, write in WRITERS.items():
        write(tmp_path / name)
        code += f"read_table(DataSource(source={str(tmp_path / name)!r}))\n"
    environment = {**os.environ, "HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    finished = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (finished.stdout, finished.stderr) == ("", "")
    assert list(home.rglob("*")) == []
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([*WRITERS, "home"])
