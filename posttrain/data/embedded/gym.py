"""Procedural tasks of reasoning-gym with answers that its own scorers verify: `data.path=reasoning_gym:TASK`.

Source: Stojanovski et al. 2025, "Reasoning Gym: Reasoning Environments for Reinforcement Learning with Verifiable
Rewards" (arXiv:2505.24760).
"""

from __future__ import annotations

import json
from dataclasses import fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from posttrain import extras
from posttrain.config.suggestions import did_you_mean
from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from datasets import DatasetDict

INSTALL = f"needs reasoning-gym; {extras.install_command('reasoning-gym')}"
SIZE, SEED = 500, 0
# A task draws each entry from its seed plus the entry's number, so seeds side by side give nearly the same entries.
HELD_OUT = 1 << 30


def load(path: str, args: dict[str, Any]) -> DatasetDict:
    """The splits train and test of `reasoning_gym:TASK`; test has another seed and no question of train.

    `args` are the task's own options, with `size` and `seed`, and `system`, the text of a system message; null leaves
    one out. Columns: `prompt` (messages), `answer` (a solution, or None), `metadata` (JSON) and `task` (JSON), by which
    [`posttrain.rewards.gym.reasoning_gym`] finds the entry again.
    """
    from datasets import Dataset, DatasetDict

    name, given = path.split(":", 1)[1], {option: value for option, value in args.items() if value is not None}
    system = given.pop("system", None)
    options = {"size": SIZE, "seed": SEED, **given}
    for option in ("size", "seed"):
        if not isinstance(options[option], int) or isinstance(options[option], bool):
            raise PosttrainError(f"data.args.{option}={options[option]!r}: expected a whole number")
    seen: set[str] = set()
    splits = {}
    for split, seed in (("train", options["seed"]), ("test", options["seed"] + HELD_OUT)):
        rows = _rows(name, {**options, "seed": seed}, system, path)
        if split == "test":
            rows = [row for row in rows if row["prompt"][-1]["content"] not in seen]
        seen |= {row["prompt"][-1]["content"] for row in rows}
        if not rows:
            raise PosttrainError(
                f"data.path={path}: every question drawn to be held out is one of the training questions; lower "
                "data.args.size, or set data.args to a task with more questions"
            )
        splits[split] = Dataset.from_list(rows)
    return DatasetDict(splits)


def _rows(name: str, options: dict[str, Any], system: str | None, path: str) -> list[dict[str, Any]]:
    tasks = dataset(name, json.dumps(options, sort_keys=True), f"data.path={path}")
    before = [{"role": "system", "content": system}] if system else []
    rows = []
    for index in range(len(tasks)):
        entry = tasks[index]
        rows.append(
            {
                "prompt": [*before, {"role": "user", "content": entry["question"]}],
                "answer": None if entry["answer"] is None else str(entry["answer"]),
                "metadata": json.dumps(entry["metadata"], default=str),
                "task": json.dumps({"name": name, "options": options, "index": index}, sort_keys=True),
            }
        )
    return rows


@lru_cache(maxsize=32)
def dataset(name: str, options: str, key: str) -> Any:
    """reasoning-gym's data set of a task with the options in a JSON object; raises `PosttrainError`."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise PosttrainError(f"{key}: {INSTALL}") from None
    if name not in DATASETS:
        fix = did_you_mean(name, DATASETS, 1, f"there are {', '.join(sorted(DATASETS))}")
        raise PosttrainError(f"{key}: reasoning-gym has no task {name}; {fix}")
    given, known = json.loads(options), [field.name for field in fields(DATASETS[name][1])]
    if unknown := [option for option in given if option not in known]:
        fix = did_you_mean(unknown[0], known, 1, f"it has {', '.join(known)}, and system")
        raise PosttrainError(f"data.args.{unknown[0]}: not an option of {name}; {fix}")
    try:
        return reasoning_gym.create_dataset(name, **given)
    except (AssertionError, TypeError, ValueError) as error:
        raise PosttrainError(f"data.args={options}: {name} says: {error}") from error
