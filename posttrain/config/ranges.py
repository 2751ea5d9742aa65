"""Ranges of numeric options: of TRL, Transformers, PEFT and bitsandbytes, and of our schema.

Where a library names a range, or refuses values outside one when it is built, ours is that range or a part of it
(`tests/config/test_ranges.py` walks the tables against the installed libraries). NaN is in no range, infinity only
where a bracket includes it, and an integer has 32 bits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

MAX_INT = 2**31 - 1  # of integers that go to C, such as lengths, ranks and steps

COUNT, FROM_0, ABOVE_0 = "[1, inf)", "[0, inf)", "(0, inf)"
SHARE, PART = "[0, 1]", "(0, 1]"

# Option -> interval, for every class that has the option; a number before `or` is allowed besides the interval.
RANGES: dict[str, str] = {
    # Transformers' TrainingArguments
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), COUNT
    ),
    **dict.fromkeys(("eval_accumulation_steps", "torch_empty_cache_steps", "save_total_limit"), COUNT),
    **dict.fromkeys(("dataloader_prefetch_factor", "ddp_bucket_cap_mb", "ddp_timeout"), COUNT),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), ABOVE_0),
    **dict.fromkeys(("warmup_steps", "weight_decay", "eval_delay", "neftune_noise_alpha", "adam_epsilon"), FROM_0),
    **dict.fromkeys(("seed", "data_seed"), "[0, 4294967295]"),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), "[0, 1)"),
    "num_train_epochs": ABOVE_0,
    "max_steps": "-1 or [1, inf)",
    "learning_rate": ABOVE_0,
    "max_grad_norm": "[0, inf]",
    "dataloader_num_workers": FROM_0,
    "local_rank": "[-1, inf)",
    # TRL, several classes
    **dict.fromkeys(("max_length", "dataset_num_proc", "pad_to_multiple_of", "precompute_ref_batch_size"), COUNT),
    **dict.fromkeys(("router_aux_loss_coef", "center_rewards_coefficient", "loss_weights"), FROM_0),
    "beta": FROM_0,
    "label_smoothing": "[0, 1)",
    "ld_alpha": SHARE,
    "discopop_tau": ABOVE_0,
    "f_alpha_divergence_coef": ABOVE_0,
    "ref_model_mixup_alpha": SHARE,
    "ref_model_sync_steps": COUNT,
    **dict.fromkeys(("desirable_weight", "undesirable_weight"), FROM_0),
    # TRL's GRPO and RLOO
    **dict.fromkeys(("num_generations_eval", "max_completion_length", "generation_batch_size"), COUNT),
    **dict.fromkeys(("steps_per_generation", "num_iterations", "max_tool_calling_iterations"), COUNT),
    **dict.fromkeys(("vllm_max_model_length", "vllm_tensor_parallel_size", "num_completions_to_print"), COUNT),
    **dict.fromkeys(("vllm_server_port", "vllm_group_port"), "[1, 65535]"),
    **dict.fromkeys(("temperature", "repetition_penalty", "vllm_server_timeout"), ABOVE_0),
    **dict.fromkeys(("epsilon", "epsilon_high", "delta", "off_policy_mask_threshold"), ABOVE_0),
    **dict.fromkeys(("sapo_temperature_neg", "sapo_temperature_pos"), ABOVE_0),
    **dict.fromkeys(("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"), FROM_0),
    **dict.fromkeys(("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"), FROM_0),
    **dict.fromkeys(("vllm_importance_sampling_clip_max", "vllm_importance_sampling_cap"), "(0, inf]"),
    "vllm_importance_sampling_clip_min": FROM_0,
    **dict.fromkeys(("top_p", "vllm_gpu_memory_utilization"), PART),
    **dict.fromkeys(("min_p", "top_entropy_quantile"), SHARE),
    "num_generations": "[2, inf)",
    "top_k": FROM_0,
    # PPO
    **dict.fromkeys(("num_ppo_epochs", "num_mini_batches", "kl_horizon", "min_completion_length"), COUNT),
    **dict.fromkeys(("target_kl", "cliprange_value", "value_learning_rate", "kl_target"), ABOVE_0),
    **dict.fromkeys(("vf_coef", "missing_eos_penalty"), FROM_0),
    "gamma": PART,
    "lam": SHARE,
    # PEFT's LoraConfig
    **dict.fromkeys(("r", "lora_alpha", "rank_pattern", "qalora_group_size"), COUNT),
    "alpha_pattern": ABOVE_0,
    "lora_dropout": "[0, 1)",
    **dict.fromkeys(("layers_to_transform", "trainable_token_indices", "alora_invocation_tokens"), FROM_0),
    # bitsandbytes, by Transformers
    "llm_int8_threshold": FROM_0,
}
# Where one class takes another range than the others.
CLASS_RANGES: dict[str, dict[str, str]] = {
    "DPOConfig": {"beta": ABOVE_0},  # at 0 its loss is a constant
    "KTOConfig": {"beta": ABOVE_0},
    "PPOConfig": {"num_generations": COUNT},
}
# Numbers of any size: a bonus and a penalty, offsets of a score.
UNBOUNDED = ("entropy_coef", "reward_weights", "reward_clip_range")
# At and above 1 these are numbers of steps, below 1 shares of the run.
WHOLE_ABOVE_1 = ("logging_steps", "eval_steps", "save_steps")
NOT_EMPTY = (
    "loss_type",
    "loss_weights",
    "reward_weights",
    "target_modules",
    "layers_to_transform",
    "target_parameters",
)

# The numbers of our own schema, by their path.
SCHEMA_RANGES: dict[str, str] = {
    "data.eval_size": FROM_0,
    **dict.fromkeys(("data.max_train_rows", "data.max_eval_rows"), COUNT),
    **dict.fromkeys(("data.min_score", "data.threshold", "sample.threshold"), "(-inf, inf)"),
    **dict.fromkeys(("probe.prompts", "probe.greedy_prompts", "probe.shift_prompts"), FROM_0),
    **dict.fromkeys(("probe.every", "probe.text_rows", "probe.max_new_tokens", "probe.batch_size"), COUNT),
    "probe.text_tokens": "[2, inf)",
    "probe.safety.prompts": COUNT,
    **dict.fromkeys(("sample.n", "sample.prompts", "sample.max_new_tokens", "sample.batch_size"), COUNT),
    **dict.fromkeys(("sample.fraction", "sample.top_p"), PART),
    "sample.margin": FROM_0,
    "sample.temperature": ABOVE_0,
    "sample.seed": "[0, 4294967295]",
    "evaluate.confidence": "(0, 1)",
    "evaluate.resamples": "[100, 1000000]",
    "evaluate.limit": COUNT,
    "evaluate.num_fewshot": "[0, 1000]",
    **dict.fromkeys((f"doctor.{name}" for name in ("near", "tolerance", "stop", "length_accuracy")), SHARE),
    **dict.fromkeys((f"doctor.{name}" for name in ("noise_rate", "other_language", "cluster")), SHARE),
    **dict.fromkeys(("doctor.sample", "doctor.noise_rows"), COUNT),
    "doctor.examples": FROM_0,
    # A threshold outside of these would ring always, or never.
    "alarms.gradient.above": "(1, inf)",
    "alarms.gradient.below": "(0, 1)",
    "alarms.kl.above": ABOVE_0,
    "alarms.forgetting.above": ABOVE_0,
    "alarms.collapse.below": "(0, 1)",
    "alarms.length.above": "(0, 1)",
    "alarms.length.growth": "(1, inf)",
    "alarms.over_optimisation.above": ABOVE_0,
    "alarms.sampling.above": ABOVE_0,
    "reward.*.weight": "(-inf, inf)",
    "data.mix.*.weight": ABOVE_0,
}
# What may be under a name of the user's choice -> where its ranges are.
USER_NAMED_RANGES = (
    (re.compile(r"data\.mix\.[^.]+\.weight"), "data.mix.*.weight"),
    (re.compile(r"data\.mix\.[^.]+\."), "data."),
    (re.compile(r"(?:reward|probe\.rewards|probe\.gold)\.[^.]+\.weight"), "reward.*.weight"),
)


@dataclass(frozen=True)
class Interval:
    """`low` to `high`, each of them included or not, and `also`: one more number."""

    low: float
    high: float
    with_low: bool
    with_high: bool
    also: float | None

    def __contains__(self, value: float) -> bool:
        if value == self.also:
            return True
        above = value >= self.low if self.with_low else value > self.low
        below = value <= self.high if self.with_high else value < self.high
        return above and below  # neither for NaN

    def __str__(self) -> str:
        ends = []
        if self.low > -math.inf:
            ends.append(f"{'at least' if self.with_low else 'above'} {self.low:.10g}")
        if self.high < math.inf:
            ends.append(f"{'at most' if self.with_high else 'below'} {self.high:.10g}")
        text = " and ".join(ends) or "a finite number"
        return f"{self.also:g}, or {text}" if self.also is not None else text


@cache
def interval(text: str) -> Interval:
    """`(0, 1]` as an `Interval`; `-1 or [1, inf)` has -1 as `also`."""
    match = re.fullmatch(r"(?:(\S+) or )?([\[(])(\S+), (\S+)([\])])", text)
    assert match, text
    beside, first, low, high, last = match.groups()
    return Interval(float(low), float(high), first == "[", last == "]", None if beside is None else float(beside))


def of_option(cls: str, name: str) -> str | None:
    """The interval of an option of a library's class."""
    return CLASS_RANGES.get(cls, {}).get(name) or RANGES.get(name)


