"""Files as people have them: several, compressed, broken; and no file at all that ends in a traceback."""

import bz2
import contextlib
import datetime
import gzip
import json
import lzma
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain.config.schema import DataConfig
from posttrain.data import files, store
from posttrain.data.formats import NAMES
from posttrain.data.loading import load
from posttrain.errors import PosttrainError
from tests.helpers.runs import compose


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def texts(path: Any, **settings: Any) -> list[Any]:
    return load(DataConfig(path=path, eval_size=0, **settings), "sft").train["text"][:]


def test_lists_and_patterns_in_order_of_name(tmp_path: Path):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.jsonl").write_bytes(lines({"text": name}))
    (tmp_path / "d.csv").write_text("text\nd\n")
    assert texts(str(tmp_path / "*.jsonl")) == ["a", "b", "c"]
    assert texts([str(tmp_path / "c.jsonl"), str(tmp_path / "d.csv")]) == ["c", "d"]
    assert texts("*.jsonl") == ["a", "b", "c"]


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_compressed_files(suffix: str, tmp_path: Path):
    zst = partial(pyarrow.compress, codec="zstd", asbytes=True)
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zst}[suffix]
    whole = lines(*({"text": str(n)} for n in range(50)))
    (tmp_path / f"d.jsonl.{suffix}").write_bytes(pack(whole))
    (tmp_path / f"d.csv.{suffix}").write_bytes(pack(b"text\nyes\n"))
    assert texts(f"d.jsonl.{suffix}") == [str(n) for n in range(50)]
    assert texts(f"d.csv.{suffix}") == ["yes"]
    (tmp_path / f"cut.jsonl.{suffix}").write_bytes(pack(whole)[:-9])
    (tmp_path / f"no.jsonl.{suffix}").write_bytes(b"not compressed")
    for name in ("cut", "no"):
        with pytest.raises(PosttrainError, match=rf"data\.path={name}.jsonl.{suffix}: .*cannot be read"):
            texts(f"{name}.jsonl.{suffix}", on_error="skip")
    (tmp_path / f"twice.jsonl.{suffix}").write_bytes(pack(whole) * 2)
    assert len(texts(f"twice.jsonl.{suffix}")) == 100


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("none/*.jsonl", "no file matches"),
        ("none.jsonl", "no such file or folder; did you mean a.jsonl?"),
        ("there/none.jsonl", "no such file or folder; {here} has no there"),
        ("aa.jsonl", "no such file or folder; did you mean a.jsonl?"),
        (["a.jsonl", "none.jsonl"], "none.jsonl: no such file or folder"),
        ([], "an empty list"),
        ("a.txt", "expected a .jsonl, .json, .csv or .parquet file"),
        ("b.parquet.gz", "Parquet is compressed inside"),
        (["a.jsonl", "c.parquet"], "Parquet and other files together"),
        ([1], "expected a path"),
        (["ORG/NAME"], "ORG/NAME: expected a file; a list names files (other sources: data.mix)"),
        (["reasoning_gym:chain_sum"], "reasoning_gym:chain_sum: expected a file"),
        ("embedded:squat", "choose from embedded:squad, embedded:imdb, embedded:arithmetic"),
    ],
)
def test_paths_that_cannot_be_read_are_said_before_anything_loads(path: Any, said: str, tmp_path: Path):
    from posttrain.jobs import preflight

    for name in ("a.jsonl", "a.txt", "b.parquet.gz", "c.parquet"):
        (tmp_path / name).write_bytes(b"")
    run, _ = compose("trainer=sft", "model=tiny", f"data.path={json.dumps(path)}")
    with pytest.raises(PosttrainError) as error:
        preflight.check(run)
    assert f"data.path={path}: " in str(error.value)
    assert said.format(here=tmp_path) in str(error.value)


