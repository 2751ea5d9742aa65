"""An estimate of a training's time before weights load: its operations, divided by the device's measured speed.

Work is counted as in Kaplan et al. 2020 (arXiv:2001.08361, section 2.1): 2 operations for each weight and token in a
forward pass, as many for the gradients of activations, and as many for those of weights that are trained.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from posttrain.config import trainers
from posttrain.training import footprint

if TYPE_CHECKING:
    from posttrain.config.schema import Run
    from posttrain.models.hardware import Precision
    from posttrain.training.lengths import Lengths
    from posttrain.training.sizes import Sizes

EFFICIENCY = 0.35  # share of a large matrix product's speed; training reached 0.25 to 0.45 (docs/performance.md)
# Least seconds of a layer per token of a sampled batch of any size. On an H200, LoRA: 1B 0.0022, 8B in NF4 0.005.
LAYER_SECONDS = 0.0035
SECONDS_MEASURED = 0.1


def estimate(run: Run, precision: Precision, sizes: Sizes, lengths: Lengths, steps: tuple[int, int, int]) -> float:
    """Seconds of all optimizer steps, without evaluations and probe; `steps` as `schedule` gives them.

    Completions are taken to have `max_completion_length` tokens.
    """
    kind, args = trainers.of(run.trainer.kind), run.trainer.args
    rounds, rows, per_round = steps[0] / steps[2], steps[1], steps[2]
    row, prompt = lengths.mean, sum(lengths.prompt) / len(lengths.prompt)
    if kind.samples_completions:
        rows *= args.get("num_generations", kind.generations) or 1
        row, prompt = row + (args.get("max_completion_length", kind.default("max_completion_length")) or 512), row
    learnt = 2.0 + (run.peft.method == "none") + footprint.checkpointing(run)
    scored = 1.0 * footprint.keeps_reference(kind, args) + bool(run.trainer.teacher.model)
    if trainers.is_ppo(run):
        # A rollout is scored by policy, reference, value function and reward model, and one or two of them learn.
        separate = trainers.value_adapter(run)
        epochs = per_round / footprint.whole_number(run, "num_mini_batches")
        learnt, scored = epochs * learnt * (1 + separate), 3.0 + separate
    one = footprint.forward_pass(run, round(row), round(prompt), rows)
    weights = sizes.total - sizes.trained - sizes.embedding
    layers = one.tokens * (2 * weights + 4 * one.width * sizes.queries * sizes.layers)
    head = 2 * sizes.hidden * sizes.vocabulary
    speed = EFFICIENCY * _speed(precision, sizes)
    seconds = (learnt + scored) * (layers + one.scored * head) / speed
    if kind.samples_completions:
        seconds += (row - prompt) * (sizes.layers * LAYER_SECONDS + rows * (2 * weights + head) / speed)
    return rounds * seconds


def _speed(precision: Precision, sizes: Sizes) -> float:
    """Measured operations per second of matrix products of the model's sizes, on the run's device and in its type."""
    device = "cpu" if precision.device == "CPU" else "cuda"
    dtype = "bfloat16" if precision.bf16 else "float16" if precision.fp16 else precision.dtype
    hidden, inner = min(sizes.hidden, 8192), min(sizes.intermediate, 8192)  # it must not take much memory
    shapes = (1024, hidden), (hidden, inner)
    left, right = (torch.ones(shape, dtype=getattr(torch, dtype), device=device) for shape in shapes)
    (left @ right).sum().item()  # warm-up: the first product loads libraries and allocates memory
    count, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < SECONDS_MEASURED:
        (left @ right)[0, 0].item()
        count += 1
    return 2 * 1024 * hidden * inner * count / passed
