"""Ranges of numeric options: of TRL, Transformers, PEFT and bitsandbytes, and of our schema.

Where a library names a range, or refuses values outside one when it is built, ours is that range or a part of it
(`tests/config/test_ranges.py` walks the tables against the installed libraries). NaN is in no range, infinity only
in those of MAY_BE_INFINITE, and an integer has 32 bits. A range is written as the messages have it.
"""

import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_INT = 2**31 - 1  # of integers that go to C, such as lengths, ranks and steps

COUNT, FROM_0, ABOVE_0, FINITE = "at least 1", "at least 0", "above 0", "a finite number"
SHARE, PART = "at least 0 and at most 1", "above 0 and at most 1"
SEED = "at least 0 and at most 4294967295"


def _by_name(names: dict[str, str]) -> dict[str, str]:
    return {name: interval for interval, several in names.items() for name in several.split()}


# The options of Transformers, TRL, PPO, PEFT and bitsandbytes, for every class that has them, by their interval.
RANGES = _by_name(
    {
        COUNT: """
        per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps
        eval_accumulation_steps torch_empty_cache_steps save_total_limit dataloader_prefetch_factor
        ddp_bucket_cap_mb ddp_timeout max_length dataset_num_proc pad_to_multiple_of precompute_ref_batch_size
        ref_model_sync_steps num_generations_eval max_completion_length generation_batch_size
        steps_per_generation num_iterations max_tool_calling_iterations vllm_max_model_length
        vllm_tensor_parallel_size num_completions_to_print num_ppo_epochs num_mini_batches kl_horizon
        min_completion_length r lora_alpha rank_pattern qalora_group_size""",
        ABOVE_0: """
        logging_steps eval_steps save_steps num_train_epochs learning_rate discopop_tau f_alpha_divergence_coef
        temperature repetition_penalty vllm_server_timeout epsilon epsilon_high delta off_policy_mask_threshold
        sapo_temperature_neg sapo_temperature_pos target_kl cliprange_value value_learning_rate kl_target
        alpha_pattern vllm_importance_sampling_clip_max vllm_importance_sampling_cap""",
        FROM_0: """
        warmup_steps weight_decay eval_delay neftune_noise_alpha adam_epsilon dataloader_num_workers
        router_aux_loss_coef center_rewards_coefficient loss_weights beta desirable_weight undesirable_weight
        vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg entropy_coef_min entropy_coef_max
        entropy_coef_delta entropy_target vllm_importance_sampling_clip_min top_k vf_coef missing_eos_penalty
        layers_to_transform trainable_token_indices alora_invocation_tokens llm_int8_threshold max_grad_norm""",
        SEED: "seed data_seed",
        "at least 0 and below 1": "adam_beta1 adam_beta2 label_smoothing_factor label_smoothing lora_dropout",
        "-1, or at least 1": "max_steps",
        "at least -1": "local_rank",
        SHARE: "ld_alpha ref_model_mixup_alpha min_p top_entropy_quantile lam",
        "at least 1 and at most 65535": "vllm_server_port vllm_group_port",
        PART: "top_p vllm_gpu_memory_utilization gamma",
        "at least 2": "num_generations",
    }
)
# Where one class takes another range than the others.
CLASS_RANGES: dict[str, dict[str, str]] = {
    "DPOConfig": {"beta": ABOVE_0},  # at 0 its loss is a constant
    "KTOConfig": {"beta": ABOVE_0},
    "PPOConfig": {"num_generations": COUNT},
}
# Numbers of any size: a bonus and a penalty, offsets of a score.
UNBOUNDED = ("entropy_coef", "reward_weights", "reward_clip_range")
MAY_BE_INFINITE = ("max_grad_norm", "vllm_importance_sampling_clip_max", "vllm_importance_sampling_cap")
# At and above 1 these are numbers of steps, below 1 shares of the run.
WHOLE_ABOVE_1 = ("logging_steps", "eval_steps", "save_steps")
NOT_EMPTY = (
    *("loss_type", "loss_weights", "reward_weights"),
    *("target_modules", "layers_to_transform", "target_parameters"),
)

