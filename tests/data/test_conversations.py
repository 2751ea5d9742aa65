"""Plain text as conversations: `data.conversational=true`."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from posttrain.config.schema import DataConfig
from posttrain.data import load
from posttrain.data.formats import converse
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


def test_each_text_becomes_one_turn_and_other_columns_stay():
    data = Dataset.from_list([{"prompt": "The sky is", "chosen": " blue.", "rejected": " green.\n", "score": 3}])
    assert converse(data)[0] == {
        "prompt": user("The sky is"),
        "chosen": assistant("blue."),
        "rejected": assistant("green."),
        "score": 3,
    }


def test_unpaired_rows():
    data = Dataset.from_list([{"prompt": "2 + 2?", "completion": "4", "label": True}])
    assert converse(data)[0] == {"prompt": user("2 + 2?"), "completion": assistant("4"), "label": True}


def test_no_prompt_is_an_error():
    with pytest.raises(PosttrainError, match=r"needs a column prompt, and the data has text; map it"):
        converse(Dataset.from_list([{"text": "The sky is blue."}]))


def test_a_conversation_is_an_error_with_row_and_column():
    data = Dataset.from_list([{"prompt": "a", "chosen": user("a") + assistant("b"), "rejected": assistant("c")}])
    with pytest.raises(PosttrainError, match="row 0, column chosen: expected text, got"):
        converse(data)


def test_a_missing_text_is_an_error_with_its_row():
    data = Dataset.from_list([{"prompt": "a"}, {"prompt": None}])
    with pytest.raises(PosttrainError, match="row 1, column prompt: expected text, got None"):
        converse(data)


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
    rows = [{"prompt": "hi", "messages": user("hi") + assistant("hello")} for _ in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = load(DataConfig(path=str(path), eval_size=2), "sft")
    assert data.prompts is not None
    assert data.prompts[0] == {"prompt": user("hi")}
