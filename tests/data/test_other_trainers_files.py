"""Files that people bring from other trainers, in the shapes that those document: read, or refused with the fix."""

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.schema import DataConfig
from posttrain.data.loading import load
from posttrain.errors import PosttrainError


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def human(text: str) -> dict[str, Any]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, Any]:
    return {"from": "gpt", "value": text}


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
CALLED = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]


def part(text: str, kind: str = "text") -> list[dict[str, Any]]:
    return [{"type": kind, "value": text}]


# name -> row, trainer, format, what it becomes.
READ: dict[str, tuple[dict[str, Any], str, str, dict[str, Any]]] = {
    "LLaMA-Factory: alpaca with history and system": (
        {"instruction": "b", "input": "", "output": "B", "system": "s", "history": [["a", "A"]]},
        "sft",
        "alpaca",
        {"prompt": [{"role": "system", "content": "s"}, user("a"), said("A"), user("b")], "completion": [said("B")]},
    ),
    "LLaMA-Factory: alpaca pairs": (
        {"instruction": "a", "chosen": "A", "rejected": "B"},
        "dpo",
        "alpaca",
        {"prompt": [user("a")], "chosen": [said("A")], "rejected": [said("B")]},
    ),
    "LLaMA-Factory: sharegpt pairs of objects": (
        {"conversations": [human("a")], "chosen": gpt("A"), "rejected": gpt("B")},
        "dpo",
        "sharegpt",
        {"prompt": [user("a")], "chosen": [said("A")], "rejected": [said("B")]},
    ),
    "LLaMA-Factory: sharegpt with tools as a string": (
        {
            "conversations": [
                human("a"),
                {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
                {"from": "observation", "value": "4"},
                gpt("A"),
            ],
            "tools": json.dumps([TOOLS[0]["function"]]),
        },
        "sft",
        "sharegpt",
        {
            "messages": [user("a"), said("", tool_calls=CALLED), {"role": "tool", "content": "4"}, said("A")],
            "tools": json.dumps(TOOLS),
        },
    ),
    "LLaMA-Factory: KTO": (
        {"messages": [user("a"), said("A")], "label": False},
        "kto",
        "labelled_messages",
        {"prompt": [user("a")], "completion": [said("A")], "label": False},
    ),
    "LLaMA-Factory v1: parts of value and a loss_weight": (
        {
            "messages": [
                {"role": "user", "content": part("a"), "loss_weight": 0.0},
                {"role": "assistant", "content": part("A"), "loss_weight": 0.0},
                {"role": "user", "content": part("b"), "loss_weight": 0.0},
                {"role": "assistant", "content": part("B"), "loss_weight": 1.0},
            ]
        },
        "sft",
        "openai",
        {"messages": [user("a"), said("A", weight=0), user("b"), said("B", weight=1)]},
    ),
    "LLaMA-Factory v1: pairs": (
        {
            "chosen_messages": [
                {"role": "user", "content": part("a"), "loss_weight": 0.0},
                {"role": "assistant", "content": part("A"), "loss_weight": 1.0},
            ],
            "rejected_messages": [
                {"role": "user", "content": part("a"), "loss_weight": 0.0},
                {"role": "assistant", "content": part("B"), "loss_weight": 1.0},
            ],
        },
        "dpo",
        "message_pairs",
        {"prompt": [user("a")], "chosen": [said("A")], "rejected": [said("B")]},
    ),
    "axolotl: chat_template with train": (
        {"messages": [user("a"), said("A", train=False), user("b"), said("B", train=True)]},
        "sft",
        "trl",
        {"messages": [user("a"), said("A", weight=0), user("b"), said("B", weight=1)]},
    ),
    "axolotl: chat_template.default pairs": (
        {"messages": [user("a")], "chosen": said("A"), "rejected": said("B")},
        "dpo",
        "trl",
        {"prompt": [user("a")], "chosen": [said("A")], "rejected": [said("B")]},
    ),
    "axolotl: chatml.intel pairs": (
        {"system": "s", "question": "a", "chosen": "A", "rejected": "B"},
        "dpo",
        "orca",
        {"prompt": [{"role": "system", "content": "s"}, user("a")], "chosen": [said("A")], "rejected": [said("B")]},
    ),
    "ms-swift: messages with a rejected response": (
        {"messages": [user("a"), said("A")], "rejected_response": "B"},
        "dpo",
        "ms_swift_preference",
        {"prompt": [user("a")], "chosen": [said("A")], "rejected": [said("B")]},
    ),
    "ms-swift: messages with rejected messages": (
        {"messages": [user("a"), said("A")], "rejected_messages": [user("a"), said("B")]},
        "dpo",
        "message_pairs",
        {"prompt": [user("a")], "chosen": [said("A")], "rejected": [said("B")]},
    ),
    "ms-swift: query and response": (
        {"query": "b", "response": "B", "history": [["a", "A"]], "system": "s"},
        "sft",
        "ms_swift",
        {"prompt": [{"role": "system", "content": "s"}, user("a"), said("A"), user("b")], "completion": [said("B")]},
    ),
    "ms-swift: loss": (
        {"messages": [user("a"), said("A", loss=False), user("b"), said("B", loss=True)]},
        "sft",
        "trl",
        {"messages": [user("a"), said("A", weight=0), user("b"), said("B", weight=1)]},
    ),
}


@pytest.mark.parametrize("name", READ)
def test_it_is_read(name: str):
    row, kind, format_, expected = READ[name]
    Path("d.json").write_text(json.dumps([row, row]))
    data = load(DataConfig(path="d.json", eval_size=0), kind)
    assert data.source["parts"][""]["format"] == format_
    assert {column: data.train[0][column] for column in expected} == expected


@pytest.mark.parametrize(
    ("row", "kind", "fix"),
    [
        (
            {"query": "a", "chosen": "A", "rejected_answer": "B"},
            "dpo",
            "{prompt: THEIRS, rejected: THEIRS}",
        ),
        ({"messages": [user("<image>a"), said("A")], "images": ["x.png"]}, "sft", "the model reads text only"),
        ({"messages": [user("a"), said("A", train_detail=[{"begin_offset": 0}])]}, "sft", "only whole messages are"),
        ({"segments": [{"label": True, "text": "A"}]}, "sft", "map them, ours to theirs"),
    ],
)
def test_it_is_refused_with_the_fix(row: dict[str, Any], kind: str, fix: str):
    Path("d.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(PosttrainError) as error:
        load(DataConfig(path="d.jsonl", eval_size=0), kind)
    assert fix in str(error.value)