# The numbers of our own schema, by their path. An alarm outside its range would ring always, or never.
SCHEMA_RANGES = _by_name(
    {
        FROM_0: "data.eval_size probe.prompts probe.greedy_prompts probe.shift_prompts sample.margin doctor.examples",
        COUNT: """
        data.max_train_rows data.max_eval_rows probe.every probe.text_rows probe.max_new_tokens probe.batch_size
        probe.safety.prompts sample.n sample.prompts sample.max_new_tokens sample.batch_size evaluate.limit
        doctor.sample doctor.noise_rows""",
        FINITE: "data.min_score data.threshold sample.threshold reward.*.weight",
        "at least 2": "probe.text_tokens",
        PART: "sample.fraction sample.top_p",
        ABOVE_0: """
        sample.temperature alarms.kl.above alarms.forgetting.above alarms.over_optimisation.above
        alarms.sampling.above data.mix.*.weight""",
        SEED: "sample.seed",
        "above 0 and below 1": "evaluate.confidence alarms.gradient.below alarms.collapse.below alarms.length.above",
        "at least 100 and at most 1000000": "evaluate.resamples",
        "at least 0 and at most 1000": "evaluate.num_fewshot",
        SHARE: """
        doctor.near doctor.tolerance doctor.stop doctor.length_accuracy doctor.noise_rate doctor.other_language
        doctor.cluster""",
        "above 1": "alarms.gradient.above alarms.length.growth",
    }
)
# Path with a name that the user chooses -> the path under which SCHEMA_RANGES has its range.
USER_NAMED_RANGES = (
    (re.compile(r"data\.mix\.[^.]+\.weight"), "data.mix.*.weight"),
    (re.compile(r"data\.mix\.[^.]+\."), "data."),
    (re.compile(r"(?:reward|probe\.rewards|probe\.gold)\.[^.]+\.weight"), "reward.*.weight"),
)


COMPARISONS = {"at least": operator.ge, "above": operator.gt, "at most": operator.le, "below": operator.lt}


@dataclass(frozen=True)
class Interval:
    """The finite numbers that a text names, such as "above 0 and at most 1", or "-1, or at least 1"."""

    text: str

    def __contains__(self, value: float) -> bool:
        beside, _, bounds = self.text.rpartition(", or ")
        if beside and value == float(beside):
            return True
        ends = re.findall(r"(at least|above|at most|below) (\S+)", bounds)
        return abs(value) < math.inf and all(COMPARISONS[word](value, float(end)) for word, end in ends)


def of_option(cls: str, name: str) -> str | None:
    """The interval of an option of a library's class."""
    return CLASS_RANGES.get(cls, {}).get(name) or RANGES.get(name)


def problem(cls: str, name: str, value: Any) -> str | None:
    """What is wrong with the numbers in the value of an option, whose type is right."""
    if name in NOT_EMPTY and value in ([], ""):
        return "expected at least one"
    text = of_option(cls, name) or FINITE
    for number in _numbers(value):
        if number == math.inf and name in MAY_BE_INFINITE:
            continue
        if wrong := _out_of_range(number, text):
            return wrong
        if name in WHOLE_ABOVE_1 and number > 1 and number != int(number):
            return "expected a whole number of steps, or a share of the run below 1"
    return None


def _out_of_range(number: float, text: str) -> str | None:
    """What is wrong with one number, given its interval."""
    if number not in Interval(text):
        return f"expected {text}"
    if isinstance(number, int) and number > MAX_INT and "at most" not in text:
        return f"expected at most {MAX_INT}"
    return None


def _numbers(value: Any) -> list[float]:
    """The numbers of a value, those in lists and dicts too."""
    if isinstance(value, Mapping):
        return [number for inner in value.values() for number in _numbers(inner)]
    if isinstance(value, (list, tuple)):
        return [number for inner in value for number in _numbers(inner)]
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


# Keys whose values are options of other libraries, or stages, which are checked elsewhere.
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
            errors += [f"{where}={value:.10g}: {wrong}"] if (wrong := _out_of_range(value, text)) else []
    return errors


def _schema_range(path: str) -> str | None:
    for pattern, instead in USER_NAMED_RANGES:
        if pattern.match(path):
            return SCHEMA_RANGES.get(pattern.sub(instead, path))
    return SCHEMA_RANGES.get(path)
