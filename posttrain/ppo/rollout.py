"""A rollout: completions and everything known about them, and its division into minibatches and microbatches.

A rollout is a dict of tensors with B rows. Prompt fields, (B, P), are padded on the left; all other two-dimensional
fields are per completion token, (B, T), padded on the right; `scores` and `judged` (whether a
reward function gave one) are (B,).
"""

import torch
from torch.nn.utils.rnn import pad_sequence
from trl.trainer.utils import RepeatSampler

Rollout = dict[str, torch.Tensor]

PROMPT_FIELDS = ("prompt_ids", "prompt_mask")


def collate(
    prompt_ids: list[list[int]], completion_ids: list[list[int]], pad_token_id: int, device: torch.device
) -> Rollout:
    """Pad prompts on the left and completions on the right; the masks are 1 on real tokens."""
    fields = {}
    for name, rows, side in (("prompt", prompt_ids, "left"), ("completion", completion_ids, "right")):
        tensors = [torch.tensor(ids, dtype=torch.long) for ids in rows]
        ones = [torch.ones_like(ids) for ids in tensors]
        fields[f"{name}_ids"] = pad_sequence(tensors, True, pad_token_id, padding_side=side).to(device)
        fields[f"{name}_mask"] = pad_sequence(ones, True, 0, padding_side=side).to(device)
    return fields


def take(rollout: Rollout, rows: torch.Tensor, multiple: int | None = None) -> Rollout:
    """The given rows, cut to the longest prompt and the longest completion among them.

    Args:
        rows: indices, (b,).
        multiple: round widths up to multiples of this, for devices that compile a kernel per shape.
    """

    def width(mask: torch.Tensor) -> int:
        longest = max(int(mask[rows].sum(1).max()), 1)
        if multiple:
            longest = -(-longest // multiple) * multiple
        return min(longest, mask.size(1))

    prompt, completion = width(rollout["prompt_mask"]), width(rollout["completion_mask"])
    batch = {}
    for name, tensor in rollout.items():
        if name in PROMPT_FIELDS:
            batch[name] = tensor[rows, tensor.size(1) - prompt :]
        elif tensor.dim() == 2:
            batch[name] = tensor[rows, :completion]
        else:
            batch[name] = tensor[rows]
    return batch


def put(target: torch.Tensor, rows: torch.Tensor, values: torch.Tensor) -> None:
    """Write what was computed for the rows of a microbatch back to the rollout's tensor."""
    target[rows, : values.size(1)] = values.to(target.dtype)


def lengths(rollout: Rollout) -> torch.Tensor:
    """Real tokens of each row, prompt and completion, (B,)."""
    return rollout["prompt_mask"].sum(1) + rollout["completion_mask"].sum(1)


def arrange(lengths: torch.Tensor, num_mini_batches: int, micro_batch_size: int) -> list[list[torch.Tensor]]:
    """Row indices of every microbatch of every minibatch.

    Minibatches are drawn at random. Within one, rows of similar length share a microbatch: the loss is summed over the
    minibatch's tokens, so the division changes the padding and not the gradient.
    """
    order = torch.randperm(len(lengths))
    lengths = lengths.cpu()
    return [
        list(rows[lengths[rows].argsort(stable=True)].split(micro_batch_size))
        for rows in order.split(len(lengths) // num_mini_batches)
    ]


class EpochSampler(RepeatSampler):
    """TRL's sampler with an order that depends on seed and epoch only, so that a run can resume in any epoch."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + self.epoch)
        return super().__iter__()