def test_paths_that_are_no_files():
    from posttrain.data.sampled import data_file
    from posttrain.jobs import preflight
    from posttrain.runs.identity import data_content

    gym = "reasoning_gym:chain_sum"
    more = ("model=tiny", "reward=length", f"data.path={gym}", "data.args.size=6")
    preflight.check(compose("trainer=grpo", *more, f"data.eval_path={gym}")[0])
    assert (files.check(gym), data_content(gym), data_file(gym)) == (None, gym, gym)
    data = load(DataConfig(path=gym, args={"size": 6}, eval_path=gym), "grpo")
    assert data.eval is not None
    asked = [{row["prompt"][0]["content"] for row in part} for part in (data.train, data.eval)]
    assert not asked[0] & asked[1], "held-out tasks are of another seed"
    mixed = {"a": {"path": gym, "args": {"size": 6}}, "b": {"path": "embedded:squat"}}
    run, _ = compose("trainer=grpo", "model=tiny", "reward=length", "data.mix={a: {path: a}}")
    run.data.mix = mixed
    with pytest.raises(PosttrainError) as error:
        preflight.check(run)
    assert (
        str(error.value)
        == "data.mix.b.path=embedded:squat: choose from embedded:squad, embedded:imdb, embedded:arithmetic"
    )
    mixed["b"] = {"path": gym, "args": {"size": 6, "seed": 7}}
    assert load(DataConfig(mix=mixed, eval_size=2), "grpo").source["train_rows"] == 8
    for value in ("eight", 2.5, True):
        with pytest.raises(PosttrainError, match=f"data.args.size={value!r}: expected a whole number"):
            load(DataConfig(path=gym, args={"size": value}), "grpo")


BROKEN = [
    (b'{"text": "a"', "is not JSON: Expecting ',' delimiter at column 13"),
    (b'["a"]', "expected an object {...}, got '[\"a\"]'"),
    (b'{"text": "\xff"}', "is not UTF-8 (byte 11); save the file as UTF-8"),
    (b'{"text": "\\ud800"}', "holds half of a surrogate pair"),
    (b'{"text": "a", "n": NaN}', "is not JSON: NaN is no number there; write null"),
    (b'{"text": "a", "n": 18446744073709551616}', "which does not fit 64 bits"),
    (b'{"text": "a"} {"text": "b"}', "is not JSON: more after the object at column 14"),
    (b'{"text": ' + b"[" * 100_000, "is nested too deeply"),
    (b'{"text": null}', "text: is missing"),
]


def test_broken_lines_are_all_named_and_can_be_skipped(tmp_path: Path):
    rows = [b'{"text": "good"}', *(line for line, _ in BROKEN), b"", b'{"text": "last"}']
    (tmp_path / "d.jsonl").write_bytes(b"\n".join(rows))
    with pytest.raises(PosttrainError) as error:
        texts("d.jsonl")
    said = str(error.value)
    assert f"{len(BROKEN)} rows do not fit" in said
    assert f"and {len(BROKEN) - 5} more" in said
    data = load(DataConfig(path="d.jsonl", eval_size=0, on_error="skip"), "sft")
    assert data.train["text"][:] == ["good", "last"]
    entries = [json.loads(line) for line in data.skipped[0].path.read_text().splitlines()]
    for number, (entry, (_, reason)) in enumerate(zip(entries, BROKEN, strict=True), 2):
        assert entry["line"] == number
        whole = entry["reason"] if entry["field"] is None else f"{entry['field']}: {entry['reason']}"
        assert reason in whole
        if number < 7:
            assert f"d.jsonl, line {number}" in said


def test_rows_that_stop_the_run_are_not_copied(tmp_path: Path, monkeypatch):
    """They may be all rows of a large file."""
    (folder := tmp_path / "kept").mkdir()
    monkeypatch.setattr(store, "folders", [str(folder)])
    (tmp_path / "d.jsonl").write_bytes(b'{"text": 1}\n' * 3)
    with pytest.raises(PosttrainError, match="3 rows do not fit"):
        texts("d.jsonl")
    assert not [*folder.iterdir()]


def test_nothing_left_is_an_error_even_when_skipping(tmp_path: Path):
    (tmp_path / "d.jsonl").write_bytes(b"{\n{\n")
    with pytest.raises(PosttrainError, match="2 rows do not fit"):
        texts("d.jsonl", on_error="skip")
    (tmp_path / "empty.jsonl").write_bytes(b"\n\n")
    with pytest.raises(PosttrainError, match=r"data\.path=empty.jsonl: no rows"):
        texts("empty.jsonl")


