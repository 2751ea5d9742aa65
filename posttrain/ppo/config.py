"""Options of `PPOTrainer`."""

import logging
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from trl import RLOOConfig

from . import names

logger = logging.getLogger(__name__)


@dataclass
class PPOConfig(RLOOConfig):
    r"""
    Configuration of [`PPOTrainer`]. Holds PPO's own options and PPO's defaults for inherited ones; the rest
    (generation, vLLM, continuous batching, logging, reward weights …) is [`~trl.RLOOConfig`]'s and
    [`~transformers.TrainingArguments`]'s.

    One *rollout* is `per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches` completions on every
    process. It is generated at once and then learned from `num_ppo_epochs` times, in `num_mini_batches` optimizer steps
    each. `steps_per_generation`, `generation_batch_size` and `num_iterations` follow from these and need not be set.

    Inherited options with a meaning of their own here: `beta` is the (initial) KL coefficient, `epsilon` and
    `epsilon_high` the clip range of the probability ratio, `reward_clip_range` clips the weighted sum of the rewards
    before the penalty for a missing EOS, `num_generations` may be 1. Checkpoints are taken between rollouts:
    `save_steps` is rounded up.

    Log-probabilities are those of the whole distribution at `temperature`: with `top_p`, `top_k`, `min_p` or
    `repetition_penalty`, completions come from another distribution, and ratios and KL are approximations.

    `use_vllm` and `use_transformers_continuous_batching` are inherited and need a GPU; with PPO they were not run.
    """

    learning_rate: float = field(default=3e-6, metadata={"help": "Initial learning rate of the policy."})
    num_generations: int | None = field(
        default=1, metadata={"help": "Completions per prompt. PPO needs one: its baseline is the value function."}
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "Whether to disable dropout. With dropout, the first ratio is not 1."}
    )

    num_ppo_epochs: int = field(default=4, metadata={"help": "Times that every rollout is learned from."})
    num_mini_batches: int = field(
        default=1, metadata={"help": "Optimizer steps per PPO epoch; a rollout grows in proportion."}
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount factor, in (0, 1]."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of generalized advantage estimation, in [0, 1]."})
    whiten_rewards: bool = field(
        default=False, metadata={"help": "Whether to scale token rewards to unit variance over the rollout."}
    )
    whiten_advantages: bool = field(
        default=True, metadata={"help": "Whether to scale advantages to zero mean, unit variance over the rollout."}
    )
    target_kl: float | None = field(
        default=None,
        metadata={
            "help": "Approximate KL between the policy and the policy of the rollout, in nats per token. When a "
            "minibatch exceeds it, its optimizer step and the rollout's remaining ones are skipped."
        },
    )

    value_mode: Literal["adapter", "head"] = field(
        default="adapter",
        metadata={
            "help": "`adapter`: the value function is a separate adapter with a linear head (needs PEFT). `head`: a "
            "linear head on the policy's hidden states; one forward pass serves both, and both train one set of "
            "weights."
        },
    )
    value_init: Literal["zero", "reward"] = field(
        default="zero",
        metadata={
            "help": "`zero`: the value function starts at 0. `reward`: it starts as a copy of the reward adapter and "
            "its head (needs `reward_adapter` and `value_mode='adapter'`)."
        },
    )
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    cliprange_value: float | None = field(
        default=0.2, metadata={"help": "Clip range of the value function around its old values; None: no clipping."}
    )
    value_learning_rate: float | None = field(
        default=None, metadata={"help": "Initial learning rate of value adapter and head; None: `learning_rate`."}
    )

    kl_estimator: Literal["k1", "k2", "k3"] = field(
        default="k1", metadata={"help": "Estimator of the per-token KL to the reference that the reward is charged."}
    )
    kl_target: float | None = field(
        default=None,
        metadata={"help": "KL to the reference, in nats per completion, that adapts `beta`; None: `beta` is fixed."},
    )
    kl_horizon: int = field(
        default=10_000, metadata={"help": "Completions over which the adaptive KL coefficient moves by 20 %% at most."}
    )

    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Positive number subtracted from the score of a completion without EOS."}
    )
    min_completion_length: int | None = field(
        default=None, metadata={"help": "Minimum length of the generated completion, in tokens."}
    )

    def __new__(cls, *args: Any, **kwargs: Any):
        """Raise `TypeError` for an option of an older PPO trainer; the message gives its present name."""
        names.check(kwargs, cls.__dataclass_fields__, names.OPTIONS, cls.__name__)
        return super().__new__(cls)

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps between two rollouts."""
        return self.num_ppo_epochs * self.num_mini_batches

    def __post_init__(self):
        self._check_ranges()
        requested_batch = self._derive_rollout()
        self._round_save_steps()
        try:
            super().__post_init__()
        except ValueError as error:
            # RLOO needs two completions per prompt, and RLOOConfig checks this last. PPO does not: its baseline is the
            # value function.
            if self.num_generations != 1 or "at least 2 generations" not in str(error):
                raise
        if requested_batch not in (None, self.generation_batch_size):
            raise ValueError(
                f"generation_batch_size={requested_batch} is not per_device_train_batch_size "
                f"({self.per_device_train_batch_size}) * gradient_accumulation_steps "
                f"({self.gradient_accumulation_steps}) * num_mini_batches ({self.num_mini_batches}) * processes "
                f"({self.world_size}) = {self.generation_batch_size}: leave generation_batch_size out, or change one "
                "of the factors."
            )
        completions = self.generation_batch_size or 0
        if self.kl_target is not None and 5 * self.kl_horizon <= completions:
            raise ValueError(
                f"kl_horizon={self.kl_horizon} would let one rollout of {completions} completions lower beta to 0 or "
                f"below: set it to {completions} or more."
            )
        self._set_minimum_length()
        if self.fp16 and self.target_kl is not None:
            raise ValueError("target_kl skips optimizer steps, which fp16's gradient scaler does not allow: use bf16.")

    def _check_ranges(self) -> None:
        problems = []
        for name in ("num_ppo_epochs", "num_mini_batches", "kl_horizon", "num_generations"):
            if (getattr(self, name) or 0) < 1:
                problems.append(f"{name}={getattr(self, name)} must be at least 1.")
        for name in ("target_kl", "kl_target", "cliprange_value", "value_learning_rate"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                problems.append(f"{name}={getattr(self, name)} must be positive; leave it None to switch it off.")
        for name in ("missing_eos_penalty", "vf_coef", "beta"):
            if (getattr(self, name) or 0) < 0:
                problems.append(f"{name}={getattr(self, name)} must not be negative.")
        if not 0 < self.gamma <= 1:
            problems.append(f"gamma={self.gamma} must lie in (0, 1].")
        if not 0 <= self.lam <= 1:
            problems.append(f"lam={self.lam} must lie in [0, 1].")
        choices = {
            "value_mode": ("adapter", "head"),
            "value_init": ("zero", "reward"),
            "kl_estimator": ("k1", "k2", "k3"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                problems.append(f"{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}.")
        if self.kl_target is not None and not self.beta:
            problems.append("kl_target adapts beta by factors, so beta=0 would stay 0: set beta, e.g. to 0.05.")
        if self.value_init == "reward" and self.value_mode == "head":
            problems.append("value_init='reward' copies the reward adapter: set value_mode='adapter'.")
        if self.normalize_advantages:
            problems.append("normalize_advantages is RLOO's; PPO's is whiten_advantages.")
        minimum, maximum = self.min_completion_length, self.max_completion_length
        if minimum is not None and not 1 <= minimum <= (maximum or minimum):
            problems.append(f"min_completion_length={minimum} must lie in [1, max_completion_length={maximum}].")
        if problems:
            raise ValueError("\n".join(problems))

    def _derive_rollout(self) -> int | None:
        """Set RLOO's options for the size of a rollout; returns the `generation_batch_size` that the user gave."""
        steps = self.gradient_accumulation_steps * self.num_mini_batches
        if self.steps_per_generation not in (None, steps):
            raise ValueError(
                f"steps_per_generation={self.steps_per_generation} is not gradient_accumulation_steps "
                f"({self.gradient_accumulation_steps}) * num_mini_batches ({self.num_mini_batches}) = {steps}: leave "
                "it out and set num_mini_batches."
            )
        if self.num_iterations not in (1, self.num_ppo_epochs):
            raise ValueError(
                f"num_iterations={self.num_iterations} contradicts num_ppo_epochs={self.num_ppo_epochs}: leave "
                "num_iterations out."
            )
        requested, self.generation_batch_size = self.generation_batch_size, None
        self.steps_per_generation = steps
        self.num_iterations = self.num_ppo_epochs
        return requested

    def _round_save_steps(self) -> None:
        # A checkpoint inside a rollout could not resume exactly: the rest of the rollout is not in it.
        rounded = round_up(self.save_steps, self.steps_per_rollout)
        if self.save_strategy == "steps" and rounded != self.save_steps:
            logger.info("save_steps=%s rounded up to %s: whole rollouts.", self.save_steps, rounded)
            self.save_steps = rounded

    def _set_minimum_length(self) -> None:
        if self.min_completion_length is None:
            return
        option = "min_tokens" if self.use_vllm else "min_new_tokens"
        self.generation_kwargs = {**(self.generation_kwargs or {}), option: self.min_completion_length}  # type: ignore[dict-item]


def round_up(steps: float, multiple: int) -> float:
    """`steps` rounded up to a multiple; a value below 1, which is a share of the run, is returned as it is."""
    return steps if steps < 1 else math.ceil(steps / multiple) * multiple
