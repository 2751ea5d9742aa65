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
    """Build the trainer of `kind` with its model, adapter and reference.

    The reference of a new adapter is the base without it, that of an inherited adapter its frozen copy; in full
    fine-tuning it is a second, frozen copy of the model.
    """
    from posttrain.training import labelled_positions, lengths

    chosen = trainers.of(kind)
    parts = _prepare_rows(chosen, parts)
    labelled_positions.score_only_labels()
    trainer = _construct(chosen, parts)
    for name, rows, prepared in (
        ("training", parts.train, trainer.train_dataset),
        ("held out", parts.eval, trainer.eval_dataset),
    ):
        if line := lengths.describe_prepared(name, rows, prepared, trainer.args):
            print_plain(line)
    _change_rows(chosen, parts, trainer)
    if any(hasattr(callback, "_initialize_teacher_adapter") for callback in trainer.callback_handler.callbacks):
        from posttrain.training.moving_teacher import continue_moving_teacher

        continue_moving_teacher(trainer)
    if chosen.is_a("GRPOTrainer", "RLOOTrainer"):
        from posttrain.training.build_steps import render_prompts_with_row_settings

        render_prompts_with_row_settings(trainer)
    if parts.quantization is not None:
        from posttrain.models.adapter import keep_trained_in_float32

        keep_trained_in_float32(trainer.model)
    if parts.adapter is not None:
        from posttrain.models import inherit

        if not chosen.scores:
            inherit.add_reference_adapter(trainer.model)
        inherit.load_parent_adapter(trainer.model, parts.adapter)
    _share_computation(kind, parts, trainer)
    if chosen.takes_rewards:
        from posttrain.training.build_steps import connect_rewards

        connect_rewards(trainer, parts)
    return trainer


def _prepare_rows(kind: Kind, parts: Parts) -> Parts:
    """Prepare the rows for the trainer, where TRL's own preparation is not enough."""
    if kind.reads == "text" and "messages" in (parts.train.column_names or []):
        from posttrain.training.build_steps import tokenize_with_labels

        parts = tokenize_with_labels(parts)
    if kind.renders:
        from posttrain.training.build_steps import render

        parts = replace(parts, train=render(parts, parts.train), eval=parts.eval and render(parts, parts.eval))
    return parts


def _construct(kind: Kind, parts: Parts) -> Any:
    """The trainer, with exact resumption, from TRL's own arguments."""
    args: dict[str, Any] = dict(parts.args)
    if kind.takes_rewards and kind.has("reward_weights"):
        args.setdefault("reward_weights", parts.reward_weights)
    if parts.moves_reference:
        args["sync_ref_model"] = False  # TRL refuses it with an adapter
    loaded = _loads_model_here(kind, parts)
    init_kwargs = args.pop("model_init_kwargs") if loaded else {}
    config = make_config(kind, args)  # this sets the process's device
    if parts.weighted:
        from posttrain.training import pair_weights

        pair_weights.check(config)
    if kind.reads == "labels":
        # TRL does not shuffle KTO's rows, so the seed of their order is applied here.
        seed = config.seed if config.data_seed is None else config.data_seed
        parts = replace(parts, train=parts.train.shuffle(seed=seed))
    model: Any = parts.model
    if loaded:
        from posttrain.training.build_steps import load_model

        model = load_model(parts, init_kwargs)
    given = {
        "model": model,
        "args": config,
        "processing_class": parts.tokenizer,
        "train_dataset": parts.train,
        "eval_dataset": parts.eval,
        "peft_config": None if loaded else parts.lora,
        "quantization_config": None if loaded else parts.quantization,
        "callbacks": parts.callbacks,
        "reward_funcs": list(parts.rewards.values()),
        "reward_adapter": parts.reward_adapter and parts.reward_adapter[1],
        "value_peft_config": parts.value_lora,
        **parts.extra_arguments,
    }
    return _resumable(kind)(**{name: value for name, value in given.items() if name in kind.parameters})


def _change_rows(kind: Kind, parts: Parts, trainer: Any) -> None:
    """Changes to rows that TRL has prepared: weights of pairs, cut answers, KTO's last row."""
    if parts.weighted:
        from posttrain.training import pair_weights

        pair_weights.add_pair_weights(trainer)
    if kind.is_a("RewardTrainer", "DPOTrainer") and "ended_chosen" in (parts.train.column_names or []):
        from posttrain.training.cut_answers import remove_ends

        remove_ends(trainer)
    if kind.is_a("KTOTrainer"):
        from posttrain.training.build_steps import drop_single_row_batch

        drop_single_row_batch(trainer)


def _share_computation(kind: str, parts: Parts, trainer: Any) -> None:
    """Share prompts between answers, and cache the reference or move it with the policy."""
    from posttrain.training import shared_prompts

    shared = parts.share_prompts and shared_prompts.several_answers(trainers.of(kind), parts.args)
    if shared and (reason := shared_prompts.share(trainer)):
        print_plain(f"prompts  computed for each answer: {reason}")
    if parts.moves_reference:
        from posttrain.training.moving_reference import MovingReference

        alpha, steps = trainer.args.ref_model_mixup_alpha, trainer.args.ref_model_sync_steps
        trainer.add_callback(MovingReference(trainer.accelerator.unwrap_model(trainer.model), alpha, steps))
    elif kind == "dpo":
        from posttrain.training.reference import cache_reference

        cache_reference(trainer)


def _resumable(kind: Kind) -> Any:
    """The trainer's class with exact resumption mixed in, under its original name."""
    trainer = _load(kind.path)
    mixins: tuple[type, ...]
    if kind.has("steps_per_generation"):
        from posttrain.training.cast_once import CastOnce
        from posttrain.training.resume_generation import ResumableGeneration

        mixins = (ResumableGeneration, CastOnce)
    else:
        from posttrain.training.resume import Resumable

        mixins = (Resumable,)
    return type(trainer.__name__, (*mixins, trainer), {"__module__": trainer.__module__})


def make_config(kind: Kind, args: dict[str, Any]) -> Any:
    """An instance of the trainer's config class with the options `args`."""
    return _load(kind.config)(**options.as_typed(kind.config, args))


def _load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _loads_model_here(kind: Kind, parts: Parts) -> bool:
    """Whether the model is loaded here; a trainer loads it itself unless it gets an adapter, or cannot load one."""
    if kind.scores:
        # A reward model's adapter comes with a head, so TRL makes a new one, and the parent's weights are loaded later.
        return False
    wanted = {"peft_config": parts.lora, "quantization_config": parts.quantization}
    missing = any(value is not None and name not in kind.parameters for name, value in wanted.items())
    return parts.adapter is not None or missing or parts.sees or not kind.has("model_init_kwargs")
