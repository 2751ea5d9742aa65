"""Rows of Parquet files and of saved data sets are read as they are now, whatever else is in them."""

import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Audio, ClassLabel, Dataset, DatasetInfo, Features, Image, Json, List, Value

from posttrain.config.schema import DataConfig
from posttrain.data.loading import load
from posttrain.errors import PosttrainError
from tests.data.test_mix import write
from tests.helpers.runs import compose

BAD = {"bytes": b"no image", "path": None}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def parquet(path: str, **columns: Any) -> None:
    with Path(path).open("wb") as file:
        pyarrow.parquet.write_table(pyarrow.table(columns), file)


def learnt(path: Any, kind: str = "sft", **settings: Any) -> list[dict[str, Any]]:
    return list(load(DataConfig(path=path, **{"eval_size": 0, **settings}), kind).train)


def texts(path: Any, **settings: Any) -> list[str]:
    return sorted(row["text"] for row in learnt(path, **settings))


streaming = pytest.mark.parametrize("streaming", [False, True], ids=["whole", "stream"])


@streaming
@pytest.mark.parametrize("path", ["rows[1].parquet", "d*r/x.parquet", ".hidden/x.parquet", "a::b/x.parquet"])
def test_a_name_is_no_pattern_for_datasets(path: str, streaming: bool):
    for name, text in ((path, "right"), ("rows1.parquet", "wrong"), ("dear/x.parquet", "wrong")):
        Path(name).parent.mkdir(exist_ok=True)
        parquet(name, text=[text])
    assert texts(path, streaming=streaming) == ["right"]


@streaming
def test_a_file_that_changed_is_read_again_though_its_time_did_not(streaming: bool):
    for text in ("old", "new"):
        parquet("d.parquet", text=[text])
        os.utime("d.parquet", (1e9, 1e9))
        assert texts("d.parquet", streaming=streaming) == [text]


@streaming
@pytest.mark.parametrize("order", ["ab", "ba"])
def test_files_may_have_different_columns(order: str, streaming: bool):
    parquet("a.parquet", prompt=["q"], completion=["c"], meta=[{"x": None, "y": [1]}])
    parquet("b.parquet", prompt=["r"], completion=["c"], meta=[{"x": "X", "z": 2}], answer=["4"])
    rows = sorted(learnt([f"{name}.parquet" for name in order], streaming=streaming), key=lambda row: row["prompt"])
    assert [row["prompt"] for row in rows] == ["q", "r"]
    if not streaming:  # a stream has the trainer's columns only
        assert [row["answer"] for row in rows] == [None, "4"]
        assert [row["meta"] for row in rows] == [{"x": None, "y": [1], "z": None}, {"x": "X", "y": None, "z": 2}]


def test_many_rows_keep_their_order_and_the_types_that_datasets_stored():
    features = Features({"prompt": Value("string"), "label": ClassLabel(names=["a", "b"]), "extra": Json()})
    rows = [{"prompt": f"{n}", "label": n % 2, "extra": {"n": n}} for n in range(2500)]
    Dataset.from_list(rows, features=features).to_parquet("d.parquet")
    found = load(DataConfig(path="d.parquet", eval_size=0), "grpo").train
    assert [(row["prompt"], row["extra"]) for row in found] == [(row["prompt"], row["extra"]) for row in rows]


def media(name: str, feature: Any, value: Any) -> tuple[Features, pyarrow.Table]:
    """Features with a column of media, and a table with them."""
    features = Features({"prompt": Value("string"), "completion": Value("string"), name: feature})
    return features, pyarrow.table({"prompt": ["q"], "completion": ["a"], name: [value]}, schema=features.arrow_schema)


