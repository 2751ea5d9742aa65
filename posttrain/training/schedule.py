"""The number of optimizer steps of a run, and of rows per step."""

import math
import os
from typing import Any

from posttrain.config import trainers
from posttrain.config.schema import Run


def schedule(run: Run, rows: int) -> tuple[int, int, int]:
    """Optimizer steps of the run, prompts of a step (PPO: of a rollout), and steps per rollout."""
    args, kind = run.trainer.args, trainers.of(run.trainer.kind)
    batch, per_rollout = completions(args, ["per_device_train_batch_size", "gradient_accumulation_steps"]), 1
    epochs = args.get("num_train_epochs", 3.0)
    if trainers.is_ppo(run):
        minibatches = args.get("num_mini_batches", 1)
        batch, per_rollout = batch * minibatches, args.get("num_ppo_epochs", 4) * minibatches
    if kind.samples_completions and kind.generations is not None:
        # A row is repeated num_generations times, so a step has fewer rows.
        batch = max(batch // args.get("num_generations", kind.generations), 1)
    steps = args.get("max_steps", -1)
    if steps <= 0:
        if trainers.is_ppo(run):  # drops an incomplete rollout
            steps = epochs * (rows // batch) * per_rollout
        elif kind.samples_completions:
            steps = epochs * rows / batch
        else:  # the last step of an epoch takes the rows that are left
            steps = epochs * (rows // batch if args.get("dataloader_drop_last") else math.ceil(rows / batch))
    return math.ceil(steps), batch, per_rollout


def completions(args: dict[str, Any], factors: list[str]) -> int:
    """The product of these options and the number of processes; 0 where one is no number, which checks report."""
    values = [args.get(name, 8 if "batch_size" in name else 1) for name in factors]
    if not all(isinstance(value, int) for value in values):
        return 0
    return math.prod(values) * int(os.environ.get("WORLD_SIZE", "1"))
