"""Mixtures: exact shares, held-out rows of every part, one shape of rows; and streams of rows."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.schema import DataConfig
from posttrain.data import mix
from posttrain.data.held_out import load_held_out
from posttrain.data.loading import load
from posttrain.errors import PosttrainError
from tests.helpers.runs import compose


def write(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize(
    ("sizes", "weights", "stopping", "expected"),
    [
        ([3, 5], None, "first_exhausted", [3, 5]),
        ([100, 100], [3, 1], "first_exhausted", [100, 33]),
        ([100, 10], [1, 1], "first_exhausted", [10, 10]),
        ([100, 10], [1, 1], "all_exhausted", [100, 100]),
        ([10, 30, 60], [0.5, 0.25, 0.25], "first_exhausted", [10, 5, 5]),
        ([10, 30, 60], [0.5, 0.25, 0.25], "all_exhausted", [120, 60, 60]),
        ([7, 7, 7], [1, 1, 1], "first_exhausted", [7, 7, 7]),
    ],
)
def test_counts_are_in_proportion(sizes: Any, weights: Any, stopping: str, expected: list[int]):
    assert mix.counts(sizes, weights, stopping) == expected


def test_no_row_is_drawn_again_before_every_row_of_its_part_was():
    drawn = Counter(mix.order([4, 3], [10, 2]))
    assert sorted(drawn[n] for n in range(4)) == [2, 2, 3, 3]
    assert sorted(drawn[n] for n in range(4, 7)) == [0, 1, 1]
    assert mix.order([4, 3], [10, 2]) == mix.order([4, 3], [10, 2])


def test_shares_held_out_rows_and_the_record():
    write("a.jsonl", [{"text": f"a{n}"} for n in range(40)])
    write("b.jsonl", [{"body": f"b{n}"} for n in range(20)])
    parts = {
        "a": {"path": "a.jsonl", "weight": 1},
        "b": {"path": "b.jsonl", "weight": 1, "columns": {"text": "body"}, "eval_size": 4},
    }
    data = load(DataConfig(path="", mix=parts, eval_size=10), "sft")
    assert data.eval is not None
    seen = Counter(text[0] for text in data.train["text"])
    assert seen == {"a": 16, "b": 16}
    assert Counter(text[0] for text in data.eval["text"]) == {"a": 10, "b": 4}
    assert not set(data.train["text"]) & set(data.eval["text"])
    recorded = data.source["parts"]
    assert {name: (part["train_rows"], part["share"]) for name, part in recorded.items()} == {
        "a": (16, 0.5),
        "b": (16, 0.5),
    }
    assert data.describe()["mixture"] == "a 50.0% (16 rows), b 50.0% (16 rows)"
    assert data.train["text"][:] == load(DataConfig(path="", mix=parts, eval_size=10), "sft").train["text"][:]
    first = load(DataConfig(path="", mix=parts, eval_size=10, max_train_rows=8, max_eval_rows=5), "sft")
    again = load_held_out(DataConfig(path="", mix=parts, eval_size=10), "sft")
    assert again.train["text"][:] == data.eval["text"][:], "job=evaluate sees what training held out"
    only = {**parts, "b": {**parts["b"], "eval_size": 0}}
    assert len(load_held_out(DataConfig(path="", mix=only, eval_size=10), "sft").train) == 10
    with pytest.raises(PosttrainError, match="nothing is held out"):
        load_held_out(DataConfig(path="", mix=only | {"a": {**parts["a"], "eval_size": 0}}), "sft")
    assert first.train["text"][:] == data.train["text"][:8]
    assert first.eval is not None
    assert len(first.eval) == 5


def test_formats_mix_and_other_columns_are_none_where_a_part_lacks_them():
    write("chat.jsonl", [{"messages": turns(f"{n}?", "yes"), "tag": n} for n in range(3)])
    write("shared.jsonl", [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}] * 3)
    write("alpaca.jsonl", [{"instruction": "a", "input": "", "output": "c"}] * 3)
    parts = {name: {"path": f"{name}.jsonl"} for name in ("chat", "shared", "alpaca")}
    data = load(DataConfig(path="", mix=parts, eval_size=0), "sft")
    assert [part["format"] for part in data.source["parts"].values()] == ["trl", "sharegpt", "alpaca"]
    rows = list(data.train)
    assert len(rows) == 9
    assert sum(row["messages"] == turns("a", "c") for row in rows) == 3
    assert sorted(str(row["tag"]) for row in rows) == ["0", "1", "2", *["None"] * 6]


@pytest.mark.parametrize(
    ("rows", "kind", "said"),
    [
        ([{"prompt": "a", "completion": "b"}], "sft", "completion is text in b and a conversation in a"),
        ([{"text": "b"}], "sft", "data.mix: the parts have different columns to learn from"),
        ([{"prompt": "a", "completion": 1}], "sft", "data.mix.b.path=b.jsonl: 1 row does not fit"),
        (
            [{"prompt": turns("a", "")[:1], "completion": turns("", "b")[1:], "n": "x"}],
            "sft",
            "data.mix.b: the column n is of another type than in a",
        ),
    ],
)
def test_parts_that_do_not_go_together(rows: list[dict[str, Any]], kind: str, said: str):
    write("a.jsonl", [{"prompt": turns("a", "")[:1], "completion": turns("", "b")[1:], "n": 1}])
    write("b.jsonl", rows)
    with pytest.raises(PosttrainError) as error:
        load(DataConfig(path="", mix={"a": {"path": "a.jsonl"}, "b": {"path": "b.jsonl"}}, eval_size=0), kind)
    assert said in str(error.value)


def test_settings_of_a_mixture_are_checked_at_once():
    from posttrain.jobs import preflight

    write("a.jsonl", [{"text": "a"}])
    broken = "{a: {path: a.jsonl, weight: 0}, b: {path: none.jsonl, wieght: 1}, c: {weight: 1}, d: 3}"
    beside = ("data.stopping_strategy=never",)
    run, _ = compose("trainer=sft", "model=tiny", f"data.mix={broken}", *beside)
    with pytest.raises(PosttrainError) as error:
        preflight.check(run)
    for said in (
        "data.mix.a.weight=0: expected above 0",
        "data.mix.b.wieght: unknown key; did you mean weight?",
        "data.mix.b.path=none.jsonl: no such file",
        "data.mix.c.path: required, and not set",
        "data.mix.d=3: expected keys such as path and weight",
        "data.mix: some parts have a weight and some have none",
        "data.stopping_strategy=never: choose from first_exhausted, all_exhausted",
    ):
        assert said in str(error.value)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("format: foo", "data.mix.a.format=foo: choose from auto, trl"),
        ("on_error: skp", "data.mix.a.on_error=skp: did you mean skip?"),
        ("pairs: two", "data.mix.a.pairs=two: choose from all, one"),
        ("eval_size: abc", "data.mix.a.eval_size=abc: expected a number"),
        ("columns: 5", "data.mix.a.columns=5: expected settings"),
        ("max_train_rows: 1.5", "data.mix.a.max_train_rows=1.5: expected a whole number"),
        ("conversational: maybe", "data.mix.a.conversational=maybe: expected true or false"),
    ],
)
def test_settings_of_a_part_are_checked_as_those_of_data(setting: str, said: str):
    from posttrain.jobs import preflight

    write("a.jsonl", [{"text": "a"}])
    run, _ = compose("trainer=sft", "model=tiny", f"data.mix={{a: {{path: a.jsonl, {setting}}}}}")
    with pytest.raises(PosttrainError) as error:
        preflight.check(run)
    assert str(error.value).startswith(said)


def test_settings_of_a_part_get_their_types():
    given = {"a": {"path": "a.jsonl", "conversational": "false", "eval_size": "2"}}
    part = mix.parts(DataConfig(path="", mix=given))["a"]
    assert (part.conversational, part.eval_size) == (False, 2.0)


def test_settings_of_one_source_beside_a_mixture_are_one_error():
    from posttrain.jobs import preflight

    write("a.jsonl", [{"text": "a"}])
    settings = ("model=tiny", "data.mix={a: {path: a.jsonl}}")
    beside = ("data.eval_path=a.jsonl", "data.format=alpaca", "data.columns={text: words}", "data.min_score=1")
    with pytest.raises(PosttrainError) as error:
        preflight.check(compose("trainer=sft", "data=ultrachat", *beside, *settings)[0])
    assert str(error.value) == (
        "data.path=HuggingFaceH4/ultrachat_200k, data.split=train_sft, data.eval_path=a.jsonl, "
        "data.eval_split=test_sft, data.columns={'text': 'words'}, data.min_score=1.0, data.format=alpaca: not read "
        "together with data.mix; set it in data.mix.NAME of its part (~data leaves out what a recipe takes "
        "from a group, data.args.OPTION=null drops one option)"
    )
    preflight.check(compose("+recipe=sft_llama", "~data", "peft=none", *settings)[0])
    of_a_recipe = ("size", "min_terms", "max_terms", "max_digits", "system")
    taken = compose("+recipe=grpo_reasoning_smollm2", "~data", *settings)[0]
    with pytest.raises(PosttrainError, match=r"^data\.args={'size': 500, .*}: not read together with data\.mix"):
        preflight.check(taken)
    preflight.check(
        compose("+recipe=grpo_reasoning_smollm2", "~data", *settings, *(f"data.args.{o}=null" for o in of_a_recipe))[0]
    )


def test_a_run_on_a_mixture(train: Any, capsys: pytest.CaptureFixture[str]):
    write("a.jsonl", [{"messages": turns(f"{n}?", "yes")} for n in range(8)])
    write("b.jsonl", [{"instruction": f"{n}", "output": "b"} for n in range(8)])
    settings = ("data.mix={a: {path: a.jsonl, weight: 3}, b: {path: b.jsonl, weight: 1}}", "data.path=null")
    directory = train("trainer=sft", *settings, "data.eval_size=2", "trainer.args.max_steps=1", "peft=none")
    parts = directory.record()["data"]["parts"]
    assert {name: (part["format"], part["train_rows"]) for name, part in parts.items()} == {
        "a": ("trl", 6),
        "b": ("alpaca", 2),
    }
    assert "a 75.0% (6 rows), b 25.0% (2 rows)" in capsys.readouterr().out
    assert directory.record()["data"]["held_out_rows"] == 4


STREAM = ("data.streaming=true", "data.eval_size=4", "trainer.args.max_steps=4", "trainer.args.save_steps=2")


def test_a_stream_trains_and_goes_on_with_the_rows_it_has_not_seen(train: Any, monkeypatch: pytest.MonkeyPatch):
    from posttrain.training import build
    from tests.helpers.runs import weights

    write("a.jsonl", [{"messages": turns(f"{n}?", f"{n}")} for n in range(20)])
    Path("b.jsonl").write_text('{"messages": []}\n{"messages"\n')
    settings = ("trainer=sft", "data.path='?.jsonl'", *STREAM, "data.on_error=skip", "peft=none")
    settings += ("trainer.args.per_device_train_batch_size=4",)
    whole = train(*settings, "name=whole")
    record = whole.record()
    assert (record["status"], record["steps"]) == ("finished", 4)
    assert record["data"]["train_rows"] is None
    assert record["data"]["held_out"] == "the first 4 rows"
    skipped = [json.loads(line) for line in whole.skipped.read_text().splitlines()]
    assert [(entry["line"], Path(entry["file"]).name) for entry in skipped] == [(1, "b.jsonl"), (2, "b.jsonl")]

    real = build.build

    def stopping(kind: str, parts: Any) -> Any:
        trainer = real(kind, parts)
        step = trainer.training_step

        def until_three(*args: Any, **kwargs: Any) -> Any:
            if trainer.state.global_step == 3:
                raise KeyError("killed")
            return step(*args, **kwargs)

        trainer.training_step = until_three
        return trainer

    monkeypatch.setattr(build, "build", stopping)
    with pytest.raises(KeyError):
        train(*settings, "name=again")
    monkeypatch.setattr(build, "build", real)
    again = train(*settings, "name=again")
    assert again.record()["steps"] == 4
    one, other = weights(whole.model), weights(again.model)
    assert all((one[name] == other[name]).all() for name in one)


def test_a_stream_leaves_nothing_behind_and_a_bad_row_ends_it_with_its_place():
    from posttrain.data import store

    write("a.jsonl", [{"text": f"{n}"} for n in range(600)])
    data = load(DataConfig(path="a.jsonl", streaming=True, eval_size=0), "sft")
    kept = set(Path(store.temporary_file("x")).parent.rglob("*"))
    assert sorted(int(row["text"]) for row in data.train) == list(range(600))
    assert set(Path(store.temporary_file("x")).parent.rglob("*")) == kept
    with Path("a.jsonl").open("a") as file:
        file.write('{"text": 7}\n')
    data = load(DataConfig(path="a.jsonl", streaming=True, eval_size=0), "sft")
    with pytest.raises(PosttrainError, match=r"a\.jsonl, line 601, text: expected text"):
        list(data.train)


def test_columns_of_a_stream_may_change_on_the_way():
    rows = [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "n": 1}] * 300
    write("a.jsonl", [*rows, {**rows[0], "n": "x", "tools": '[{"name": "f"}]'}])
    data = load(DataConfig(path="a.jsonl", streaming=True, eval_size=0), "sft")
    found = list(data.train)
    assert len(found) == 301
    assert [row["tools"] for row in found if row["tools"]] == ['[{"type": "function", "function": {"name": "f"}}]']


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("trainer=sft", "data.eval_size=4"), "data.streaming=true: how long a stream is, is unknown"),
        (("trainer=sft", "trainer.args.max_steps=4"), "data.eval_size=0.05: a share of a stream is unknown"),
        (("trainer=kto", "trainer.args.max_steps=4"), "data.streaming=true: kto mixes good and bad answers"),
        (("trainer=grpo", "trainer.args.max_steps=4"), "data.streaming=true: grpo draws its prompts from all rows"),
        (("trainer=sft", "job=evaluate"), "data.streaming=true: job=evaluate reads its rows as a whole"),
        (("trainer=sft", "data.max_train_rows=4"), "data.max_train_rows: not for streams"),
        (("trainer=sft", "data.path=reasoning_gym:chain_sum"), "data.path=reasoning_gym:chain_sum: is made here"),
        (("trainer=dpo", "data.path=embedded:squad"), "data.path=embedded:squad: is made here, as a whole"),
        (("trainer=sft", "data.path=saved"), "data.path=saved: a folder saved by `datasets` is not streamed"),
    ],
)
def test_what_cannot_be_streamed_is_said(settings: tuple[str, ...], said: str):
    from posttrain.jobs import preflight

    write("a.jsonl", [{"text": "a"}])
    Path("saved").mkdir()
    write("saved/state.json", [{}])
    run, _ = compose("data.path=a.jsonl", *settings, "model=tiny", "data.streaming=true")
    with pytest.raises(PosttrainError) as error:
        preflight.check(run)
    assert said in str(error.value)
