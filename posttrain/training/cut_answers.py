"""Answers of a pair that sampling cut off are learnt as cut off.

TRL ends every answer with EOS. PPO shows its reward model answers without an end, too. One that has never seen such an
answer may score it high; and a policy trained on cut answers that end with EOS learns to stop in mid-sentence.
"""

from typing import Any

# Columns of job=sample, `true` where the answer ended by itself -> the token ids that TRL makes of that answer.
ENDED_COLUMNS = {"ended_chosen": "chosen_ids", "ended_rejected": "rejected_ids"}


def remove_ends(trainer: Any) -> None:
    """Take EOS, and what the chat template puts after it, off the cut answers of a reward or DPO trainer's rows."""
    from posttrain.ppo.rewards import chat_tail

    tokenizer = trainer.processing_class
    ends = {tokenizer.eos_token_id}
    tail = len(chat_tail(tokenizer, [*ends]))

    def cut(row: dict[str, Any]) -> dict[str, Any]:
        made = {}
        for flag, ids in ENDED_COLUMNS.items():
            if row[flag] is False:  # None: a row of another source
                last = len(row[ids]) - 1 - (0 if row[ids][-1] in ends else tail)
                made[ids] = row[ids][:last] if row[ids][last] in ends else row[ids]
        return made

    for name in ("train_dataset", "eval_dataset"):
        rows = getattr(trainer, name)
        if rows is not None and set(ENDED_COLUMNS) <= set(rows.column_names):
            setattr(trainer, name, rows.map(cut, desc="Removing the end of cut answers"))