@streaming
@pytest.mark.parametrize(
    ("feature", "value"),
    [(Audio(), BAD), (Image(), BAD), (List(Image()), [BAD]), ({"inside": Image()}, {"inside": BAD})],
)
def test_media_that_nobody_needs_are_not_decoded(feature: Any, value: Any, streaming: bool):
    features, table = media("odd", feature, value)
    pyarrow.parquet.write_table(table, "d.parquet")
    Dataset(table, info=DatasetInfo(features=features)).save_to_disk("saved")
    for path in ("d.parquet",) if streaming else ("d.parquet", "saved"):
        (row,) = learnt(path, streaming=streaming)
        assert (row["prompt"], row["completion"]) == ("q", "a")


@streaming
@pytest.mark.parametrize(
    ("name", "feature", "value"),
    [("audio", Audio(), BAD), ("image", Image(), BAD), ("images", List(Image()), [BAD])],
)
def test_media_that_a_model_would_not_see_are_refused(name: str, feature: Any, value: Any, streaming: bool):
    pyarrow.parquet.write_table(media(name, feature, value)[1], "d.parquet")
    with pytest.raises(PosttrainError, match=f"{name}: is not empty, and the model reads text only"):
        learnt("d.parquet", streaming=streaming)


@pytest.mark.parametrize("format_", [{"type": "torch"}, {"type": "numpy"}, {"columns": ["prompt"]}], ids=str)
def test_a_saved_format_does_not_change_the_rows(format_: dict[str, Any]):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = Dataset.from_list([{"messages": turns, "prompt": "x", "weight": 1.0}] * 2)
    rows.with_format(**format_).save_to_disk("saved")
    assert [row["messages"] for row in learnt("saved")] == [turns, turns]


def test_a_stream_says_that_a_weight_of_0_comes_late():
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    write("late.jsonl", [pair] * 300 + [{**pair, "weight": 0}])
    with pytest.raises(PosttrainError, match="the column weight comes after the first rows"):
        learnt("late.jsonl", "dpo", streaming=True)


def preflight_errors(*settings: str) -> str:
    from posttrain.jobs import preflight

    write("rows.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}] * 40)
    if not Path("saved").exists():
        Dataset.from_dict({"text": ["a", "b"]}).save_to_disk("saved")
    run, _ = compose(*settings, "model=tiny")
    try:
        preflight.check(run)
    except PosttrainError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("data.path=rows.jsonl", "data.eval_split=x"), "data.eval_split=x: rows.jsonl has no splits; leave it out"),
        (("data.path='*.jsonl'", "data.eval_split=x"), "data.eval_split=x: *.jsonl has no splits; leave it out"),
        (("data.path=[rows.jsonl]", "data.eval_split=x"), "data.eval_split=x: ['rows.jsonl'] has no splits"),
        (
            ("data.path=saved", "data.eval_split=x"),
            "data.eval_split=x: saved has no splits; leave it out, or set data.",
        ),
        (("data.path=saved", "data.split=x"), "data.split=x: saved has no splits; leave it out"),
        (
            ("~data", "data.mix.a={path: rows.jsonl, eval_split: x}"),
            "data.mix.a.eval_split=x: rows.jsonl has no splits; leave it out, or set data.mix.a.eval_path",
        ),
        (
            ("data.path=a/b", "data.eval_split=x", "data.eval_size=4", "data.streaming=true"),
            "data.eval_split=x: not for streams",
        ),
    ],
)
def test_a_split_that_would_be_ignored_is_refused(settings: tuple[str, ...], said: str):
    assert said in preflight_errors("trainer=dpo", *settings)


@pytest.mark.parametrize(
    "settings",
    [
        ("+recipe=dpo_llama", "data.path=rows.jsonl"),
        ("+recipe=sft_llama", "data.path=saved"),
        ("+recipe=dpo_llama", "data.eval_path=rows.jsonl"),
        ("trainer=dpo", "data=ultrafeedback", "data.path=rows.jsonl"),
        ("trainer=dpo", "data=squad"),
        ("trainer=dpo", "data.path=a/b", "data.eval_split=test"),
    ],
)
def test_splits_of_a_recipes_own_data_are_no_error(settings: tuple[str, ...]):
    assert "split" not in preflight_errors(*settings)
