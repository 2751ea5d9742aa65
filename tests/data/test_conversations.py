"""Plain text as conversations: `data.conversational=true`."""

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.schema import DataConfig
from posttrain.data.loading import load
from posttrain.errors import PosttrainError


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def assistant(content: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": content}]


@pytest.fixture
def questions(tmp_path: Path) -> str:
    path = tmp_path / "questions.jsonl"
    rows = [{"question": f"{i} + 1?", "answer": f"#### {i + 1}"} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def loaded(row: dict[str, Any], kind: str) -> dict[str, Any]:
    Path("d.jsonl").write_text(json.dumps(row) + "\n")
    return load(DataConfig(path="d.jsonl", eval_size=0, conversational=True), kind).train[0]


def test_each_text_becomes_one_turn_and_other_columns_stay():
    assert loaded({"prompt": "The sky is", "chosen": " blue.", "rejected": " green.\n", "n": 3}, "dpo") == {
        "prompt": user("The sky is"),
        "chosen": assistant("blue."),
        "rejected": assistant("green."),
        "n": 3,
    }


def test_unpaired_rows():
    row = {"prompt": "2 + 2?", "completion": "4", "label": True}
    assert loaded(row, "kto") == {"prompt": user("2 + 2?"), "completion": assistant("4"), "label": True}


def test_no_prompt_is_an_error():
    with pytest.raises(PosttrainError, match=r"needs a column prompt, and the data has text; map it"):
        loaded({"text": "The sky is blue."}, "sft")


def test_a_conversation_is_one_already():
    pair = {"chosen": user("a") + assistant("b"), "rejected": user("a") + assistant("c")}
    assert loaded(pair, "dpo") == {"prompt": user("a"), "chosen": assistant("b"), "rejected": assistant("c")}


def test_a_missing_text_is_an_error_with_its_line():
    with pytest.raises(PosttrainError, match=r"d\.jsonl, line 1, prompt: is missing"):
        loaded({"prompt": None}, "grpo")


def test_training_rows_and_probe_prompts_alike(questions: str):
    config = DataConfig(path=questions, columns={"prompt": "question"}, eval_size=2, conversational=True)
    data = load(config, "grpo")
    assert data.prompts is not None
    assert data.eval is not None
    for rows in (data.train, data.eval, data.prompts):
        assert set(rows.column_names) == {"prompt", "answer"}
        assert [turn["role"] for turn in rows[0]["prompt"]] == ["user"]
    assert data.prompts["prompt"][:] == data.eval["prompt"][:]


def test_without_the_option_text_stays_text(questions: str):
    data = load(DataConfig(path=questions, columns={"prompt": "question"}, eval_size=2), "grpo")
    assert isinstance(data.train[0]["prompt"], str)


def test_probe_prompts_of_chats_are_conversations(tmp_path: Path):
    path = tmp_path / "chats.jsonl"  # as in UltraChat: the first turn again as text
    rows = [{"prompt": said, "messages": user(said) + assistant("hello")} for said in ("hi", "hi", "hey", "hey")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = load(DataConfig(path=str(path), eval_size=2), "sft")
    assert data.prompts is not None
    assert data.prompts[0]["prompt"] in (user("hi"), user("hey"))
