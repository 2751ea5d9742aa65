"""TRL's trainers, and our PPO trainer: from the parts of a run to the trainer object."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from posttrain.config import options, trainers
from posttrain.config.trainers import Kind
from posttrain.console import print_plain
from posttrain.models.adapter import keep_trained_in_float32

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig, PeftModel
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

    from posttrain.rewards import RewardFunction
    from posttrain.rewards.calibration import Adjustment


@dataclass
class Parts:
    """What a trainer is built from. `args` are options of its own config class; `model` is a path.

    `adapter` is the folder of an adapter on `model` to go on with, `lora` then its options.
    `reward_adapter` is the name and folder of a reward that lives on the policy's base, `reward_adjustment` what its
    args make of its scores; `reward_weights` has its weight
    first, then those of `rewards`. `weighted` says that pairs carry weights. `extra_arguments` are further arguments of
    the trainer's constructor, by parameter. With `share_prompts` several answers to a prompt compute it once, where
    that is exact. A model that `sees` images as well is loaded as its text model.
    """

    model: str
    args: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    eval: Dataset | None
    lora: LoraConfig | None
    quantization: BitsAndBytesConfig | None
    callbacks: list[TrainerCallback]
    rewards: dict[str, RewardFunction]
    reward_weights: list[float]
    adapter: str | None = None
    reward_adapter: tuple[str, str] | None = None
    reward_adjustment: Adjustment | None = None
    value_lora: LoraConfig | None = None
    weighted: bool = False
    extra_arguments: dict[str, Any] = field(default_factory=dict)
    share_prompts: bool = True
    sees: bool = False


def build(kind: str, parts: Parts) -> Trainer:
    """The trainer of `kind`. It loads the model, adds the adapter, and keeps the reference.

    With a new adapter the reference is the base with the adapter off, with one that goes on its frozen copy; in full
    fine-tuning it is a second, frozen copy of the model.
    """
    from posttrain.training import labelled_positions, shared_prompts
    from posttrain.training.reference import cache_reference
    from posttrain.training.resume import resumable

    chosen = trainers.of(kind)
    if chosen.reads == "text" and "messages" in (parts.train.column_names or []):
        parts = _labelled(parts)
    if chosen.renders:
        parts = replace(parts, train=_rendered(parts, parts.train), eval=parts.eval and _rendered(parts, parts.eval))
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
    given = {
        "model": _loaded(parts, init_kwargs) if loaded else parts.model,
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
    trainer = resumable(_load(chosen.path))(
        **{name: value for name, value in given.items() if name in chosen.parameters}
    )
    if hasattr(trainer, "reward_func_names"):
        # TRL logs rewards/NAME/mean under the functions' names; the config's names tell two uses of one apart.
        # Those behind them are environments' own.
        trainer.reward_func_names = names + trainer.reward_func_names[len(names) :]
    if parts.reward_adjustment is not None:
        from posttrain.rewards.model import AdjustedScore

        trainer.reward_funcs[0] = AdjustedScore(trainer.reward_funcs[0], parts.reward_adjustment)
    if parts.weighted:
        pair_weights.add_pair_weights(trainer)
    if any(hasattr(callback, "_initialize_teacher_adapter") for callback in trainer.callback_handler.callbacks):
        from posttrain.training.moving_teacher import continue_moving_teacher

        continue_moving_teacher(trainer)
    if chosen.takes_rewards:
        _reset_generation_config(trainer.model)
    if chosen.is_a("KTOTrainer"):
        _drop_single_row_batch(trainer)
    if parts.quantization is not None:
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
        # A reward model without weights of its own scores on the policy's base.
        if getattr(function, "model", ...) is None and (share := getattr(function, "share", None)):
            share(trainer.model, trainer.accelerator.autocast)
    return trainer


def _load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _loads_model_here(kind: Kind, parts: Parts) -> bool:
    """Whether the model is loaded here: a trainer loads it by itself, unless an adapter goes on, or it cannot."""
    if kind.scores:
        # A reward model's adapter has a head beside it, so a new one is made, and gets the weights afterwards.
        return False
    wanted = {"peft_config": parts.lora, "quantization_config": parts.quantization}
    missing = any(value is not None and name not in kind.parameters for name, value in wanted.items())
    return parts.adapter is not None or missing or parts.sees or not kind.has("model_init_kwargs")


def _rendered(parts: Parts, rows: Dataset) -> Dataset:
    """Conversations as text, by the tokenizer's template.

    Messages are stored as JSON here, and a trainer that maps its data set to text would write that text as JSON.
    """
    from datasets import Features, Value
    from trl.data_utils import maybe_apply_chat_template

    turns = [name for name in ("messages", "prompt", "completion", "chosen", "rejected") if name in rows.column_names]
    if all(isinstance(rows[0][name], str) for name in turns):
        return rows
    return rows.map(
        maybe_apply_chat_template,
        fn_kwargs={"processing_class": parts.tokenizer},
        features=Features({**rows.features, **dict.fromkeys(turns, Value("string"))}),
        desc="Applying the chat template",
    )


def _reset_generation_config(model: Any) -> None:
    """Take out of a model's generation config all but its tokens.

    `generate` fills from it what TRL's own config leaves open (min_p, no_repeat_ngram_size, penalties), and samples
    from another distribution than the one whose log-probabilities are trained.
    """
    from transformers import GenerationConfig

    for module in model.modules():
        if isinstance(own := getattr(module, "generation_config", None), GenerationConfig):
            module.generation_config = GenerationConfig(
                bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
            )


def _drop_single_row_batch(trainer: Any) -> None:
    """Leave out the row that a last micro-batch of KTO would have alone: it would be its own partner for the KL."""
    sizes = {"train_dataset": trainer.args.per_device_train_batch_size}
    sizes["eval_dataset"] = trainer.args.per_device_eval_batch_size
    for name, size in sizes.items():
        rows = getattr(trainer, name)
        if rows is not None and hasattr(rows, "select") and size > 1 and len(rows) > 1 and len(rows) % size == 1:
            setattr(trainer, name, rows.select(range(len(rows) - 1)))
            print_plain(
                f"{name}: the last row would be alone in its micro-batch of {size}, and is left out: kto compares rows"
            )


def _labelled(parts: Parts) -> Parts:
    """The rows tokenized, with the loss on assistant messages, or on all turns where `assistant_only_loss=false`."""
    from posttrain.data import loss_mask

    only = parts.args.get("assistant_only_loss")
    how = (parts.tokenizer, loss_mask.training_template(parts.tokenizer, only), only is False)
    held_out = loss_mask.tokenize_rows(parts.eval, *how) if parts.eval is not None else None
    # The labels are made, so TRL need not look for marks in a template.
    args = {**parts.args, "assistant_only_loss": False}
    return replace(parts, train=loss_mask.tokenize_rows(parts.train, *how), eval=held_out, args=args)


def _loaded(parts: Parts, init_kwargs: dict[str, Any]) -> PreTrainedModel | PeftModel:
    """The base as TRL loads it, with the parent's adapter to train, or a new one.

    TRL keeps a frozen copy of a parent's adapter as reference.
    """
    from peft import PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, set_seed
    from trl.trainer.utils import create_model_from_path

    extra: dict[str, Any] = {} if parts.quantization is None else {"quantization_config": parts.quantization}
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        extra["device_map"] = None
    set_seed(parts.args.get("seed", 42))  # a new adapter is drawn
    if parts.sees:
        # TRL takes the class that the checkpoint names, whose modules have other names than those of the text model:
        # an adapter on them would be lost when it is loaded.
        extra["architecture"] = AutoModelForCausalLM
    base = create_model_from_path(
        parts.model, trust_remote_code=parts.args.get("trust_remote_code", False), **extra, **init_kwargs
    )
    if parts.adapter is not None:
        return PeftModel.from_pretrained(base, parts.adapter, is_trainable=True)
    return base if parts.lora is None else get_peft_model(base, parts.lora)
