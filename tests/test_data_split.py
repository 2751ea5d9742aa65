"""What is held out was not trained on, whatever a recipe says about splits."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from posttrain.config import DataConfig
from posttrain.data import load

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
