"""Construction of a TRL trainer, or of our PPO trainer, from the parts of a run."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from posttrain.config import options, trainers
from posttrain.config.trainers import Kind
from posttrain.console import print_plain
from posttrain.training.parts import Parts

if TYPE_CHECKING:
    from transformers import Trainer


def build(kind: str, parts: Parts) -> Trainer:
    """The trainer of `kind`. It loads the model, adds the adapter, and keeps the reference.

    With a new adapter the reference is the base with the adapter off, with an inherited one its frozen copy; in full
    fine-tuning it is a second, frozen copy of the model.
    """
    from posttrain.training import labelled_positions, lengths, shared_prompts
    from posttrain.training.reference import cache_reference

    chosen = trainers.of(kind)
    if chosen.reads == "text" and "messages" in (parts.train.column_names or []):
        from posttrain.training.build_steps import tokenize_with_labels

        parts = tokenize_with_labels(parts)
    if chosen.renders:
        from posttrain.training.build_steps import render

        parts = replace(parts, train=render(parts, parts.train), eval=parts.eval and render(parts, parts.eval))
    args: dict[str, Any] = dict(parts.args)
    names = list(parts.rewards)
    if parts.reward_adapter is not None and "reward_adapter" in chosen.parameters:
        names = [parts.reward_adapter[0], *names]
    if chosen.takes_rewards and chosen.has("reward_weights"):
        args.setdefault("reward_weights", parts.reward_weights)
    moving = bool(parts.lora is not None and args.get("sync_ref_model"))
    if moving:
        args["sync_ref_model"] = False  # TRL refuses it with an adapter
    loaded = _loads_model_here(chosen, parts)
    init_kwargs = args.pop("model_init_kwargs") if loaded else {}
    args = options.as_typed(chosen.config, args)
    config = _load(chosen.config)(**args)  # before the model: it chooses this process's device
    if parts.weighted:
        from posttrain.training import pair_weights

        pair_weights.check(config)
    labelled_positions.score_only_labels()
    train = parts.train
    if chosen.reads == "labels":
        # TRL reads KTO's rows in the order that they have, so the seed of the order has to act here.
        train = train.shuffle(seed=config.seed if config.data_seed is None else config.data_seed)
    if loaded:
        from posttrain.training.build_steps import load_model
    given = {
        "model": load_model(parts, init_kwargs) if loaded else parts.model,
        "args": config,
        "processing_class": parts.tokenizer,
        "train_dataset": train,
        "eval_dataset": parts.eval,
        "peft_config": None if loaded else parts.lora,
        "quantization_config": None if loaded else parts.quantization,
        "callbacks": parts.callbacks,
        "reward_funcs": list(parts.rewards.values()),
        "reward_adapter": parts.reward_adapter and parts.reward_adapter[1],
        "value_peft_config": parts.value_lora,
        **parts.extra_arguments,
    }
    trainer = _resumable(chosen)(**{name: value for name, value in given.items() if name in chosen.parameters})
    for name, rows in (("training", train), ("held out", parts.eval)):
        prepared = trainer.train_dataset if name == "training" else trainer.eval_dataset
        if line := lengths.describe_prepared(name, rows, prepared, trainer.args):
            print_plain(line)
    if hasattr(trainer, "reward_func_names"):
        # TRL logs rewards/NAME/mean under the functions' names; the config's names tell two uses of one apart.
        # Those behind them are environments' own.
        trainer.reward_func_names = names + trainer.reward_func_names[len(names) :]
    if parts.reward_adjustment is not None:
        from posttrain.rewards.model import AdjustedScore

        trainer.reward_funcs[0] = AdjustedScore(trainer.reward_funcs[0], parts.reward_adjustment)
    if parts.weighted:
        pair_weights.add_pair_weights(trainer)
    if chosen.is_a("RewardTrainer", "DPOTrainer") and "ended_chosen" in (parts.train.column_names or []):
        from posttrain.training.cut_answers import remove_ends

        remove_ends(trainer)
    if any(hasattr(callback, "_initialize_teacher_adapter") for callback in trainer.callback_handler.callbacks):
        from posttrain.training.moving_teacher import continue_moving_teacher

        continue_moving_teacher(trainer)
    if chosen.is_a("GRPOTrainer", "RLOOTrainer"):
        from posttrain.training.build_steps import render_prompts_with_row_settings

        render_prompts_with_row_settings(trainer)
    if chosen.takes_rewards:
        from posttrain.training.build_steps import reset_generation_config

        reset_generation_config(trainer.model)
    if chosen.is_a("KTOTrainer"):
        from posttrain.training.build_steps import drop_single_row_batch

        drop_single_row_batch(trainer)
    if parts.quantization is not None:
        from posttrain.models.adapter import keep_trained_in_float32

        keep_trained_in_float32(trainer.model)
    if parts.adapter is not None:
        from posttrain.models import inherit

        if not chosen.scores:
            inherit.add_reference_adapter(trainer.model)
        inherit.load_parent_adapter(trainer.model, parts.adapter)
    if parts.share_prompts and kind in shared_prompts.KINDS and (reason := shared_prompts.share(trainer)):
        print_plain(f"prompts  computed for each answer: {reason}")
    if kind == "dpo" and not moving:
        cache_reference(trainer)
    if moving:
        from posttrain.training.moving_reference import MovingReference

        alpha, steps = trainer.args.ref_model_mixup_alpha, trainer.args.ref_model_sync_steps
        trainer.add_callback(MovingReference(trainer.accelerator.unwrap_model(trainer.model), alpha, steps))
    for function in parts.rewards.values():
        # A reward model without its own weights scores on the policy's base.
        if getattr(function, "model", ...) is None and (share := getattr(function, "share", None)):
            share(trainer.model, trainer.accelerator.autocast)
    return trainer


def _resumable(kind: Kind) -> Any:
    """The class of the trainer with exact continuation, under its own name."""
    trainer = _load(kind.path)
    if kind.has("steps_per_generation"):
        from posttrain.training.resume_generation import ResumableGeneration as Resumable
    else:
        from posttrain.training.resume import Resumable  # type: ignore[assignment]
    return type(trainer.__name__, (Resumable, trainer), {"__module__": trainer.__module__})


def _load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _loads_model_here(kind: Kind, parts: Parts) -> bool:
    """Whether the model is loaded here: a trainer loads it by itself, unless it is given an adapter, or it cannot."""
    if kind.scores:
        # A reward model's adapter has a head next to it, so a new one is made, and gets the weights afterwards.
        return False
    wanted = {"peft_config": parts.lora, "quantization_config": parts.quantization}
    missing = any(value is not None and name not in kind.parameters for name, value in wanted.items())
    return parts.adapter is not None or missing or parts.sees or not kind.has("model_init_kwargs")
