"""Removes EOS from the answers of pairs that sampling cut off.

TRL ends every answer with EOS. In PPO, a reward model also scores answers without EOS; if it has never seen one, it may
score it high. A policy that is trained on cut answers with EOS learns to stop in the middle of a sentence.
"""

from typing import Any

# Columns of job=sample, `true` where the answer ended by itself -> the token ids that TRL makes of that answer.
ENDED_COLUMNS = {"ended_chosen": "chosen_ids", "ended_rejected": "rejected_ids"}


def remove_ends(trainer: Any) -> None:
    """Remove EOS, and what the chat template puts after it, from the cut answers of a reward or DPO trainer's rows."""
    from posttrain.ppo.rewards import chat_tail

    tokenizer = trainer.processing_class
    ends = {tokenizer.eos_token_id}
    tail = len(chat_tail(tokenizer, [*ends]))

    def cut(row: dict[str, Any]) -> dict[str, Any]:
        made = {}
        for flag, ids in ENDED_COLUMNS.items():
            if row.get(flag) is False:  # None: a row of another source
                last = len(row[ids]) - 1 - (0 if row[ids][-1] in ends else tail)
                made[ids] = row[ids][:last] if row[ids][last] in ends else row[ids]
        return made

    for name in ("train_dataset", "eval_dataset"):
        rows = getattr(trainer, name)
        if rows is not None:  # a stream that TRL has prepared does not know its columns
            setattr(trainer, name, rows.map(cut))
