"""From the columns a data set has to the columns a trainer needs, where the step loses nothing.

The column names are TRL's: `text`, `messages`, `prompt`, `completion`, `chosen`, `rejected`, `label`. All but `label`
may be text or lists of messages.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from posttrain.data.files import Misfit
from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from datasets import Dataset

PAIRS = ("chosen", "rejected")
# trainer -> the sets of columns it can be given, best first; the last ones are converted.
ACCEPTS: dict[str, list[tuple[str, ...]]] = {
    "sft": [("messages",), ("prompt", "completion"), ("text",), PAIRS],
    "reward": [PAIRS],
    "dpo": [PAIRS],
    "kto": [("prompt", "completion", "label"), PAIRS],
    "grpo": [("prompt",), PAIRS, ("messages",)],
    "rloo": [("prompt",), PAIRS, ("messages",)],
    "ppo": [("prompt",), PAIRS, ("messages",)],
}
ONLINE = ("grpo", "rloo", "ppo")
TRL_COLUMNS = {"text", "messages", "prompt", "completion", "chosen", "rejected", "label"}
# Those that learn by a pair's weight.
WEIGHED = ("reward", "dpo")
HEAVIEST = 1_000_000
# What job=sample adds to a row.
SCORES = {"score", "rewards", "score_chosen", "score_rejected", "rewards_chosen", "rewards_rejected"}
# Whose turn a text becomes in a conversation.
ROLES = {"prompt": "user", "completion": "assistant", "chosen": "assistant", "rejected": "assistant"}


# What a row's prompt is known by.
PROMPTED = ("prompt", "messages", *PAIRS)


def prompt_of(row: Mapping[str, Any]) -> Any:
    """The prompt of a row: its own column, the turns before the last, what both answers begin with; or `None`.

    Rows may not have been checked yet.
    """
    if "prompt" in row:
        return row["prompt"]
    if "messages" in row:
        return row["messages"][:-1] if isinstance(row["messages"], list) else None
    chosen, rejected = (row.get(side) for side in PAIRS)
    if not isinstance(chosen, (str, list)) or not isinstance(rejected, (str, list)):
        return None
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    return chosen[: sum(1 for _ in same)]


def form(columns: list[str], kind: str, name: str = "trl") -> tuple[str, ...]:
    """The first set of columns in `ACCEPTS[kind]` that `columns` holds; raises `PosttrainError` when none does.

    `columns` come from rows of the format `name`.
    """
    for needed in ACCEPTS[kind]:
        if set(needed) <= set(columns):
            return needed
    if name != "trl":
        able = [other for other, sets in ACCEPTS.items() if any(set(needed) <= set(columns) for needed in sets)]
        raise PosttrainError(
            f"trainer.kind={kind}: does not learn from rows of the format {name}; they serve {', '.join(able)} "
            "(data.format=NAME, if that is not their format)"
        )
    wanted = " or ".join("+".join(c) for c in ACCEPTS[kind])
    raise PosttrainError(
        f"data.columns: {kind} needs {wanted}, and the data has {', '.join(columns)}; "
        "map them, ours to theirs: 'data.columns={prompt: question, chosen: best, rejected: worst}'"
    )


def rename(dataset: Dataset, columns: dict[str, str]) -> Dataset:
    """Rename columns from `{ours: theirs}`; a column of ours that is in the way is dropped."""
    for ours, theirs in columns.items():
        if theirs not in dataset.column_names:
            raise PosttrainError(
                f"data.columns.{ours}={theirs}: no such column; the data has {', '.join(dataset.column_names)}"
            )
    in_the_way = [ours for ours, theirs in columns.items() if ours != theirs and ours in dataset.column_names]
    dataset = dataset.remove_columns([c for c in in_the_way if c not in columns.values()])
    return dataset.rename_columns({theirs: ours for ours, theirs in columns.items() if ours != theirs})


def converse(dataset: Dataset) -> Dataset:
    """Text as conversations of one turn each: the prompt is the user's, what answers it the assistant's.

    An instruct model expects its chat template, which TRL applies to conversations only. The texts are stripped: the
    space that joins a completion to its prompt would otherwise open the turn. Raises `PosttrainError` without a column
    `prompt`, and for a value that is no text, such as a conversation.
    """
    columns = [column for column in ROLES if column in dataset.column_names]
    if "prompt" not in columns:
        raise PosttrainError(
            f"data.conversational=true: needs a column prompt, and the data has {', '.join(dataset.column_names)}; "
            "map it, ours to theirs: 'data.columns={prompt: question}'"
        )

    def turns(row: dict[str, Any], index: int) -> dict[str, Any]:
        for column in columns:
            if not isinstance(row[column], str):
                raise PosttrainError(
                    f"data.conversational=true: row {index}, column {column}: expected text, got "
                    f"{row[column]!r:.80}; set it to false where the data holds conversations"
                )
        return {column: [{"role": ROLES[column], "content": row[column].strip()}] for column in columns}

    return dataset.map(turns, with_indices=True, desc="Making conversations")


def adapt(dataset: Dataset, kind: str, name: str = "trl") -> Dataset:
    """The data as the trainer `kind` takes it; columns that are not TRL's stay, for reward functions.

    Raises `PosttrainError` for the wrong columns, and `Misfit` for a value that has no prompt to be told from it.
    """
    found = form(dataset.column_names, kind, name)
    if found == PAIRS:
        dataset = _with_prompt(dataset)
        found = ("prompt", *PAIRS)
        if kind == "sft":
            dataset = dataset.rename_column("chosen", "completion")
            found = ("prompt", "completion")
        elif kind == "kto":
            from trl.data_utils import unpair_preference_dataset

            dataset = unpair_preference_dataset(dataset)
            found = ("prompt", "completion", "label")
        elif kind in ONLINE:
            found = ("prompt",)
    elif found == ("messages",) and kind in ONLINE:
        dataset = dataset.map(_asks, with_indices=True, desc="Taking prompts")
        dataset = dataset.filter(lambda row: bool(row["prompt"]))
        found = ("prompt",)
    if kind == "kto":
        # TRL reads KTO's rows in order, and estimates KL from neighbours' completions: neighbours must belong to
        # different prompts, and a batch must hold both labels.
        dataset = dataset.shuffle(seed=0)
    return dataset.remove_columns([c for c in dataset.column_names if c in TRL_COLUMNS and c not in found])


def _asks(row: dict[str, Any], index: int) -> dict[str, Any]:
    """The turns that a reply follows: all but the assistant's last ones."""
    check_values(row, index, ("messages",))
    turns = list(row["messages"])
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    return {"prompt": turns}


