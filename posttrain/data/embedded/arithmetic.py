"""Sums for a calculator: questions with their answers, and demonstrations of how it is called.

- `demonstrations`: conversations in which `calculate` is called (`messages`, `tools`), of two numbers of two digits
- `train`, `eval`: harder questions, of two or three numbers of three digits (`prompt`, `answer`)

Nothing is downloaded, and the rows are the same on every call.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from posttrain.data.embedded.calculator import calculate

if TYPE_CHECKING:
    from datasets import DatasetDict

SYSTEM = "You are a helpful assistant."
ASKED = ("What is {}?", "Compute {}.", "How much is {}?", "Give me the result of {}.", "{} makes what?", "Work out {}.")
SIZES = {"demonstrations": 192, "train": 1024, "eval": 128}
SEED = 0


def load() -> DatasetDict:
    """The three splits; no question is in two of them."""
    from datasets import Dataset, DatasetDict

    draw, seen = random.Random(SEED), set[str]()
    splits = {}
    for name, size in SIZES.items():
        rows: list[dict[str, Any]] = []
        while len(rows) < size:
            shown = name == "demonstrations"
            expression = _easy(draw) if shown else _hard(draw)
            if expression in seen:
                continue
            seen.add(expression)
            asked = draw.choice(ASKED).format(expression)
            prompt = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]
            row = {"prompt": prompt, "answer": calculate(expression)}
            rows.append(_demonstration(row, expression) if shown else row)
        splits[name] = Dataset.from_list(rows)
    return DatasetDict(splits)


def _easy(draw: random.Random) -> str:
    return f"{draw.randint(10, 99)} {draw.choice('+-')} {draw.randint(10, 99)}"


def _hard(draw: random.Random) -> str:
    numbers = [str(draw.randint(100, 999)) for _ in range(draw.choice((2, 3)))]
    return numbers[0] + "".join(f" {draw.choice('+-*')} {number}" for number in numbers[1:])


def _demonstration(row: dict[str, Any], expression: str) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "calculate", "arguments": {"expression": expression}}}
    result = row["answer"]
    turns = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "calculate", "content": result},
        {"role": "assistant", "content": f"The result is {result}."},
    ]
    from transformers.utils import get_json_schema

    return {"messages": [*row["prompt"], *turns], "tools": [get_json_schema(calculate)]}
