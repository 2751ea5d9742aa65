"""Steps that the construction of some trainers needs besides TRL's own."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from posttrain.console import console, print_plain
from posttrain.models.tokens import token_ids

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel

    from posttrain.training.parts import Parts


def render(parts: Parts, rows: Dataset) -> Dataset:
    """Conversations as text, by the tokenizer's template, for the trainers that take text only.

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


def render_prompts_with_row_settings(trainer: Any) -> None:
    """Render each prompt with the `tools` and `chat_template_kwargs` of its row, which TRL's trainer does not read.

    Nothing is done where the trainer has tools, an environment or a rollout of its own.
    """
    if getattr(trainer, "tools", None) or getattr(trainer, "rollout_func", None):
        return
    score, tokenize = trainer._generate_and_score_completions, trainer._tokenize_prompts
    rows: list[dict[str, Any]] = []

    def noted(inputs: list[dict[str, Any]]) -> Any:
        rows[:] = inputs
        return score(inputs)

    def tokenized(prompts: list[Any]) -> Any:
        if isinstance(prompts[0], str) or not any(row.get("tools") or row.get("chat_template_kwargs") for row in rows):
            return tokenize(prompts)
        given = {"chat_template": getattr(trainer, "chat_template", None), **trainer.chat_template_kwargs}
        pairs = zip(prompts, rows, strict=True)
        return [token_ids(trainer._tokenizer, prompt, True, row, given) for prompt, row in pairs], None, {}

    trainer._generate_and_score_completions, trainer._tokenize_prompts = noted, tokenized


def print_completions_safely() -> None:
    """Have TRL print its table of completions on our console, which shows a model's escape sequences as text."""
    from trl.trainer import utils

    setattr(utils, "Console", lambda: console)  # noqa: B010 - a class of rich there


def connect_rewards(trainer: Any, parts: Parts) -> None:
    """Give rewards the config's names, adjust the reward on PPO's base, and attach other adapters to the base."""
    print_completions_safely()
    names = list(parts.rewards)
    if parts.reward_adapter is not None:
        names = [parts.reward_adapter[0], *names]
    # TRL logs rewards/NAME/mean by the functions' names; the config's names distinguish two uses of one function. The
    # names after them are those of environments.
    if hasattr(trainer, "reward_func_names"):
        trainer.reward_func_names = names + trainer.reward_func_names[len(names) :]
    if parts.reward_adjustment is not None:
        from posttrain.rewards.model import AdjustedScore

        trainer.reward_funcs[0] = AdjustedScore(trainer.reward_funcs[0], parts.reward_adjustment)
    reset_generation_config(trainer.model)
    for function in parts.rewards.values():
        # A reward model without its own weights scores on the policy's base.
        if getattr(function, "model", ...) is None and (share := getattr(function, "share", None)):
            share(trainer.model, trainer.accelerator.autocast)


def reset_generation_config(model: Any) -> None:
    """Remove everything but the token ids from a model's generation config.

    `generate` would take options from it that TRL's config leaves open (min_p, no_repeat_ngram_size, penalties), and
    sample from another distribution than the one whose log-probabilities are trained.
    """
    from transformers import GenerationConfig

    for module in model.modules():
        if isinstance(own := getattr(module, "generation_config", None), GenerationConfig):
            module.generation_config = GenerationConfig(
                bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
            )


def drop_single_row_batch(trainer: Any) -> None:
    """Drop a row that would be alone in KTO's last micro-batch, where KTO's KL estimate would pair it with itself."""
    sizes = {"train_dataset": trainer.args.per_device_train_batch_size}
    sizes["eval_dataset"] = trainer.args.per_device_eval_batch_size
    for name, size in sizes.items():
        rows = getattr(trainer, name)
        if rows is not None and hasattr(rows, "select") and size > 1 and len(rows) > 1 and len(rows) % size == 1:
            setattr(trainer, name, rows.select(range(len(rows) - 1)))
            print_plain(
                f"{name}: the last row would be alone in its micro-batch of {size}, and is left out: kto compares rows"
            )


def tokenize_with_labels(parts: Parts) -> Parts:
    """The rows tokenized, with the loss on assistant messages, or on all turns where `assistant_only_loss=false`."""
    from posttrain.data import loss_mask

    only = parts.args.get("assistant_only_loss")
    how = (parts.tokenizer, loss_mask.training_template(parts.tokenizer, only), only is False)
    held_out = loss_mask.tokenize_rows(parts.eval, *how) if parts.eval is not None else None
    # The labels exist, so TRL must not look for its marks in the template.
    args = {**parts.args, "assistant_only_loss": False}
    return replace(parts, train=loss_mask.tokenize_rows(parts.train, *how), eval=held_out, args=args)


def load_model(parts: Parts, init_kwargs: dict[str, Any]) -> PreTrainedModel | PeftModel:
    """The base as TRL loads it, with the parent's adapter to train, or a new one.

    TRL keeps a frozen copy of a parent's adapter as reference.
    """
    from peft import PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, set_seed
    from trl.trainer.utils import create_model_from_path

    extra: dict[str, Any] = {} if parts.quantization is None else {"quantization_config": parts.quantization}
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        extra["device_map"] = None
    set_seed(parts.args.get("seed", 42))  # a new adapter is initialised at random
    if parts.sees:
        # TRL would load the class that the checkpoint names. Its modules are not named like those of the text model, so
        # an adapter on them could not be loaded later.
        extra["architecture"] = AutoModelForCausalLM
    base = create_model_from_path(
        parts.model, trust_remote_code=parts.args.get("trust_remote_code", False), **extra, **init_kwargs
    )
    if parts.adapter is not None:
        return PeftModel.from_pretrained(base, parts.adapter, is_trainable=True)
    return base if parts.lora is None else get_peft_model(base, parts.lora)
