"""Checks for the trainers that sample (GRPO, PPO, distillation …): rewards, and batches that divide.

`check` is cheap; `check_ppo` asks `posttrain.ppo.checks`, with TRL imported and before weights load.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config import code, options, trainers
from posttrain.config.recipes import ROOT
from posttrain.config.schema import Run
from posttrain.errors import PosttrainError
from posttrain.runs.pretrained import model_folder
from posttrain.training.schedule import completions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from posttrain.data.loading import Data
    from posttrain.models.hardware import Precision


def check(run: Run) -> list[str]:
    """A reward, batches that hold whole groups, and what PPO's roles need; nothing heavy is imported."""
    errors = []
    kind = trainers.of(run.trainer.kind)
    if (
        kind.takes_rewards
        and not run.reward
        and not (run.trainer.environment and _rewards_itself(run.trainer.environment))
    ):
        named = ", ".join(sorted(p.stem for p in (ROOT / "conf" / "reward").glob("*.yaml")))
        errors.append(
            f"reward: {kind.name} needs one; choose reward={named}, "
            "or +reward.NAME.function=package.module.function, or +reward.NAME.model=RUN_OR_HUB_ID"
        )
    if weighted := [n for n, e in run.reward.items() if e.weight != 1 and not kind.has("reward_weights")]:
        errors.append(f"reward.{weighted[0]}.weight: {kind.name} has no option reward_weights; leave it at 1")
    errors += [f"trainer.args.reward_weights={e}; set reward.NAME.weight in its place" for e in _weights(run)]
    args = run.trainer.args
    group = args.get("num_generations", kind.generations)
    factors = _batch_factors(run)
    batch = args.get("generation_batch_size") or completions(args, factors)
    if batch and isinstance(batch, int) and isinstance(group, int) and group > 0 and batch % group:
        errors.append(
            f"trainer.args.num_generations={group}: does not divide the {batch} completions of a generation batch "
            f"({' x '.join(factors)} x processes)"
        )
    group = args.get("num_generations_eval") or group
    batch = completions(args, ["per_device_eval_batch_size"])
    if args.get("eval_strategy") != "no" and batch and isinstance(group, int) and group > 0 and batch % group:
        errors.append(
            f"trainer.args.per_device_eval_batch_size: {batch} completions over all processes do not hold whole "
            f"groups of {group}; set a multiple of it, or num_generations_eval"
        )
    return [*errors, *_roles(run)] if kind.is_a("PPOTrainer") else errors


def _weights(run: Run) -> Iterator[str]:
    """What is wrong with `reward_weights`, which has one weight for each reward, in the config's order."""
    weights = run.trainer.args.get("reward_weights")
    if not isinstance(weights, list):
        return
    if not run.trainer.environment and len(weights) != len(run.reward):
        yield f"{weights} has {len(weights)} weights for {len(run.reward)} rewards"
    for name, entry in run.reward.items():
        if entry.weight != 1:
            yield f"{weights} would replace reward.{name}.weight={entry.weight:g}"
    shared = shared_reward(run) if trainers.is_ppo(run) else None
    if shared and shared[0] != next(iter(run.reward)):
        yield f"{weights}: PPO takes the reward on its base, {shared[0]}, before the others"


def _batch_factors(run: Run) -> list[str]:
    """The options whose product, times the number of processes, is the number of completions of a generation batch."""
    factors = ["per_device_train_batch_size", "gradient_accumulation_steps"]
    if trainers.is_ppo(run):
        factors.append("num_mini_batches")
    elif run.trainer.args.get("steps_per_generation"):
        factors[1] = "steps_per_generation"
    return factors


def check_rows(run: Run, rows: int) -> None:
    """Raise `PosttrainError` where all rows do not fill one batch: the trainer drops it, and would train nothing."""
    args, kind = run.trainer.args, trainers.of(run.trainer.kind)
    if kind.has("generation_batch_size") or kind.is_a("DistillationTrainer"):
        factors, fix = _batch_factors(run), "lower it, or add rows"
        needed = (args.get("generation_batch_size") or completions(args, factors)) // (
            args.get("num_generations") or kind.generations or 1
        )
    elif args.get("dataloader_drop_last"):
        factors, fix = ["per_device_train_batch_size"], "lower it, add rows, or set dataloader_drop_last=false"
        needed = completions(args, factors)
    else:
        return
    if rows < needed:
        option = "generation_batch_size" if args.get("generation_batch_size") else factors[0]
        raise PosttrainError(
            f"trainer.args.{option}: a batch takes {needed} rows and there are {rows}; an incomplete batch is dropped, "
            f"so that nothing would be trained; {fix}"
        )


def _rewards_itself(environment: str) -> bool:
    """Whether an environment has TRL's `get_reward`; one that cannot be imported is reported elsewhere."""
    try:
        return hasattr(code.load(environment), "get_reward")
    except Exception:  # the user's module; another check reports its errors
        return True


def _roles(run: Run) -> Iterator[str]:
    """Errors where the value function or the reward model cannot be an adapter of this policy."""
    from posttrain.rewards import calibration

    args = run.trainer.args
    if trainers.value_adapter(run) and run.peft.method == "none":
        yield (
            "trainer.args.value_mode=adapter: the value function is a second adapter; choose peft=lora, "
            "or trainer.args.value_mode=head"
        )
    shared = shared_reward(run)
    if shared is not None:
        yield from [
            f"reward.{shared[0]}.args.{name}: a reward model on the policy's base takes {', '.join(calibration.ARGS)}; "
            f"leave it out, or set reward.{shared[0]}.shared=false"
            for name in run.reward[shared[0]].args
            if name not in calibration.ARGS
        ]
    if args.get("value_init") == "reward" and shared is None:
        yield (
            "trainer.args.value_init=reward: copies a reward model that is an adapter on the policy's base; choose "
            "reward=rm reward.rm.model=RUN with a run of trainer=reward peft=lora, or trainer.args.value_init=zero"
        )
    if args.get("value_init") == "reward" and run.peft.value:
        yield "peft.value: with value_init=reward the value adapter has the shape of the reward model's"


