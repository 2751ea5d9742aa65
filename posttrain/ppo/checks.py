"""Checks of arguments before weights are loaded.

Every `check_*` raises a `ValueError` that names the option, its value and the fix; `check_all` runs those it has the
facts for and raises all messages at once. None of them reads model weights.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedTokenizerBase

from .config import PPOConfig
from .forward import takes_position_ids
from .roles import ADAPTER_FILE

POSITIONS_FROM_MASK = ("bloom", "mpt", "opt", "falcon", "xglm", "biogpt")
"""Models without `position_ids` that read left padding right: positions come from the attention mask, or none exist."""


def check_all(
    args: PPOConfig,
    *,
    peft: bool,
    columns: Iterable[str] | None = None,
    num_prompts: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    model_config: PretrainedConfig | None = None,
    longest_prompt: int = 0,
    reward_adapter: str | Path | None = None,
    base_model: str | None = None,
    num_reward_funcs: int = 0,
    name: Callable[[str], str] = str,
) -> None:
    """Run every check that the given facts allow.

    Args:
        peft: whether the policy is an adapter.
        columns, num_prompts: of the training dataset; None where unknown (e.g. streaming).
        longest_prompt: tokens, see [`longest_prompt_length`].
        base_model: id or folder of the policy's base model, compared with the reward adapter's.
        num_reward_funcs: reward functions and models, besides `reward_adapter`.
        name: how messages spell an option, e.g. `"trainer.args.{}".format`.

    Raises:
        ValueError: with one line per problem.
    """
    checks: list[Callable[[], None]] = [
        lambda: check_roles(args, peft, reward_adapter is not None, num_reward_funcs, name),
        lambda: check_engine(args, name),
    ]
    if columns is not None:
        checks.append(lambda: check_columns(columns))
    if num_prompts is not None:
        checks.append(lambda: check_rollout(args, num_prompts, name))
    if tokenizer is not None:
        checks.append(lambda: check_tokenizer(tokenizer))
    if model_config is not None:
        checks.append(lambda: check_context(args, model_config, longest_prompt, name))
        checks.append(lambda: check_positions(model_config))
    if reward_adapter is not None:
        hidden = None if model_config is None else model_config.get_text_config().hidden_size
        checks.append(lambda: check_reward_adapter(reward_adapter, base_model, hidden, name))
    problems = []
    for check in checks:
        try:
            check()
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))


def check_roles(
    args: PPOConfig, peft: bool, reward_adapter: bool, num_reward_funcs: int, name: Callable[[str], str] = str
) -> None:
    """Check that this policy can play the roles that are asked for, and that each reward has a weight."""
    if not reward_adapter and not num_reward_funcs:
        raise ValueError("There is nothing to learn from: pass reward_funcs or reward_adapter.")
    if not peft and args.value_mode == "adapter":
        raise ValueError(
            f"{name('value_mode')}='adapter' needs a policy that is an adapter: pass peft_config, or set "
            f"{name('value_mode')}='head'."
        )
    if not peft and reward_adapter:
        raise ValueError(
            "reward_adapter lives on a frozen base, but full fine-tuning changes it: pass peft_config, or merge the "
            "reward model and pass it in reward_funcs."
        )
    if args.value_init == "reward" and not reward_adapter:
        raise ValueError(
            f"{name('value_init')}='reward' copies the reward adapter: pass reward_adapter, or set "
            f"{name('value_init')}='zero'."
        )
    expected = num_reward_funcs + reward_adapter
    if args.reward_weights is not None and len(args.reward_weights) != expected:
        raise ValueError(
            f"{name('reward_weights')}={args.reward_weights} has {len(args.reward_weights)} weights for {expected} "
            "rewards (reward_adapter first, then reward_funcs)."
        )


def check_engine(args: PPOConfig, name: Callable[[str], str] = str) -> None:
    """Refuse DeepSpeed and FSDP: their engines do not allow one backward pass per adapter."""
    for option in ("deepspeed", "fsdp"):
        if getattr(args, option, None):
            raise ValueError(
                f"{name(option)}={getattr(args, option)!r} is not supported by PPOTrainer: remove it, and use "
                "quantization_config and peft_config to fit the model on one device."
            )


def check_columns(columns: Iterable[str]) -> None:
    """Check that the dataset has prompts."""
    columns = list(columns)
    if "prompt" not in columns:
        raise ValueError(
            f"The dataset has no column 'prompt' (it has {', '.join(columns) or 'none'}): rename or map one to "
            "'prompt', text or a list of messages."
        )


def check_rollout(args: PPOConfig, num_prompts: int, name: Callable[[str], str] = str) -> None:
    """Check that the dataset fills one rollout: incomplete ones are dropped, so a smaller set would train nothing."""
    assert args.generation_batch_size is not None
    assert args.num_generations is not None
    needed = args.generation_batch_size // args.num_generations
    if num_prompts < needed:
        raise ValueError(
            f"The dataset has {num_prompts} prompts, fewer than one rollout takes: {needed} = "
            f"{name('per_device_train_batch_size')} ({args.per_device_train_batch_size}) * "
            f"{name('gradient_accumulation_steps')} ({args.gradient_accumulation_steps}) * "
            f"{name('num_mini_batches')} ({args.num_mini_batches}) * processes ({args.world_size}) / "
            f"{name('num_generations')} ({args.num_generations}). Lower one of them or add prompts."
        )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that completions can end: the tokenizer has an EOS token."""
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} has no EOS token, so no completion would ever end: set "
            "tokenizer.eos_token."
        )