def test_csv_lines_types_and_bad_rows(tmp_path: Path):
    (tmp_path / "d.csv").write_bytes(
        b'\xef\xbb\xbftext,n,share,ok,zip,note\n"two\nlines",1,0.5,true,007,NA\n5,2,1,False,1,\nshort,1\n"n\xff",1,1,true,1,x\n'
    )
    with pytest.raises(PosttrainError) as error:
        texts("d.csv")
    assert "d.csv, line 5: has 2 fields, the header 6" in str(error.value)
    assert "d.csv, line 6: is not UTF-8" in str(error.value)
    rows = list(load(DataConfig(path="d.csv", eval_size=0, on_error="skip"), "sft").train)
    assert rows == [
        {"text": "two\nlines", "n": 1, "share": 0.5, "ok": True, "zip": "007", "note": "NA"},
        {"text": "5", "n": 2, "share": 1.0, "ok": False, "zip": "1", "note": None},
    ]


def test_a_json_array_has_lines_too(tmp_path: Path):
    (tmp_path / "d.json").write_text('[\n{"text": "a"},\n{"text": 1},\n\n{"text": "b"}\n]\n')
    with pytest.raises(PosttrainError, match=r"d.json, line 3, text: expected text"):
        texts("d.json")
    assert texts("d.json", on_error="skip") == ["a", "b"]
    (tmp_path / "d.json").write_text('[{"text": "a"},\n{"text"')
    with pytest.raises(PosttrainError, match=r"d.json, line 2: is not JSON"):
        texts("d.json")
    (tmp_path / "d.json").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert texts("d.json") == ["a", "b"]


def test_parquet_rows_have_a_number_and_keep_their_types(tmp_path: Path):
    table = {"text": ["a", None, "c"], "day": [datetime.date(2026, 1, n) for n in (1, 2, 3)]}
    for name in ("a", "b"):
        pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / f"{name}.parquet")
    with pytest.raises(PosttrainError, match=r"b.parquet, row 2, text: is missing"):
        texts("*.parquet")
    data = load(DataConfig(path="*.parquet", eval_size=0, on_error="skip"), "sft")
    (skipped,) = data.skipped
    entries = [json.loads(line) for line in skipped.path.read_text().splitlines()]
    assert [(entry["number"], entry["row"]["text"]) for entry in entries] == [(2, None), (2, None)]
    assert data.train["text"][:] == ["a", "c", "a", "c"]
    assert data.train[1]["day"] == datetime.date(2026, 1, 3)


def test_text_and_conversations_do_not_mix(tmp_path: Path):
    turns = [{"role": "user", "content": "a"}]
    (tmp_path / "d.jsonl").write_bytes(
        lines(*({"prompt": p, "completion": "b", "extra": e} for p, e in (("a", 1), (turns, "x"), ("c", [1, None]))))
    )
    with pytest.raises(PosttrainError, match=r"d.jsonl, line 2, prompt: is of another kind than in the rows before"):
        load(DataConfig(path="d.jsonl", eval_size=0), "sft")
    rows = load(DataConfig(path="d.jsonl", eval_size=0, on_error="skip"), "sft").train
    assert rows["prompt"][:] == ["a", "c"]


def test_other_columns_keep_every_value(tmp_path: Path):
    values = [1, "1", {"a": [1, None]}, None, [], ["x", 2], 2.5, True]
    (tmp_path / "d.jsonl").write_bytes(lines(*({"text": "t", "extra": value} for value in values)))
    assert load(DataConfig(path="d.jsonl", eval_size=0), "sft").train["extra"][:] == values


