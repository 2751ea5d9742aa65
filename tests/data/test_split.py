"""What is held out was not trained on, whatever a recipe says about splits."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from posttrain.config.schema import DataConfig
from posttrain.data.loading import load
from posttrain.errors import PosttrainError

ROWS = [{"text": f"row {i}"} for i in range(20)]


@pytest.fixture(params=["file", "folder"])
def unsplit(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
        return str(tmp_path / "saved")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return str(path)


def test_a_recipes_split_names_do_not_make_training_rows_held_out(unsplit: str):
    # As in `+recipe=sft_llama data.path=rows.jsonl`, where the recipe names UltraChat's splits.
    data = load(DataConfig(path=unsplit, split="train_sft", eval_split="test_sft", eval_size=0.25), "sft")
    assert data.eval is not None
    assert (len(data.train), len(data.eval)) == (15, 5)
    assert not set(data.train["text"]) & set(data.eval["text"])
    assert data.source["held_out"] == "0.25 of train_sft"


def turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


FORMS = {
    "prompt": ("sft", lambda p, n: {"prompt": f"{p}?", "completion": f" {n}"}),
    "messages": ("sft", lambda p, n: {"messages": [turn("user", f"{p}?"), turn("assistant", f"{n}")]}),
    "pairs": (
        "dpo",
        lambda p, n: {
            side: [turn("user", f"{p}?"), turn("assistant", f"{n} {side}")] for side in ("chosen", "rejected")
        },
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_whole_prompts_are_held_out_however_they_are_written(form: str, tmp_path: Path):
    kind, row = FORMS[form]
    rows = [row(prompt, n) for prompt in range(10) for n in range(3)]
    path = tmp_path / "repeated.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = load(DataConfig(path=str(path), eval_size=0.2), kind)
    assert data.eval is not None
    prompts = [{repr(row.get("prompt") or row["messages"][:-1]) for row in part} for part in (data.train, data.eval)]
    assert [len(part) for part in prompts] == [8, 2]
    assert not prompts[0] & prompts[1]


@pytest.mark.parametrize("size", [48, 0.99])
def test_a_split_that_leaves_nothing_to_train_on_is_an_error(size: float, tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:10]), encoding="utf-8")
    with pytest.raises(PosttrainError, match=rf"data\.eval_size={size:g}: of 10 rows that leaves none to train on"):
        load(DataConfig(path=str(path), eval_size=size), "sft")
