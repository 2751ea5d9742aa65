"""The options that a trainer's config class defines itself, and what follows for the learning rate of an adapter."""

import ast

from posttrain.config.options import source_of
from posttrain.config.trainers import Kind


def own_options(cls: str) -> list[str]:
    """The options that `cls` and its bases define or redefine, without those of Transformers' trainer and TRL's."""
    ours = [one for one in source_of(cls).lineage() if not one.module.startswith(("transformers.", "trl.trainer.base"))]
    fields = [n.target for one in ours for n in one.node.body if isinstance(n, ast.AnnAssign)]
    return [target.id for target in fields if isinstance(target, ast.Name)]


def lora_learning_rate(kind: Kind) -> float:
    """The learning rate of an adapter where none is set.

    TRL's defaults are rates of full fine-tuning, and an adapter takes about ten times as much (Schulman et al. 2025,
    "LoRA Without Regret"; TRL's documentation of PEFT). A reward model's default is one for adapters already.
    """
    full = kind.default("learning_rate")
    own = "learning_rate" in own_options(kind.config)  # others have Transformers' default
    return full if kind.scores or not own or not isinstance(full, float) else float(f"{10 * full:.6g}")
