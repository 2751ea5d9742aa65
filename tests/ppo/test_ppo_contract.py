"""What PPOTrainer takes for granted of TRL, Transformers and PEFT. A failure here says what changed in an upgrade."""

import inspect

import peft
import pytest
import torch
import trl
from peft import get_peft_model
from transformers import Trainer
from trl import RLOOConfig, RLOOTrainer
from trl.trainer import rloo_trainer, utils
from trl.trainer.utils import use_adapter

from posttrain.ppo import PPOTrainer

from .tiny import lora

HOOKS = {
    # overridden
    "__init__": ["model", "reward_funcs", "args", "train_dataset", "eval_dataset", "processing_class",
                 "reward_processing_classes", "callbacks", "optimizers", "quantization_config", "peft_config"],
    "_generate_and_score_completions": ["inputs"],
    "_generate_single_turn": ["prompt_ids", "images", "multimodal_fields"],
    "_get_train_sampler": ["dataset"],
    "_prepare_inputs": ["generation_batch"],
    "_compute_loss": ["model", "inputs"],
    "training_step": ["model", "inputs", "num_items_in_batch"],
    "create_optimizer": ["model"],
    "_save": ["output_dir", "state_dict"],
    "_load_from_checkpoint": ["resume_from_checkpoint", "model"],
    "_load_best_model": [],
    # called
    "_generate": ["prompts"],
    "_calculate_rewards": ["inputs", "prompts", "completions", "completion_ids_list"],
    # inherited, and what calls the overridden ones
    "prediction_step": ["model", "inputs", "prediction_loss_only", "ignore_keys"],
    "compute_loss": ["model", "inputs", "return_outputs", "num_items_in_batch"],
    "_get_per_token_logps_and_entropies": [
        "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy", "compute_aux_loss",
        "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles",
        "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"],
}  # fmt: skip

# Facts in TRL's source that the code relies on: where, what, and what to look at when it is gone.
FACTS = [
    (RLOOConfig.__post_init__, "RLOO requires at least 2 generations", "PPOConfig.__post_init__ lets this error pass"),
    (RLOOTrainer._generate, "return prompt_ids, completion_ids, completions", "ExperienceTrainer takes these three"),
    (RLOOTrainer._calculate_rewards, 'if key not in ["prompt", "completion", "completion_ids"]',
     "reward functions get prompt_ids as a column of the inputs"),
    (RLOOTrainer._calculate_rewards, "rewards_per_func = gather(rewards_per_func)", "rewards are of all processes"),
    (RLOOTrainer._get_per_token_logps_and_entropies, "return logps, entropies, aux_loss", "a tuple of three"),
    (RLOOTrainer.__init__, "add_fused_lm_head(", "add_completion_forward wraps TRL's fused LM head"),
    (RLOOTrainer.__init__, 'model.add_adapter("ref", default_config)', "Roles expects the reference under 'ref'"),
    (RLOOTrainer.training_step, "self._step += 1", "PPOTrainer counts microbatches by it"),
    (RLOOTrainer.log, "self._metrics[mode].clear()", "metrics are averaged between two logs"),
    (utils.add_fused_lm_head, "backbone_outputs.last_hidden_state", "completion_states cuts these to the completion"),
    (utils.add_fused_lm_head, "shift_labels", "completion labels are passed as pre-shifted ones"),
    (Trainer._run_epoch, "model.zero_grad()", "early stops rely on gradients that are None"),
    (Trainer.training_step, "loss = loss / self.current_gradient_accumulation_steps", "_compute_loss counts on it"),
]  # fmt: skip


def test_trl_is_the_version_this_was_written_for():
    assert trl.__version__.startswith("1.16."), (
        f"trl {trl.__version__} is installed; posttrain.ppo was written for 1.16. Run this file, compare "
        "trl/trainer/rloo_trainer.py with the last version, and raise the pin in pyproject.toml."
    )


@pytest.mark.parametrize("name", HOOKS)
def test_signature(name):
    actual = [p for p in inspect.signature(getattr(RLOOTrainer, name)).parameters if p != "self"]
    gone, new = [p for p in HOOKS[name] if p not in actual], [p for p in actual if p not in HOOKS[name]]
    assert actual == HOOKS[name], (
        f"RLOOTrainer.{name} changed in trl {trl.__version__}: it lost {gone or 'nothing'}, gained {new or 'nothing'} "
        f"(now {actual}). Adapt PPOTrainer, then this list."
    )


@pytest.mark.parametrize(("where", "what", "why"), FACTS, ids=[fact[1] for fact in FACTS])
def test_source(where, what, why):
    assert what in inspect.getsource(where), (
        f"{where.__qualname__} no longer contains {what!r}: {why}. Compare it with trl 1.16 and adapt."
    )


@pytest.mark.parametrize("adapter", [None, "value", "reward", "ref"])
def test_switching_does_what_peft_does(make_trainer, load_policy, reward_dir, adapter):
    torch.manual_seed(0)
    policy = get_peft_model(load_policy(), lora(init_lora_weights=False, modules_to_save=["embed_tokens"]))
    trainer = make_trainer({"model": policy, "peft_config": None, "reward_adapter": reward_dir})
    for name, parameter in trainer.model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data.normal_()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        rest = trainer.model(input_ids=ids).logits
        with trainer.roles.use(adapter):
            switched = trainer.model(input_ids=ids).logits
        assert torch.equal(trainer.model(input_ids=ids).logits, rest)
        with use_adapter(trainer.model, adapter):
            expected = trainer.model(input_ids=ids).logits
    assert torch.equal(switched, expected), (
        f"PEFT {peft.__version__} switches adapters by other attributes than _active_adapter and _disable_adapters, "
        "which Roles.use sets."
    )
    assert not torch.equal(switched, rest)


def test_loss_is_not_scaled_twice():
    assert PPOTrainer.loss_is_scaled_for_ga is False, "TRL's flag for Trainer.training_step to divide the loss is gone."


def test_base_class_is_where_it_was():
    assert rloo_trainer.RLOOTrainer is RLOOTrainer
    assert issubclass(PPOTrainer, RLOOTrainer)
    assert list(inspect.signature(utils.RepeatSampler.__init__).parameters)[1:] == [
        "data_source", "mini_repeat_count", "batch_size", "repeat_count", "shuffle", "seed",
    ], "EpochSampler passes these to RepeatSampler and seeds its `generator`."  # fmt: skip