def shared_reward(run: Run) -> tuple[str, str] | None:
    """Name and folder of the reward model that is attached to the policy's base: the first one that is an adapter.

    In GRPO and RLOO, its base must be the policy's; in PPO, `check_ppo` reports another base as an error. In full
    fine-tuning there is none, since the base changes.
    """
    if not trainers.of(run.trainer.kind).takes_rewards or run.peft.method == "none":
        return None
    for name, entry in run.reward.items():
        if entry.model is not None and entry.shared:
            folder = Path(os.path.expanduser(model_folder(entry.model)))
            if (folder / "adapter_config.json").is_file() and (trainers.is_ppo(run) or _same_base(run, entry.model)):
                return name, str(folder)
    return None


def reward_functions(run: Run) -> tuple[dict[str, Any], str | None]:
    """The reward functions by name, and the name of the reward model on the policy's base, if there is one."""
    from posttrain import rewards

    shared = shared_reward(run)
    name = shared[0] if shared else None
    # PPO itself loads the reward adapter on its policy's base.
    own = {n: entry for n, entry in run.reward.items() if n != name or not trainers.is_ppo(run)}
    return rewards.resolve(own, shared=name), name


def shared_reward_adjustment(run: Run) -> tuple[tuple[str, str] | None, Any]:
    """`shared_reward`, and how its scores are adjusted; `None` for each."""
    from posttrain.rewards import calibration

    shared = shared_reward(run)
    if shared is None or not (entry := run.reward[shared[0]]).args:
        return shared, None
    return shared, calibration.adjustment(str(entry.model), **entry.args)


def _same_base(run: Run, model: str) -> bool:
    from posttrain.models import starting_point
    from posttrain.runs import lineage

    reward = lineage.source(model)
    same = (reward.base, reward.quantization) == (starting_point.start(run).base, run.peft.quantization)
    return reward.run is not None and same


def check_ppo(
    run: Run, data: Data, tokenizer: PreTrainedTokenizerBase, precision: Precision, config: Any, base: str
) -> None:
    """Raise `PosttrainError` with all that `posttrain.ppo` finds wrong before weights load.

    `config` is the model's, `base` where its weights lie.
    """
    from posttrain.ppo import PPOConfig, checks

    shared = shared_reward(run)

    def name(option: str) -> str:
        return f"reward.{shared[0]}.model" if shared and option == "reward_adapter" else f"trainer.args.{option}"

    settings = {"use_cpu": precision.device == "CPU", "bf16": precision.bf16, "fp16": precision.fp16}
    try:
        args = PPOConfig(output_dir="unused", report_to="none", **{**settings, **run.trainer.args})
    except ValueError as error:
        raise PosttrainError("\n".join(_at_option(line) for line in str(error).splitlines())) from None
    template: Any = args.chat_template_kwargs
    tools = data.train["tools"] if "tools" in data.train.column_names else None
    try:
        checks.check_all(
            args,
            peft=run.peft.method != "none",
            columns=data.train.column_names,
            num_prompts=len(data.train),
            tokenizer=tokenizer,
            model_config=config,
            longest_prompt=checks.longest_prompt_length(data.train["prompt"], tokenizer, template, tools=tools),
            reward_adapter=shared and shared[1],
            base_model=base,
            num_reward_funcs=len(run.reward) - (shared is not None),
            name=name,
        )
    except ValueError as error:
        lines = str(error).splitlines()
        if shared is not None:
            own = f" Or set reward.{shared[0]}.shared=false: it is then loaded with its own base."
            lines = [line + own if line.startswith(f"reward.{shared[0]}.model=") else line for line in lines]
        raise PosttrainError("\n".join(lines)) from None


def _at_option(line: str) -> str:
    """A message of PPOConfig, with the option's name at its beginning replaced by its config key."""
    first = line.split("=")[0].split()[0] if line.strip() else ""
    return f"trainer.args.{line}" if first in options.options_of(trainers.of("ppo").config) else f"trainer=ppo: {line}"


def reward_line(name: str, run: Run) -> str:
    """The plan's line on a reward: its weight, and whether its model needs memory of its own."""
    entry, shared = run.reward[name], shared_reward(run)
    where = ""
    if entry.model is not None:
        where = " (an adapter on the policy's base)" if shared and shared[0] == name else " (a separate model)"
    return name + where + (f" x {entry.weight:g}" if entry.weight != 1 else "")


def check_generation(config: Any) -> None:
    """Raise Transformers' error for the generation options of a trainer with `config`."""
    from transformers import GenerationConfig

    if config.use_vllm:
        return
    asked = {"max_new_tokens": getattr(config, "max_completion_length", None) or config.max_new_tokens}
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "cache_implementation")
    asked |= {name: getattr(config, name) for name in names if hasattr(config, name)}
    made = GenerationConfig(do_sample=True, **asked)
    unknown = made.update(**(config.generation_kwargs or {}))
    if unknown:
        raise PosttrainError(f"trainer.args.generation_kwargs.{next(iter(unknown))}: not an option of GenerationConfig")
    made.validate(strict=False)
