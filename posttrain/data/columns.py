"""The columns of an `Example` -> the columns that a trainer takes.

The column names are TRL's: `text`, `messages`, `prompt`, `completion`, `chosen`, `rejected`, `label`. All but `label`
and `text` may be text or lists of messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from posttrain.config import trainers
from posttrain.data.chat_text import without_learn_keys
from posttrain.data.example import Example
from posttrain.data.formats import PAIRS
from posttrain.data.prompts import common_prefix_length
from posttrain.data.row import RowError
from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from datasets import Dataset

# What a trainer reads (`Kind.reads`) -> the sets of columns it can be given, best first; the last ones are converted.
ACCEPTS: dict[str, list[tuple[str, ...]]] = {
    "text": [("messages",), ("prompt", "completion"), ("text",), PAIRS],
    "messages": [("messages",), ("prompt", "completion"), PAIRS],
    "pairs": [PAIRS],
    "triples": [(*PAIRS, "reference")],
    "labels": [("prompt", "completion", "label"), ("messages", "label"), PAIRS],
    "prompts": [("prompt",), PAIRS, ("messages",)],
    "advised": [("prompt", "privileged_context")],
}
# Trainers to name to somebody whose rows do not serve another.
COMMON_TRAINERS = ("sft", "reward", "dpo", "kto", "grpo", "rloo", "ppo")
TRL_COLUMNS = {"text", "messages", "prompt", "completion", "chosen", "rejected", "label"}
# What TRL's trainers would take for tokens made before, and train on in place of the rows.
TOKEN_COLUMNS = {
    *("input_ids", "attention_mask", "labels", "completion_mask", "assistant_masks", "token_type_ids", "position_ids"),
    *("seq_lengths", "prompt_ids", "chosen_ids", "rejected_ids", "completion_ids", "KL_completion_ids"),
    *("chosen_input_ids", "rejected_input_ids", "ref_chosen_logps", "ref_rejected_logps", "ref_logps"),
}
# What a text model cannot read.
MEDIA_COLUMNS = ("images", "image", "videos", "video", "audios", "audio")
# What is the trainer's besides the texts.
EXTRA_TRL_COLUMNS = {"tools", "chat_template_kwargs"}
# Those that learn by a pair's weight (see `posttrain.training.pair_weights`).
WEIGHTED_TRAINERS = ("RewardTrainer", "DPOTrainer")
# What these read of a pair besides its texts; for the last two see `posttrain.training.cut_answers`.
PAIR_FACTS = {"weight", "ended_chosen", "ended_rejected"}
MAX_WEIGHT = 1_000_000
# What job=sample adds to a row.
SCORE_COLUMNS = {"score", "rewards", *(f"{name}_{side}" for name in ("score", "rewards", "ended") for side in PAIRS)}
# What a row's prompt is known by.
PROMPT_COLUMNS = ("prompt", "messages", *PAIRS)


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
    return chosen[: common_prefix_length(chosen, rejected)]


def choose_columns(columns: list[str], kind: str, name: str = "trl") -> tuple[str, ...]:
    """The first set of columns in `ACCEPTS` for the trainer `kind` that `columns` holds; raises `PosttrainError`.

    `columns` come from rows of the format `name`.
    """
    accepted = ACCEPTS[trainers.of(kind).reads]
    for needed in accepted:
        if set(needed) <= set(columns):
            return needed
    if name != "trl":
        serve = {reads for reads, sets in ACCEPTS.items() if any(set(needed) <= set(columns) for needed in sets)}
        able = [other for other in COMMON_TRAINERS if trainers.of(other).reads in serve]
        raise PosttrainError(
            f"trainer.kind={kind}: does not learn from rows of the format {name}; they serve {', '.join(able)} "
            "(data.format=NAME, if that is not their format)"
        )
    wanted = " or ".join("+".join(c) for c in accepted)
    best = max(accepted, key=lambda c: (len({*c} & {*columns}), c[0] == "prompt"))
    missing = [name for name in best if name not in columns]
    if not {*best} & {"prompt", "messages"} and "prompt" not in columns:
        missing.insert(0, "prompt")
    example = ", ".join(f"{name}: THEIRS" for name in missing)
    raise PosttrainError(
        f"data.columns: {kind} needs {wanted}, and the data has {', '.join(columns) or 'no columns'}; "
        f"map them, ours to theirs: 'data.columns={{{example}}}'"
    )


def check_learnable(example: Example, kind: str | None) -> None:
    """Raise `RowError` for a row that has the right columns, and from which trainer `kind` would learn nothing."""
    turns, reads = example.messages, trainers.of(kind).reads if kind else None
    if turns is not None and reads in ("text", "messages"):
        if not any(one.role == "assistant" for one in turns):
            raise RowError("messages", "no message is the assistant's, so nothing is learnt from it")
        if not any(one.role == "assistant" and one.learn is not False for one in turns):
            raise RowError("messages", "every assistant message has weight 0; nothing is learned from it")
    if turns is not None and reads == "messages" and (turns[-1].role != "assistant" or turns[-1].learn is False):
        raise RowError(
            f"messages[{len(turns) - 1}]", f"{kind} learns the last message alone, which has to be an answer"
        )
    if turns is not None and reads == "prompts" and all(one.role in ("assistant", "system") for one in turns):
        raise RowError("messages", "no message is the user's, so there is no prompt")
    if reads == "prompts" and isinstance(example.prompt, list) and example.prompt[-1].role == "assistant":
        raise RowError(
            f"prompt[{len(example.prompt) - 1}]",
            "is the assistant's, and TRL does not continue a turn; end with the user's",
        )
    # Those that score take two answers without their question, and those that sample a question alone.
    needs_prompt = kind and not (trainers.of(kind).samples_completions or trainers.of(kind).scores)
    if example.prompt == "" and "prompt" not in example.used and needs_prompt:
        raise RowError(
            "chosen",
            "shares no beginning with rejected, and there is no prompt: the answers would be learnt without their "
            "question; map its column: 'data.columns={prompt: THEIRS}'",
        )


def check_media(row: Mapping[str, Any]) -> None:
    """Raise `RowError` for what the model cannot see, and would learn as the text `<image>`."""
    for name in MEDIA_COLUMNS:
        value = row.get(name)
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        if any(one not in (None, "") for one in inside):
            raise RowError(
                name, "is not empty, and the model reads text only; leave such rows out (data.on_error=skip)"
            )


def extra_columns(columns: Any, used: Any, kind: str | None) -> list[str]:
    """The columns of a row that are kept besides what its example makes: for rewards, scores and weights."""
    gone = {*used, *TRL_COLUMNS, *MEDIA_COLUMNS}
    if kind is not None and not trainers.of(kind).samples_completions:
        gone |= TOKEN_COLUMNS  # of the trainers that sample, none looks for tokens in the data
    return [name for name in columns if name not in gone]


def to_trainer_columns(dataset: Dataset, kind: str, name: str = "trl") -> Dataset:
    """Rows as the trainer `kind` takes them; columns that are not TRL's stay, for reward functions.

    Raises `PosttrainError` for the wrong columns.
    """
    found, reads = choose_columns(dataset.column_names, kind, name), trainers.of(kind).reads
    # Of the better answers of pairs, whose weight is the pair's, sft and kto make their own rows.
    apart = set(PAIRS) <= {*found} and reads != "pairs"
    if not (apart or trainers.of(kind).samples_completions or trainers.of(kind).is_a(*WEIGHTED_TRAINERS)):
        dataset = _drop_equal_weights(dataset, kind)
    if set(PAIRS) <= {*found}:
        found = ("prompt", *found)
        if reads in ("text", "messages"):
            dataset = dataset.rename_column("chosen", "completion")
            found = ("prompt", "completion")
        elif reads == "labels":
            from trl.data_utils import unpair_preference_dataset

            dataset = unpair_preference_dataset(dataset)
            found = ("prompt", "completion", "label")
        elif reads == "prompts":
            found = ("prompt",)
    elif found == ("messages",) and reads == "prompts":
        dataset = dataset.map(_turns_to_answer, desc="Taking prompts")
        found = ("prompt",)
    if reads == "messages" and found == ("prompt", "completion"):
        if isinstance(dataset[0]["prompt"], str):
            raise PosttrainError(f"data.path: {kind} learns from conversations; set data.conversational=true")
        joined = lambda row: {"messages": [*row["prompt"], *row["completion"]]}  # noqa: E731
        dataset = dataset.map(joined, desc="Joining prompts and completions")
        found = ("messages",)
    if reads == "labels":
        # TRL reads KTO's rows in order, and estimates KL from neighbours' completions: neighbours must belong to
        # different prompts, and a batch must hold both labels.
        dataset = dataset.shuffle(seed=0)
    return dataset.remove_columns([c for c in dataset.column_names if c in TRL_COLUMNS and c not in found])


def _drop_equal_weights(dataset: Dataset, kind: str) -> Dataset:
    """Rows for a trainer that counts all of them alike: a column `weight` that says otherwise is an error."""
    if "weight" not in dataset.column_names:
        return dataset
    if len({1.0 if weight is None else weight for weight in dataset["weight"]}) > 1:
        raise PosttrainError(
            f"data.path: column weight: {kind} counts all rows alike; set data.pairs=one where it comes from several "
            "answers to a prompt, or give the column another name: 'data.columns={OTHER: weight}'"
        )
    return dataset.remove_columns("weight")


def _turns_to_answer(row: dict[str, Any]) -> dict[str, Any]:
    """The turns that a reply follows: all but the assistant's last ones."""
    turns = without_learn_keys(row["messages"])
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    return {"prompt": turns}


