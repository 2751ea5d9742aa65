"""Files that are broken or not what their name says: nothing is lost or altered without a word."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from posttrain.config.schema import DataConfig
from posttrain.data import files
from posttrain.data.loading import load
from posttrain.errors import PosttrainError


def texts(name: str, content: bytes, **settings: Any) -> list[str]:
    Path(name).write_bytes(content)
    return load(DataConfig(path=name, eval_size=0, **settings), "sft").train["text"][:]


def parquet(**columns: Any) -> bytes:
    pyarrow.parquet.write_table(pyarrow.table(columns), "made.parquet")
    return Path("made.parquet").read_bytes()


BROKEN = [
    ("d.csv", b'text,n\n"a,1\nb,2\n', "d.csv, line 2: a quote is not closed, so the rows after it cannot be separated"),
    ("d.csv", b'text,n\n"b"x,1\nc,2\n', "d.csv, line 2: is not CSV: ',' expected after"),
    ("d.json", b'[{"text": "a"}] [{"text": "b"}]', "d.json, line 1: is not JSON: more after the array"),
    ("d.json", b'[{"text": "a"}\n{"text": "b"}]', "d.json, line 2: is not JSON: expected a comma between rows"),
    ("d.json", b'[{"text": "a"},,{"text": "b"}]', "is not JSON: a comma with no row after it"),
    ("d.json", b'[{"text": "a"},\n]', "d.json, line 2: is not JSON: a comma with no row after it"),
    ("d.json", b'[{"text": "a"},\n{"text": ]', "d.json, line 2: is not JSON: Expecting value"),
    ("d.json", b'[{"text": "a"}', "the array does not end; the file is cut short"),
    ("d.json", b'{"data": [{"text": "a"}], "version": 1} x', "more after the array: ', \"version\": 1} x'"),
    ("d.json", b'{"v": 1, "train": [{"text": "a"}], "test": [{"text": "b"}]}', "several lists of rows (train, test)"),
    ("d.jsonl", '{"text": "a"}'.encode("utf-16-le"), "it is UTF-16 or UTF-32, or no text; save it as UTF-8"),
    ("d.jsonl.gz", b'{"text": "a"}', "it is not compressed as .gz; take .gz off its name"),
    ("d.csv", b",text\n0,a\n", "(pandas: to_csv(index=False))"),
    ("d.jsonl", b'{"text": "a", "text": "b"}', "line 1: has the key 'text' twice"),
    ("d.jsonl", b'{"text": "a", "m": {"k": 1, "k": 2}}', "line 1: has the key 'k' twice"),
    ("d.json", b'[{"text": "\xff"}]', "d.json: is not UTF-8 (byte 12); save the file as UTF-8"),
    ("d.jsonl", '{"text": "a"}'.encode("utf-16"), "it is UTF-16 or UTF-32; save it as UTF-8"),
    ("d.jsonl", gzip.compress(b'{"text": "a"}', mtime=0), "it is compressed by gzip; add .gz to its name"),
    ("d.jsonl", b"PAR1....", "it is a Parquet file; call it .parquet"),
    ("d.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS"),
    ("d.parquet", b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS"),
    ("d.parquet", b'{"text": "a"}', "it is not a Parquet file, whatever its name says"),
    ("d.csv", b'{"text": "a"}\n', "it is JSON; call it .jsonl or .json"),
    ("d.csv", b"PK\x03\x04xl", "it is a zip or Excel file"),
]


@pytest.mark.parametrize(("name", "content", "said"), BROKEN)
def test_what_is_broken_is_named_with_its_file(name: str, content: bytes, said: str):
    with pytest.raises(PosttrainError) as error:
        texts(name, content)
    assert said in str(error.value)
    assert f"data.path={name}: " in str(error.value)


def test_parquet_without_rows_or_with_bytes_that_are_no_text():
    with pytest.raises(PosttrainError, match=r"data\.path=d\.parquet: no rows"):
        texts("d.parquet", parquet(text=pyarrow.array([], pyarrow.string())))
    raw = pyarrow.array([b"a", b"\xff"], pyarrow.binary())
    latin = pyarrow.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    with pytest.raises(PosttrainError, match=r"row 2: holds text that is not UTF-8"):
        texts("d.parquet", parquet(text=latin))


def test_a_stream_names_a_file_that_is_not_parquet():
    with pytest.raises(PosttrainError, match=r"data\.path=d\.parquet: .*it is not a Parquet file"):
        texts("d.parquet", b'{"text": "a"}', streaming=True)


def test_bad_rows_of_an_array_are_skipped_one_by_one():
    rows = b'[{"text": "a"},\n{"text": 1e999},\n{"text": "b", "text": "c"},\n7,\n{"text": "d"}]'
    assert texts("d.json", rows, on_error="skip") == ["a", "d"]
    data = load(DataConfig(path="d.json", eval_size=0, on_error="skip"), "sft")
    assert [json.loads(line)["line"] for line in data.skipped[0].path.read_text().splitlines()] == [2, 3, 4]
    with pytest.raises(PosttrainError, match="line 2: holds the number"):
        texts("d.json", rows)


def test_arrays_and_wrappers_under_every_name():
    array = b'[\n {"text": "a"},\n {"text": "b"}\n]\n'
    assert texts("d.jsonl", array) == ["a", "b"]
    assert texts("d.json", b'\xef\xbb\xbf{"data": ' + array + b"}") == ["a", "b"]
    assert texts("d.json", b'{"text": "a"}\n{"text": "b"}\n') == ["a", "b"]
    one = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    Path("one.json").write_text(json.dumps(one))
    assert len(load(DataConfig(path="one.json", eval_size=0), "sft").train) == 1


def test_thumbs_and_numbers_do_not_mix():
    rows = [{"prompt": "p", "completion": "c", "rating": value} for value in (True, 4)]
    Path("d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(PosttrainError, match=r"d\.jsonl, line 2, rating: is of another kind than in the rows before"):
        load(DataConfig(path="d.jsonl", eval_size=0, threshold=3), "kto")


def test_a_pair_without_its_answer_has_a_place():
    Path("d.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt": "p", "rejected": "b"}\n')
    with pytest.raises(PosttrainError, match=r"d\.jsonl, line 2, chosen: is missing"):
        load(DataConfig(path="d.jsonl", eval_size=0), "dpo")


@pytest.mark.parametrize("record", ['{"job": "sam', '"sample"'])
def test_a_run_whose_record_is_cut_is_named(tmp_path: Path, record: str):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(record)
    with pytest.raises(PosttrainError, match=r"^run: its run\.json cannot be read"):
        load(DataConfig(path="run"), "sft")


def test_a_single_row_with_a_list_is_no_file_around_rows():
    Path("d.jsonl").write_text('{"prompt": "q", "items": [{"a": 1}]}\n')
    row = load(DataConfig(path="d.jsonl", eval_size=0), "grpo").train[0]
    assert row == {"prompt": "q", "items": [{"a": 1}]}


@pytest.mark.parametrize(
    ("kind", "cells"),
    [
        ("dpo", 'prompt,completions,scores\nq,"[""a"", ""b""]","[2, 1]"\n'),
        ("dpo", 'prompt,completions,ranks\nq,"[""a"", ""b""]","[1, 2]"\n'),
    ],
)
def test_lists_in_cells_of_csv(kind: str, cells: str):
    Path("d.csv").write_text(cells)
    row = load(DataConfig(path="d.csv", eval_size=0), kind).train[0]
    assert (row["chosen"], row["rejected"]) == ("a", "b")


def test_a_history_in_a_cell_of_csv():
    Path("d.csv").write_text('instruction,output,history\nhi,x,"[[""a"", ""b""]]"\nho,x,[]\n')
    rows = load(DataConfig(path="d.csv", eval_size=0), "sft").train
    assert [[turn["content"] for turn in row["prompt"]] for row in rows] == [["a", "b", "hi"], ["ho"]]


@pytest.mark.parametrize("columns", [{"text": "t", "again": "t"}, {"t": "t", "text": "t"}])
def test_two_names_for_a_column_of_parquet(columns: dict[str, str]):
    Path("d.parquet").write_bytes(parquet(t=["a"]))
    assert load(DataConfig(path="d.parquet", eval_size=0, columns=columns), "sft").train["text"][:] == ["a"]


def test_a_link_to_a_file_that_is_missing_is_named_with_it():
    Path("d.jsonl").symlink_to("gone.jsonl")
    assert str(files.check("d.jsonl")).endswith("; it is a link to gone.jsonl, which is missing")


def test_a_number_of_many_digits_in_an_array():
    rows = b'[{"text": "a"},\n{"text": "b", "n": ' + b"1" * 5000 + b'},\n{"text": "c"}]'
    assert texts("d.json", rows, on_error="skip") == ["a", "c"]
    with pytest.raises(PosttrainError, match=r"line 2: holds the number 1+, which does not fit 64 bits"):
        texts("d.json", rows)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.csv", "text,é\na,b\n".encode("latin-1")),
        ("d.csv.gz", gzip.compress("text,n\na,1\n".encode("utf-16"), mtime=0)),
        ("d.csv.gz", gzip.compress("text,n\na,1\n".encode("utf-16-le"), mtime=0)),
    ],
)
def test_a_header_that_is_not_utf_8(name: str, content: bytes):
    with pytest.raises(PosttrainError, match="the header is not UTF-8; save the file as UTF-8"):
        texts(name, content)


def test_a_name_that_is_not_utf_8():
    name = os.fsdecode(b"caf\xe9.jsonl")
    Path(name).write_text('{"text": "a"}\n')
    for path in (name, "*.jsonl", [name]):
        assert r"the name 'caf\udce9.jsonl' is not UTF-8; rename it" in str(files.check(path))


@pytest.mark.parametrize(("given", "shown"), [(None, "null"), (0, "0"), (False, "False"), ({}, "{}")])
def test_a_path_that_is_no_text_is_said_before_anything_loads(given: Any, shown: str):
    from posttrain.jobs import preflight
    from tests.helpers.runs import compose

    run, _ = compose("trainer=dpo", "model=tiny", "data.path=d.jsonl", "tracking=none")
    run.data.path = given
    with pytest.raises(PosttrainError) as error:
        preflight.check(run)
    assert str(error.value) == f"data.path={shown}: expected a path: a file, a folder or an id of the hub"
    run.data.path, run.data.mix = "", {"a": {"path": given}}
    with pytest.raises(PosttrainError, match=r"^data\.mix\.a\.path[^\n]*$"):
        preflight.check(run)