def _with_prompt(dataset: Dataset) -> Dataset:
    """Pairs with an explicit prompt: the shared first turns, where it is not a column of the right kind."""
    first = dataset[0]
    if "prompt" in first and _repeated(first):
        # UltraFeedback has the prompt as text beside conversations that begin with it.
        dataset = dataset.remove_columns("prompt")
    if "prompt" not in dataset.column_names:
        dataset = dataset.map(_extracted, with_indices=True, desc="Extracting prompts")
    return dataset


def _extracted(row: dict[str, Any], index: int) -> dict[str, Any]:
    from trl.data_utils import extract_prompt

    check_values(row, index, PAIRS)
    return extract_prompt(row)


def check_values(row: Mapping[str, Any], index: int, columns: tuple[str, ...]) -> None:
    """Raise `Misfit` for the first of `columns` that is empty or of the wrong kind, before it is taken apart."""
    for column in columns:
        if problem := problem_of(column, row[column]):
            raise Misfit(f"row {index}", f"column {column}: {problem}")


def check_rows(dataset: Dataset, split: str, path: str, most: int = 5) -> None:
    """Raise `PosttrainError` for the first rows whose TRL columns are empty or of the wrong kind."""
    columns = [c for c in dataset.column_names if c in TRL_COLUMNS]
    found = []
    for index, row in enumerate(dataset.select_columns(columns)):
        for column in columns:
            if problem := problem_of(column, row[column]):
                found.append(f"data.path={path}: row {index} of {split}, column {column}: {problem}")
        if len(found) >= most:
            break
    if found:
        raise PosttrainError("\n".join(found))


def check_row(row: dict[str, Any], needed: tuple[str, ...]) -> dict[str, Any]:
    """`row`, whose columns `needed` must hold what TRL takes; raises `Misfit`."""
    columns = needed
    if needed == PAIRS and "prompt" in row and not _repeated(row):
        columns = ("prompt", *needed)
    for column in columns:
        if problem := problem_of(column, row.get(column)):
            raise Misfit(column, problem)
        if isinstance(row[column], list) and any(m.get("weight") is not None for m in row[column]):
            raise Misfit(
                column, "a message has a weight, and those of the first rows have none; set data.format=openai"
            )
    if needed == PAIRS and isinstance(row["chosen"], str) != isinstance(row["rejected"], str):
        raise Misfit("rejected", "one answer is text and the other a conversation")
    return row


def check_weight(row: Mapping[str, Any]) -> None:
    """Raise `Misfit` for a pair whose weight is none (see `posttrain.training.pair_weights`)."""
    value = row.get("weight")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (number and 0 <= value <= HEAVIEST):
        raise Misfit(
            "weight",
            f"a pair's weight is a number from 0 to {HEAVIEST:,}, got {value!r:.120} (a column that means something "
            "else gets another name: 'data.columns={OTHER: weight}')",
        )


def _repeated(row: Mapping[str, Any]) -> bool:
    """Whether the prompt is text beside conversations that begin with it, as in UltraFeedback."""
    return isinstance(row["prompt"], str) and not isinstance(row["chosen"], str)


def problem_of(column: str, value: Any) -> str | None:
    """What is wrong with a value of one of `TRL_COLUMNS`."""
    if column == "label":
        number = " (of numbers: 'data.columns={rating: label}' and data.threshold=LOWEST_GOOD_ONE)"
        given = number if isinstance(value, (int, float)) else ""
        return None if isinstance(value, bool) else f"expected true or false, got {value!r:.120}{given}"
    if isinstance(value, str) and column != "messages":
        return None if value or column == "prompt" else "is empty"
    if not isinstance(value, list):
        what = "a list of messages" if column == "messages" else "text or a list of messages"
        return f"expected {what}, got {value!r:.120}"
    if not value:
        return "is an empty conversation"
    for message in value:
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            turns = isinstance(message, dict) and {"from", "value"} <= message.keys()
            hint = " (ShareGPT's turns: 'data.columns={conversations: messages}')" if turns else ""
            return f"expected messages with role and content, got {message!r:.120}{hint}"
        content, calls = message["content"], message.get("tool_calls")
        if not isinstance(message["role"], str) or not isinstance(content, (str, list, type(None))):
            return f"expected messages with role and content as text, got {message!r:.120}"
        if message["role"] in ("human", "gpt"):
            return f"templates know the roles system, user, assistant and tool, and one is {message['role']!r}"
        if not content and not calls and (message["role"] == "assistant" or content is None):
            return f"{'an assistant' if message['role'] == 'assistant' else 'a ' + message['role']} turn is empty"
    return None
