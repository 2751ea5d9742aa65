"""The message for rows with none of the columns that a trainer learns from."""

from posttrain.config import trainers
from posttrain.data.formats import ACCEPTS

# Trainers that the message suggests, where the rows fit them.
COMMON_TRAINERS = ("sft", "reward", "dpo", "kto", "grpo", "rloo", "ppo")


def message(columns: list[str], kind: str, name: str) -> str:
    """The message for rows of the format `name` with these columns, and the trainer `kind`."""
    accepted = ACCEPTS[trainers.of(kind).reads]
    if name != "trl":
        serve = {reads for reads, sets in ACCEPTS.items() if any(set(needed) <= set(columns) for needed in sets)}
        able = [other for other in COMMON_TRAINERS if trainers.of(other).reads in serve]
        return (
            f"trainer.kind={kind}: does not learn from rows of the format {name}; they serve {', '.join(able)} "
            "(data.format=NAME, if that is not their format)"
        )
    wanted = " or ".join("+".join(c) for c in accepted)
    best = max(accepted, key=lambda c: (len({*c} & {*columns}), c[0] == "prompt"))
    missing = [name for name in best if name not in columns]
    if not {*best} & {"prompt", "messages"} and "prompt" not in columns:
        missing.insert(0, "prompt")
    example = ", ".join(f"{name}: THEIRS" for name in missing)
    return (
        f"data.columns: {kind} needs {wanted}, and the data has {', '.join(columns) or 'no columns'}; "
        f"map them, ours to theirs: 'data.columns={{{example}}}'"
    )