def problem(cls: str, name: str, value: Any) -> str | None:
    """What is wrong with the numbers in the value of an option, whose type is right."""
    if name in NOT_EMPTY and value in ([], ""):
        return "expected at least one"
    text = of_option(cls, name)
    for number in _numbers(value):
        if wrong := out_of_range(number, text):
            return wrong
        if name in WHOLE_ABOVE_1 and number > 1 and number != int(number):
            return "expected a whole number of steps, or a share of the run below 1"
    return None


def out_of_range(number: float, text: str | None) -> str | None:
    """What is wrong with one number, given its interval (None: any finite one)."""
    known = interval(text or "(-inf, inf)")
    if number not in known:
        return f"expected {known}"
    if isinstance(number, int) and known.high == math.inf and number > MAX_INT:
        return f"expected at most {MAX_INT}"
    return None


def _numbers(value: Any) -> list[float]:
    """The numbers of a value, those in lists and dicts too."""
    if isinstance(value, Mapping):
        return [number for inner in value.values() for number in _numbers(inner)]
    if isinstance(value, (list, tuple)):
        return [number for inner in value for number in _numbers(inner)]
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


# Below these are options of others, or stages.
OF_OTHERS = ("args", "kwargs", "lora", "quantization", "value", "stages", "common")


def check_schema(settings: Mapping[str, Any], path: str = "") -> list[str]:
    """What is wrong with the numbers of our own schema that `SCHEMA_RANGES` names, and which of its texts are blank."""
    errors = []
    for key, value in settings.items():
        where = f"{path}{key}"
        if isinstance(value, Mapping):
            errors += check_schema(value, f"{where}.") if key not in OF_OTHERS else []
        elif isinstance(value, str) and not value.strip():
            errors.append(f"{where}={value!r}: expected text; leave it out")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and (text := _schema_range(where)):
            errors += [f"{where}={value:.10g}: {wrong}"] if (wrong := out_of_range(value, text)) else []
    return errors


def _schema_range(path: str) -> str | None:
    for pattern, instead in USER_NAMED_RANGES:
        if pattern.match(path):
            return SCHEMA_RANGES.get(pattern.sub(instead, path))
    return SCHEMA_RANGES.get(path)
