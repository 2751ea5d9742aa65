"""Weights sharded over processes by FSDP or DeepSpeed: what was asked for, and whether it is active."""

import os
from collections.abc import Mapping
from typing import Any

from posttrain.errors import PosttrainError


def engine(args: Mapping[str, Any]) -> str | None:
    """FSDP or DEEPSPEED (accelerate's names), if the launcher's config or `trainer.args` ask for it; else None."""
    for name in ("FSDP", "DEEPSPEED"):
        if args.get(name.lower()) or os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true":
            return name
    return None


def parts(args: Mapping[str, Any]) -> tuple[int, int]:
    """The numbers of processes over which the weights, and the optimizer's state, are sharded."""
    world, asked = int(os.environ.get("WORLD_SIZE", "1")), engine(args)
    if asked == "FSDP":
        return world, world
    stage = int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2" if asked else "0"))
    return (world if stage == 3 else 1), (world if stage else 1)


def divides(trainer: Any) -> bool:
    """Whether each process holds only a part of the weights, so that a forward pass needs all processes."""
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    return bool(trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled())


def check_running(args: Mapping[str, Any], running: str) -> None:
    """Raise `PosttrainError` where sharding was asked for and accelerate runs something else, such as plain DDP.

    `running` is the name of accelerate's `DistributedType`. Without a GPU, accelerate silently ignores a config of
    FSDP, and each process then holds all weights.
    """
    asked = engine(args)
    if asked is not None and asked != running:
        how = {"NO": "one process", "MULTI_CPU": "plain DDP on CPUs", "MULTI_GPU": "plain DDP"}.get(running, running)
        raise PosttrainError(
            f"accelerate was asked for {asked} and runs {how}, where each process holds all weights; start it with "
            f"several GPUs and a config of {asked} (accelerate launch --config_file FILE), or without one"
        )
