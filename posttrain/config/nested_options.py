"""Options of a trainer that hold options."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from posttrain.config import options
from posttrain.config.given_options import NESTED, NESTED_FILES, GivenOptions
from posttrain.config.trainers import Kind

# What torch.utils.checkpoint takes, and `selective`, which TRL takes in SFT.
CHECKPOINTING = ("use_reentrant", "preserve_rng_state", "debug", "early_stop", "selective", "determinism_check")


def check(args: GivenOptions, kind: Kind) -> Iterator[str]:
    """What is wrong with the nested options in `args`."""
    for name in NESTED:
        value = args.get(name)
        if isinstance(value, str) and value.startswith("{"):
            try:
                value = json.loads(value)
            except ValueError as error:
                yield f"{name}={value}: is no JSON ({error})"
        elif isinstance(value, str) and name in NESTED_FILES:
            if not os.path.isfile(value):  # unlike Path's, false for a name that is too long
                yield f"{name}={value}: no such file"
        elif isinstance(value, str):
            yield f"{name}={value}: expected settings, {{KEY: VALUE}}"
        if name == "accelerator_config" and isinstance(value, Mapping):
            yield from options.check("transformers.trainer_pt_utils.AcceleratorConfig", dict(value), name)
        if name.endswith("checkpointing_kwargs") and isinstance(value, Mapping):
            yield from (f"{name}.{line}" for line in _checkpointing(args, kind, value))


def _checkpointing(args: GivenOptions, kind: Kind, given: Mapping[str, Any]) -> Iterator[str]:
    for key, value in given.items():
        choices = ("default", "none") if key == "determinism_check" else (True, False)
        if key not in CHECKPOINTING:
            from posttrain.config import hints

            yield f"{key}={value}: nothing reads it; {hints.nearest(str(key), CHECKPOINTING)}"
        elif value not in (*choices, None):
            yield f"{key}={value}: choose from {', '.join(map(str, choices)).lower()}"
    if given.get("use_reentrant") is True and (more := given.keys() - {"use_reentrant", "preserve_rng_state"}):
        yield f"use_reentrant=true: torch takes no {min(more)} with it; leave one of them out"
    if given.get("selective") is True:
        if not kind.is_a("SFTTrainer"):
            yield "selective=true: TRL takes it in SFT only; leave it out"
        if args.get("gradient_checkpointing") is False:
            yield "selective=true: needs trainer.args.gradient_checkpointing=true"