def test_changed_files_are_another_run(tmp_path: Path):
    from posttrain.runs.identity import digest

    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_bytes(lines({"text": name}))

    runs = {
        "glob": ("data.path='*.jsonl'",),
        "list": ("data.path=[a.jsonl,b.jsonl]",),
        "mix": ("data.mix={one: {path: a.jsonl}, two: {path: '*.jsonl'}}",),
        "eval": ("data.path=a.jsonl", "data.eval_path='[b].jsonl'"),
        "stream": ("data.path='*.jsonl'", "data.streaming=true"),
    }
    composed = {name: compose("trainer=sft", "model=tiny", *settings)[0] for name, settings in runs.items()}
    before = {name: digest(run) for name, run in composed.items()}
    assert before == {name: digest(run) for name, run in composed.items()}
    assert len(set(before.values())) == len(runs) - 1, "a list is its files, whatever named them"
    assert before["glob"] == before["list"]
    (tmp_path / "b.jsonl").write_bytes(lines({"text": "changed"}))
    after = {name: digest(run) for name, run in composed.items()}
    assert all(before[name] != after[name] for name in runs)


COLUMNS = (
    *("text", "messages", "prompt", "completion", "chosen", "rejected", "label", "instruction", "input", "output"),
    *("conversations", "preferred_output", "non_preferred_output", "completions", "ranks", "scores", "answers"),
    *("rating", "thumb", "response", "tools", "system", "history", "score", "weight"),
)
KEYS = st.sampled_from(
    ("role", "content", "from", "value", "messages", "weight", "tool_calls", "function", "name", "rank", "answer")
)
WORDS = st.sampled_from(("user", "assistant", "human", "gpt", "up", "\n\nHuman: a\n\nAssistant: b", "", "\ud800", "a"))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | WORDS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)
ROWS = st.lists(st.dictionaries(st.sampled_from(COLUMNS) | st.text(max_size=3), VALUES, max_size=5), max_size=4)
QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def attempt(name: str, content: bytes, kind: str, **settings: Any) -> None:
    Path(name).write_bytes(content)
    with contextlib.suppress(PosttrainError):
        load(DataConfig(path=name, eval_size=0, **settings), kind)


@QUICK
@given(
    content=st.binary(max_size=60) | st.text(alphabet='[]{}",:\\u01a\n ', max_size=40).map(str.encode),
    name=st.sampled_from(
        ("d.jsonl", "d.json", "d.csv", "d.parquet", "d.jsonl.gz", "d.csv.xz", "d.json.bz2", "d.json.zst")
    ),
)
def test_no_bytes_end_in_a_traceback(content: bytes, name: str):
    attempt(name, content, "sft", on_error="skip")


@QUICK
@given(
    rows=ROWS,
    kind=st.sampled_from(("sft", "reward", "dpo", "kto", "grpo")),
    format_=st.sampled_from(NAMES),
    skip=st.booleans(),
    conversational=st.booleans(),
)
def test_no_json_ends_in_a_traceback(rows: Any, kind: str, format_: str, skip: bool, conversational: bool):
    more = {"format": format_, "on_error": "skip" if skip else "stop", "conversational": conversational}
    attempt("d.jsonl", lines(*rows), kind, **more)
    attempt("d.json", json.dumps(rows).encode(), kind, **more)


ARROW = (
    [1, None],
    [0.5, float("nan")],
    ["a", ""],
    [b"\xff", None],
    [datetime.date(2026, 1, 1), None],
    [{"role": "user", "content": "a"}, None],
    [[{"role": "assistant", "content": "a"}], [{"role": None, "content": None}]],
    [["a", None], []],
    [True, None],
)


@QUICK
@given(
    columns=st.dictionaries(st.sampled_from(COLUMNS), st.sampled_from(ARROW), min_size=1, max_size=4),
    kind=st.sampled_from(("sft", "dpo", "kto", "grpo")),
    format_=st.sampled_from(NAMES),
    skip=st.booleans(),
)
def test_no_column_types_end_in_a_traceback(columns: Any, kind: str, format_: str, skip: bool):
    pyarrow.parquet.write_table(pyarrow.table(columns), "d.parquet")
    attempt("d.parquet", Path("d.parquet").read_bytes(), kind, format=format_, on_error="skip" if skip else "stop")
    if not skip:  # what is no file is checked row by row only where it is used
        folder = f"saved-{len(list(Path().glob('saved-*')))}"
        Dataset(pyarrow.table(columns)).save_to_disk(folder)
        with contextlib.suppress(PosttrainError):
            load(DataConfig(path=folder, eval_size=0.5, format=format_), kind)
