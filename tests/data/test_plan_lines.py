"""What the plan and the log say of rows: read, unused, skipped, dropped, cut, held out, trained on; and of leaks."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.schema import DataConfig
from posttrain.data.loading import check_learnable, load
from posttrain.errors import PosttrainError
from tests.data.test_cases import chat, write

ROOMY = ("data.eval_size=0", "trainer.args.max_length=64", "trainer.args.max_steps=1")


def pair(prompt: str, chosen: str = "yes", rejected: str = "no", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def plan(text: str) -> dict[str, str]:
    """The lines of a plan by their first word or words."""
    text = re.sub(r"\n {5,}", " ", text)
    return {m[1].strip(): m[2].strip() for m in re.finditer(r"(?m)^(\w+(?: data| from)?) +(.*)$", text)}


LONG, SHORT = "long " * 80, "q"


@pytest.mark.parametrize(
    ("kind", "args", "dropped", "cut"),
    [
        ("dpo", (), "1 of 4 rows by trainer.args.max_length=64: the prompt alone fills it", "the end of their answer"),
        ("dpo", ("trainer.args.truncation_mode=keep_end",), None, "the beginning of their prompt"),
        ("reward", (), "2 of 4 rows by trainer.args.max_length=64: an answer is longer", None),
    ],
)
def test_what_max_length_does_to_rows(train, capsys, kind: str, args: tuple[str, ...], dropped: str, cut: str):
    path = write(pair(LONG), pair(SHORT, LONG), pair(SHORT), pair("r"))
    train(f"trainer={kind}", f"data.path={path}", "dry_run=true", *ROOMY, *args)
    lines = plan(capsys.readouterr().out)
    assert lines.get("dropped") == dropped
    count = 2 if "keep_end" in "".join(args) else 1
    assert lines.get("cut") == (cut and f"{count} of 4 rows lose {cut} to trainer.args.max_length=64")


@pytest.mark.parametrize("kind", ["sft", "dpo", "kto", "reward"])
def test_the_log_has_the_exact_numbers_of_rows_beyond_the_first(train, capsys, kind: str):
    """The plan looks at the first 256 rows, the log at all of them."""
    rows = [pair(f"{n}?") for n in range(256)] + [pair(LONG)] * 3 + [pair(SHORT, LONG, LONG)] * 2
    if kind == "sft":  # with some 40 tokens of the template
        rows = [{"messages": chat(row["prompt"], row["chosen"])["messages"]} for row in rows]
    limit = 128 if kind == "sft" else 64
    train(f"trainer={kind}", f"data.path={write(*rows)}", *ROOMY, f"trainer.args.max_length={limit}")
    out = re.sub(r"\s+", " ", capsys.readouterr().out)
    several = 2 if kind == "kto" else 1  # each pair is two rows
    total, dropped, cut = (
        261 * several,
        (5 if kind == "reward" else 3 * several),
        (0 if kind == "reward" else 2 * several),
    )
    used = total - dropped
    assert f"training: of {total} rows {dropped} dropped and {cut} cut by max_length={limit}; {used} are used" in out


def test_conversations_of_which_nothing_would_be_left(train):
    path = write(chat(SHORT, "a"))
    with pytest.raises(PosttrainError, match=r"max_length=8: every row is dropped, the shortest takes \d+ tokens"):
        train("trainer=sft", f"data.path={path}", *ROOMY, "trainer.args.max_length=8", "dry_run=true")


def test_rows_that_are_all_dropped_by_the_trainer_alone(train):
    """The plan counts a prompt without the header of its answer, so it expects a token of the answer to be left."""
    row = chat("q " * 60, "a")["messages"]
    path = write({"prompt": row[:1], "completion": row[1:]})
    train("trainer=sft", f"data.path={path}", *ROOMY, "trainer.args.max_length=212", "dry_run=true")
    with pytest.raises(PosttrainError, match="max_length=212: it leaves nothing to learn in any row; raise it"):
        train("trainer=sft", f"data.path={path}", *ROOMY, "trainer.args.max_length=212")


def test_rows_that_are_read_skipped_held_out_and_trained_on(train, capsys):
    rows = [pair(f"{n}?", note=n) for n in range(9)] + [{"prompt": 3}]
    train("trainer=dpo", f"data.path={write(*rows)}", "dry_run=true", "data.on_error=skip", "data.eval_size=2")
    lines = plan(capsys.readouterr().out)
    assert lines["rows"] == "10 read, 1 skipped, 2 held out, 7 trained on"
    assert lines["skipped"] == "1 rows that do not fit, kept in skipped.jsonl with the reasons"
    assert lines["unused"] == "columns note"
    assert "dropped" not in lines
    assert "cut" not in lines


def test_rows_held_out_that_are_trained_on():
    Path("train.jsonl").write_text("".join(json.dumps(pair(f"{n}?")) + "\n" for n in range(8)))
    for name, rows in {
        "same": [pair("1?"), pair("2?")],
        "some": [pair("1?"), pair("2?", "other"), pair("new")],
        "none": [pair("new"), pair("newer")],
    }.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {n: load(DataConfig(path="train.jsonl", eval_path=f"{n}.jsonl"), "dpo") for n in ("same", "some", "none")}
    with pytest.raises(PosttrainError, match=r"each of the 2 held-out rows is a row of data\.path=train\.jsonl too"):
        check_learnable("dpo", found["same"])
    check_learnable("dpo", found["some"])
    assert (
        found["some"]
        .describe()["overlap"]
        .startswith("1 of 3 held-out rows are trained on as well, 2 have a prompt that is")
    )
    assert "overlap" not in found["none"].describe()
    with pytest.raises(PosttrainError, match="each of the 8 held-out rows"):
        check_learnable("dpo", load(DataConfig(path="train.jsonl", eval_path="train.jsonl"), "dpo"))


@pytest.mark.parametrize("kind", ["sft", "dpo", "grpo"])
def test_one_prompt_in_all_rows_cannot_be_held_out(kind: str):
    row = {
        "sft": lambda n: chat("q", f"{n}"),
        "dpo": lambda n: pair("q", f"{n}", "b"),
        "grpo": lambda n: {"prompt": "q"},
    }
    path = write(*(row[kind](n) for n in range(8)))
    with pytest.raises(
        PosttrainError, match=r"data\.eval_size=2: all 8 rows have the same prompt.*set data\.eval_size=0"
    ):
        load(DataConfig(path=path, eval_size=2), kind)
    assert load(DataConfig(path=path, eval_size=0), kind).rows == 8


def test_rows_without_a_prompt_are_no_rows_of_one_prompt():
    path = write(*({"chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(8)))
    assert load(DataConfig(path=path, eval_size=2), "reward").source["held_out_rows"] == 2


def test_the_plan_names_what_belongs_to_the_recipes_own_data(monkeypatch, capsys):
    from types import SimpleNamespace

    from posttrain.jobs import command
    from tests.helpers.runs import SMALL, composed

    Path("mine.jsonl").write_text("".join(json.dumps(pair(f"{n}?")) + "\n" for n in range(4)))
    settings = [one for one in SMALL if not one.startswith(("data.path", "data.eval_split"))]
    overrides = ("+recipe=sft_llama", *settings, "data.path=mine.jsonl", "data.eval_size=0", "dry_run=true")
    overrides += ("peft=none", "trainer.args.max_length=128")
    hydra = SimpleNamespace(
        mode=None,
        runtime=SimpleNamespace(choices={"recipe": "sft_llama"}, config_sources=[]),
        overrides=SimpleNamespace(task=overrides),
    )
    monkeypatch.setattr(command.HydraConfig, "get", staticmethod(lambda: hydra))
    command.job(composed(overrides))
    said = plan(capsys.readouterr().out)["own data"]
    assert said.startswith("not used, as it belongs to the recipe's own data set: ")
    assert "data.split=train_sft, data.eval_split=test_sft" in said