def check_context(
    args: PPOConfig, model_config: PretrainedConfig, longest_prompt: int, name: Callable[[str], str] = str
) -> None:
    """Check that prompt and completion fit the model's context."""
    context = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    length = args.max_completion_length or 0
    if context and longest_prompt + length > context:
        room = context - longest_prompt
        fix = f"set it to at most {room}" if room > 0 else "shorten the prompts"
        raise ValueError(
            f"{name('max_completion_length')}={length} after the longest prompt ({longest_prompt} tokens) exceeds the "
            f"model's context of {context} tokens: {fix}."
        )


def check_positions(model_config: PretrainedConfig) -> None:
    """Check that tokens of left-padded prompts keep their positions."""
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model_config), None)
    if model_class is None or takes_position_ids(model_class) or model_config.model_type in POSITIONS_FROM_MASK:
        return
    raise ValueError(
        f"{model_class.__name__} takes no position_ids, so left-padded prompts would be read at wrong positions: use a "
        "model with rotary positions, or one whose forward accepts position_ids."
    )


def check_reward_adapter(
    folder: str | Path,
    base_model: str | None = None,
    hidden_size: int | None = None,
    name: Callable[[str], str] = str,
) -> None:
    """Check that `folder` holds a LoRA reward model, with its score head, for this base model.

    Reads `adapter_config.json` and the header of `adapter_model.safetensors`.
    """
    option = f"{name('reward_adapter')}={str(folder)!r}"
    config_file, weights_file = Path(folder) / "adapter_config.json", Path(folder) / ADAPTER_FILE
    for file in (config_file, weights_file):
        if not file.is_file():
            raise ValueError(
                f"{option} has no {file.name}: give the folder that RewardTrainer saved with a peft_config, or pass a "
                "full reward model in reward_funcs."
            )
    config = json.loads(config_file.read_text())
    if config.get("peft_type") != "LORA" or config.get("task_type") != "SEQ_CLS":
        raise ValueError(
            f"{option} is a {config.get('peft_type')} adapter for {config.get('task_type')}, not a LoRA reward model "
            "(task_type SEQ_CLS): give the folder that RewardTrainer saved."
        )
    if base_model and not same_base(config.get("base_model_name_or_path"), base_model):
        raise ValueError(
            f"{option} was trained on {config.get('base_model_name_or_path')!r}, but the policy's base model is "
            f"{base_model!r}: its scores would mean nothing. Train the reward model on the policy's base (if both "
            "names stand for the same weights, correct base_model_name_or_path in adapter_config.json)."
        )
    shapes = _safetensors_shapes(weights_file)
    heads = {k: v for k, v in shapes.items() if f".{k}".endswith((".score.weight", ".classifier.weight"))}
    if len(heads) != 1:
        raise ValueError(f"{option} holds {len(heads)} score heads instead of one: train it with RewardTrainer.")
    shape = next(iter(heads.values()))
    if shape[0] != 1 or (hidden_size is not None and shape[1] != hidden_size):
        raise ValueError(
            f"{option} has a score head of shape {shape}; this policy needs [1, {hidden_size or 'hidden size'}]: train "
            "the reward model on the policy's base, with one label."
        )
    others = set(config.get("modules_to_save") or []) - {"score", "classifier"}
    if others:
        raise ValueError(
            f"{option} also trained {sorted(others)} in full, which a shared base cannot hold: use LoRA only."
        )


def same_base(one: str | None, other: str) -> bool:
    """Whether two model ids or folders name the same model: equal, the same folder, or a folder named like the id."""
    if not one or one == other:
        return True
    if Path(one).is_dir() and Path(other).is_dir():
        return Path(one).samefile(other)
    folders = [name for name in (one, other) if Path(name).is_absolute() and "models--" not in name]
    return len(folders) < 2 and _short_name(one) == _short_name(other)


def _short_name(model: str) -> str:
    for part in Path(model).parts:
        if part.startswith("models--"):  # a snapshot folder of the Hub's cache
            return part.split("--")[-1].lower()
    return Path(model).name.lower()


def _safetensors_shapes(file: Path) -> dict[str, list[int]]:
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return {key: value["shape"] for key, value in header.items() if key != "__metadata__"}


def longest_prompt_length(
    prompts: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: dict | None = None,
    sample: int = 32,
    tools: Sequence[Any] | None = None,
) -> int:
    """Tokens of the longest prompt, found among the `sample` longest by characters.

    Args:
        prompts: texts or lists of messages.
        tools: those of each prompt, a list of schemas or its JSON, or None.
    """

    def characters(row: tuple[Any, Any]) -> int:
        prompt, own = row
        text = prompt if isinstance(prompt, str) else "".join(str(message.get("content") or "") for message in prompt)
        return len(text) + len(str(own or ""))

    longest = sorted(zip(prompts, tools or [None] * len(prompts), strict=True), key=characters, reverse=True)[:sample]
    if not longest:
        return 0
    if isinstance(longest[0][0], str):
        return max(len(ids) for ids in tokenizer(text=[prompt for prompt, _ in longest])["input_ids"])
    settings = {"add_generation_prompt": True, "tokenize": False, **(chat_template_kwargs or {})}
    texts = [
        tokenizer.apply_chat_template(prompt, tools=json.loads(own) if isinstance(own, str) else own, **settings)
        for prompt, own in longest
    ]
    return max(len(ids) for ids in tokenizer(text=texts, add_special_tokens=False)["input_ids"])
