"""What the PPO tests share: prompts, a small LoRA, a reward, and readers of what a trainer logged and learned."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from posttrain.ppo import PPOTrainer

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "ppo_parity"
PROMPTS = ["the cat", "a", "one two three", "sea", "rain on stone", "why", "north wind", "abc"] * 4


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **options})


def even_codes(completions: list[str], **_: Any) -> list[float]:
    """A reward that differs between any two random texts: the share of characters with an even code."""
    return [sum(ord(c) % 2 == 0 for c in text) / max(len(text), 1) for text in completions]


def logged(trainer: PPOTrainer, name: str) -> list[float]:
    """Everything logged under a name, in order."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def weights(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
