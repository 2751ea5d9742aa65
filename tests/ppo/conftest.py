"""Tiny models and trainers for the PPO tests: a character-level Llama of some 30 thousand parameters, on one core."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import TaskType, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from posttrain.ppo import PPOConfig, PPOTrainer

from .tiny import GOLDEN, PROMPTS, even_codes, lora


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(GOLDEN / "model", padding_side="left")


@pytest.fixture(scope="session")
def shape(tokenizer) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory, tokenizer, shape) -> Path:
    """A policy to start from, on disk."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape, initializer_range=0.2))
    # So that some completions end early and some never.
    model.lm_head.weight.data[shape["eos_token_id"]] *= 4
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reward_dir(tmp_path_factory, model_dir) -> Path:
    """A LoRA reward model on that policy's base, as RewardTrainer saves it."""
    folder = tmp_path_factory.mktemp("reward") / "adapter"
    torch.manual_seed(1)
    base = LlamaForSequenceClassification.from_pretrained(model_dir, num_labels=1)
    model = get_peft_model(base, lora(task_type=TaskType.SEQ_CLS, init_lora_weights=False, target_modules=["q_proj"]))
    torch.nn.init.normal_(model.base_model.model.score.modules_to_save["default"].weight)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def make_trainer(tmp_path, model_dir, tokenizer):
    """Builds a trainer on the tiny model; options of PPOConfig by name, arguments of PPOTrainer in `trainer`."""

    def make(trainer: dict[str, Any] | None = None, cls: type[PPOTrainer] = PPOTrainer, **options: Any) -> PPOTrainer:
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "max_completion_length": 8,
            "max_steps": 4,
            "num_ppo_epochs": 2,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "disable_tqdm": True,
        }
        arguments = {
            "model": str(model_dir),
            "reward_funcs": even_codes,
            "train_dataset": Dataset.from_dict({"prompt": PROMPTS}),
            "processing_class": tokenizer,
            "peft_config": lora(),
            **(trainer or {}),
        }
        return cls(args=PPOConfig(**{**defaults, **options}), **arguments)

    return make


@pytest.fixture
def load_policy(model_dir):
    return lambda **options: AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, **options)
