"""Facts about a trainer's arguments that are known before weights are loaded."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftConfig, PeftModel
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from trl.trainer.utils import get_config_model_id

from . import checks
from .config import PPOConfig


def load_tokenizer(
    model: Any, args: PPOConfig, processing_class: PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase:
    """The tokenizer given, or else the model's, padding on the left.

    Raises:
        ValueError: for a processor of images or sound.
    """
    if processing_class is None:
        model_id = model if isinstance(model, str) else get_config_model_id(model.config)
        revision = _init_kwargs(args).get("revision") if isinstance(model, str) else None
        return AutoTokenizer.from_pretrained(
            model_id,
            revision=revision,
            truncation_side="left",
            padding_side="left",
            trust_remote_code=args.trust_remote_code,
        )
    if not isinstance(processing_class, PreTrainedTokenizerBase):
        raise ValueError(
            f"processing_class is a {type(processing_class).__name__}, not a tokenizer: PPOTrainer trains text models."
        )
    return processing_class


def _init_kwargs(args: PPOConfig) -> dict[str, Any]:
    return args.model_init_kwargs or {}  # type: ignore[return-value]  # a string only before it is parsed


def check_arguments(
    model: Any,
    args: PPOConfig,
    tokenizer: PreTrainedTokenizerBase,
    datasets: tuple[Any, Any],
    peft_config: PeftConfig | None,
    reward_adapter: str | Path | None,
    num_reward_funcs: int,
) -> None:
    """Gather the facts that are known before weights are loaded, and check them."""
    if isinstance(model, str):
        given = _init_kwargs(args)
        options = {k: given[k] for k in ("revision", "trust_remote_code") if k in given}
        config = AutoConfig.from_pretrained(model, **{"trust_remote_code": args.trust_remote_code, **options})
        base_model = model
    else:
        config = model.config
        base_model = get_config_model_id(config)
    if isinstance(model, PeftModel):
        taken = set(model.peft_config) - {"default"}
        if "default" not in model.peft_config or taken:
            raise ValueError(
                f"The PeftModel holds the adapters {sorted(model.peft_config)}; PPOTrainer needs one, called 'default'."
            )
    train, evaluation = datasets
    if train is None:
        raise ValueError("train_dataset is missing.")
    sized = isinstance(train, Dataset)
    for dataset in evaluation.values() if isinstance(evaluation, dict) else [evaluation]:
        if dataset is not None and dataset.column_names is not None:
            checks.check_columns(dataset.column_names)
    longest = 0
    if sized and "prompt" in train.column_names:
        tools = train["tools"] if "tools" in train.column_names else None
        template: Any = args.chat_template_kwargs
        longest = checks.longest_prompt_length(train["prompt"], tokenizer, template, tools=tools)
    checks.check_all(
        args,
        peft=peft_config is not None or isinstance(model, PeftModel),
        columns=train.column_names,
        num_prompts=len(train) if sized else None,
        tokenizer=tokenizer,
        model_config=config,
        longest_prompt=longest,
        reward_adapter=reward_adapter,
        base_model=base_model,
        num_reward_funcs=num_reward_funcs,
    )
