"""The number of optimizer steps of a run, and of rows per step."""

import math
import os
from typing import Any

from posttrain.config import trainers
from posttrain.config.schema import Run


def schedule(run: Run, rows: int) -> tuple[int, int, int]:
    """Optimizer steps of the run, prompts of a step (PPO: of a rollout), and steps per rollout."""
    args, kind, ppo = run.trainer.args, trainers.of(run.trainer.kind), trainers.is_ppo(run)
    micro, accumulated = completions(args, ["per_device_train_batch_size"]), args.get("gradient_accumulation_steps", 1)
    minibatches = args.get("num_mini_batches", 1) if ppo else 1
    repeats = args.get("num_ppo_epochs", 4) if ppo else args.get("num_iterations", 1)
    # A row is repeated num_generations times, so a step has fewer rows.
    answers = (args.get("num_generations") or kind.generations or 1) if kind.samples_completions else 1
    if (steps := args.get("max_steps", -1)) <= 0:
        if kind.has("generation_batch_size") or kind.is_a("DistillationTrainer"):  # drops an incomplete generation
            slices = args.get("steps_per_generation") or accumulated * minibatches
            whole = args.get("generation_batch_size") or micro * slices
            batches = rows // (whole // answers) * (whole // micro) * repeats
        else:
            batches = rows // micro if args.get("dataloader_drop_last") else math.ceil(rows * answers / micro)
        steps = args.get("num_train_epochs", 3.0) * math.ceil(batches / accumulated)
    return math.ceil(steps), max(micro * accumulated * minibatches // answers, 1), repeats * minibatches if ppo else 1


def completions(args: dict[str, Any], factors: list[str]) -> int:
    """The product of these options and the number of processes; 0 where one is no number, which checks report."""
    values = [args.get(name, 8 if "batch_size" in name else 1) for name in factors]
    if not all(isinstance(value, int) for value in values):
        return 0
    return math.prod(values) * int(os.environ.get("WORLD_SIZE", "1"))