def with_template_options(rows: Dataset) -> Dataset:
    """TRL unpacks `chat_template_kwargs`, so rows that have none get an empty object."""
    if "chat_template_kwargs" not in rows.column_names or None not in rows["chat_template_kwargs"]:
        return rows
    filled = lambda row: {"chat_template_kwargs": row["chat_template_kwargs"] or {}}  # noqa: E731
    return rows.map(filled, features=rows.features, desc="Options of the chat template")


def prompts(rows: Dataset) -> Dataset | None:
    """The prompts of rows, with their other columns, for sampling; `None` for plain text, which has no prompt."""
    columns = set(rows.column_names)
    if "prompt" not in columns and "messages" in columns:
        rows = rows.map(_turns_to_answer, desc="Taking prompts").filter(lambda row: bool(row["prompt"]))
    elif "prompt" not in columns:
        return None
    return rows.remove_columns([c for c in rows.column_names if c in TRL_COLUMNS and c != "prompt"])


def check_weight(row: Mapping[str, Any]) -> None:
    """Raise `RowError` for a pair whose weight is none (see `posttrain.training.pair_weights`)."""
    value = row.get("weight")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (number and 0 <= value <= MAX_WEIGHT):
        raise RowError(
            "weight",
            f"a pair's weight is a number from 0 to {MAX_WEIGHT:,}, got {value!r:.120} (a column that means something "
            "else gets another name: 'data.columns={OTHER: weight}')",
        )
