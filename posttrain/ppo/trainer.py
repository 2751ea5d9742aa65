"""PPO on TRL's RLOO trainer: generation, rewards, logging and checkpoints are TRL's, the algorithm is here."""

import inspect
import logging
import textwrap
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import ProgressCallback
from trl.trainer.utils import disable_dropout_in_model, get_config_model_id

from . import maths, names
from .callbacks import RolloutCallback, RolloutProgress
from .config import PPOConfig
from .experience import ExperienceTrainer
from .facts import check_arguments, load_tokenizer
from .forward import add_completion_forward, takes_position_ids
from .rewards import RewardContext, TokenReward, adapter_score, adapter_tokenizer, reward_function
from .roles import VALUE, Roles
from .rollout import EpochSampler, Rollout, arrange, lengths, take

logger = logging.getLogger(__name__)

MINIBATCH_METRICS = (
    *("loss/policy", "loss/value", "entropy", "approx_kl", "ratio"),
    *("clip_ratio/region_mean", "value/clip_ratio"),
)


class PPOTrainer(ExperienceTrainer):
    """
    Trainer for Proximal Policy Optimization (PPO), with one base model in memory.

    With a policy that is an adapter, the reference is the base model without it (or a frozen copy of the adapter the
    policy starts from), the value function an adapter with a linear head, the reward model an adapter with its score
    head. With full fine-tuning, the reference is a separate model, loaded if `beta` is not 0.

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> from peft import LoraConfig
    >>> from posttrain.ppo import PPOConfig, PPOTrainer

    >>> trainer = PPOTrainer(
    ...     model="meta-llama/Llama-3.1-8B-Instruct",
    ...     args=PPOConfig("ppo", value_init="reward", missing_eos_penalty=1.0),
    ...     train_dataset=load_dataset("trl-lib/ultrafeedback-prompt", split="train"),
    ...     peft_config=LoraConfig(target_modules="all-linear"),
    ...     reward_adapter="outputs/reward",
    ... )
    >>> trainer.train()
    ```

    Args:
        model, args, train_dataset, eval_dataset, processing_class, callbacks, optimizers, quantization_config,
        peft_config:
            As in [`~trl.RLOOTrainer`]. Datasets need a column `prompt`, text or conversational; a ready-made
            [`~peft.PeftModel`] must hold its policy adapter under the name `default`.
        reward_funcs, reward_processing_classes:
            As in [`~trl.RLOOTrainer`]: functions, sequence-classification models or their ids, one or several.
            Functions also get `prompt_ids`. Models with the policy's vocabulary are scored on token ids.
        value_peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter of the value function. If `None`, shaped like the policy's.
        reward_adapter (`str`, *optional*):
            Folder in which [`~trl.RewardTrainer`] saved a LoRA reward model trained on the same base model. Comes first
            in `args.reward_weights` and is logged as `rewards/reward_adapter/mean`.

    Raises:
        ValueError: before weights are loaded, for what [`posttrain.ppo.checks`] can see.
    """

    _tag_names = ["trl", "ppo"]  # noqa: RUF012 (TRL's convention)
    _name = "PPO"
    _paper = {  # noqa: RUF012 (TRL's convention)
        "title": "Fine-Tuning Language Models from Human Preferences",
        "id": "1909.08593",
        "citation": textwrap.dedent("""\
            @article{ziegler2019finetuning,
                title        = {{Fine-Tuning Language Models from Human Preferences}},
                author       = {Daniel M. Ziegler and Nisan Stiennon and Jeffrey Wu and Tom B. Brown and Alec Radford and Dario Amodei and Paul F. Christiano and Geoffrey Irving},
                year         = 2019,
                eprint       = {arXiv:1909.08593}
            }"""),  # noqa: E501
    }

    def __new__(cls, *args: Any, **kwargs: Any):
        """Raise `TypeError` for an argument of an older PPO trainer; the message gives its present name."""
        names.check(kwargs, inspect.signature(cls.__init__).parameters, names.ARGUMENTS, cls.__name__)
        return super().__new__(cls)

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        reward_funcs: Any = None,
        args: PPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        value_peft_config: PeftConfig | None = None,
        reward_adapter: str | Path | None = None,
    ):
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = PPOConfig(f"{Path(name).name}-PPO")
        if not isinstance(args, PPOConfig):
            raise TypeError(f"args must be a PPOConfig, not a {type(args).__name__}.")
        reward_funcs = _as_list(reward_funcs)
        classes = _as_list(reward_processing_classes) or [None] * len(reward_funcs)
        processing_class = load_tokenizer(model, args, processing_class)
        check_arguments(
            model, args, processing_class, (train_dataset, eval_dataset), peft_config, reward_adapter, len(reward_funcs)
        )
        if optimizers[0] is not None and args.value_learning_rate is not None:
            raise ValueError("value_learning_rate has no effect on an optimizer passed in: set it there.")
        if args.value_init == "reward" and value_peft_config is not None:
            raise ValueError("value_init='reward' takes the shape of the reward adapter: leave value_peft_config out.")
        reward_tokenizer = None
        if reward_adapter is not None:
            reward_tokenizer = adapter_tokenizer(reward_adapter, processing_class)
            reward_funcs, classes = [_reward_adapter, *reward_funcs], [None, *classes]
        if args.value_mode == "adapter" and args.ddp_find_unused_parameters is None:
            # Policy and value adapters have a forward and a backward pass each.
            args.ddp_find_unused_parameters = True

        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=classes,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        self.train_sampler: EpochSampler | None = None
        self.kl_controller = maths.KLController(args.beta, args.kl_target, args.kl_horizon)
        self._build_roles(value_peft_config, reward_adapter)
        self._build_rewards(reward_tokenizer)
        self._stopped = False
        self._generated_tokens = 0
        self._seconds = defaultdict(float)
        self._minibatch_sums: Any = 0.0
        self.add_callback(RolloutCallback(lambda: self.train_sampler))
        if any(type(callback) is ProgressCallback for callback in self.callback_handler.callbacks):
            self.remove_callback(ProgressCallback)
            self.add_callback(RolloutProgress)

    def _build_roles(self, value_config: PeftConfig | None, reward_adapter: str | Path | None) -> None:
        args = self.args
        self.roles = Roles(self.model, self.temperature)
        self.takes_position_ids = takes_position_ids(type(self.roles.base))
        # Every process must initialise the same value adapter; the random state is restored for generation.
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(args.seed)
            if reward_adapter is not None:
                self.roles.add_reward_adapter(reward_adapter)
            scale = 1.0 if args.reward_weights is None else args.reward_weights[0]
            self.roles.add_value_function(args.value_mode, args.value_init, value_config, scale)
        if args.disable_dropout:
            _disable_dropout(self.model)
        if args.use_vllm and getattr(self.model, "is_quantized", False):
            logger.warning("vLLM gets the policy merged into its quantized base model, which rounds it; not tested.")
        if self.ref_model is not None:
            add_completion_forward(self.accelerator.unwrap_model(self.ref_model), self.temperature)

    def _build_rewards(self, reward_tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Replace reward models by functions that score the generated tokens."""
        context = RewardContext(
            tokenizer=self._tokenizer,
            eos_token_ids=self.eos_token_ids,
            chat_template_kwargs=self.chat_template_kwargs,
            batch_size=self.args.per_device_train_batch_size,
            device=self.accelerator.device,
        )
        for i, (reward, tokenizer) in enumerate(zip(self.reward_funcs, self.reward_processing_classes, strict=True)):
            if reward is _reward_adapter:
                tokenizer = reward_tokenizer or self._tokenizer
                score = adapter_score(self.roles, tokenizer.pad_token_id, self.accelerator.autocast)
                self.reward_func_names[i] = "reward_adapter"
                self.reward_funcs[i] = TokenReward("reward_adapter", score, tokenizer, context)
            elif isinstance(reward, nn.Module):
                self.reward_funcs[i] = reward_function(self.reward_func_names[i], reward, tokenizer, context)

    # Data

    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
        self.train_sampler = EpochSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=bool(self.shuffle_dataset),
            seed=self.args.seed,
        )
        return self.train_sampler

    @property
    def _microbatches(self) -> int:
        """Microbatches of one pass over a rollout, on this process."""
        return self.args.gradient_accumulation_steps * self.args.num_mini_batches

    def _prepare_inputs(self, generation_batch: Any) -> Rollout:
        """The next microbatch; starts a new pass, in a new order, or a new rollout where the last one is used up."""
        if not self.model.training:
            return self._generate_and_score_completions(generation_batch)
        position = self._step % (self._microbatches * self.num_iterations)
        if position == 0:
            self._stopped = False
            self._rollout = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs = self._divide(self._arrangement)
        elif position % self._microbatches == 0:
            size = self.args.per_device_train_batch_size
            self._buffered_inputs = self._divide(arrange(lengths(self._rollout), self.args.num_mini_batches, size))
        return self._buffered_inputs[position % self._microbatches]

    def _divide(self, arrangement: list[list[torch.Tensor]]) -> list[Rollout]:
        """Cut the rollout into microbatches; each gets its minibatch's tokens per microbatch, over all processes."""
        tokens = self._sum(torch.stack([self._rollout["loss_mask"][torch.cat(rows)].sum() for rows in arrangement]))
        share = tokens.clamp(min=1) / (self.args.gradient_accumulation_steps * self.accelerator.num_processes)
        return [
            {**take(self._rollout, rows, self.pad_to_multiple_of), "num_tokens": share[i]}
            for i, minibatch in enumerate(arrangement)
            for rows in minibatch
        ]

    # Learning

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        started = time.perf_counter()
        rollout_steps = self._microbatches * self.num_iterations
        self.roles.repair()  # a callback may have measured something with PEFT's `disable_adapter`
        if self._stopped and self._step % rollout_steps:
            self._step += 1
            loss = torch.zeros((), device=self.accelerator.device)
        else:
            loss = super().training_step(model, inputs, num_items_in_batch)
            if self._step % self.args.gradient_accumulation_steps == 0:
                self._finish_minibatch(model)
        self._seconds["total"] += time.perf_counter() - started
        if self._step % rollout_steps == 0:
            self._record_time()
        return loss

    def _compute_loss(self, model: nn.Module, inputs: Rollout) -> torch.Tensor:
        """PPO's loss on a microbatch: summed over its tokens, divided by the tokens per microbatch of its minibatch.

        So every token of a minibatch counts the same, however it is divided over microbatches and processes. The
        backward pass of a value adapter runs in here, while it is active; its loss is then a constant in the result.
        """
        if not self.model.training:
            return self._evaluation_loss(inputs)
        args, mask = self.args, inputs["loss_mask"]
        shared = args.value_mode == "head"

        def mean(x: torch.Tensor) -> torch.Tensor:
            return (x * mask).sum() / inputs["num_tokens"]

        def value_part(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return maths.value_loss(values, inputs["old_values"], inputs["returns"], args.cliprange_value)

        if not shared:
            with self._clock("value"), self.roles.use(VALUE):
                value_losses, value_clipped = value_part(self._completion_forward(model, inputs, ("value",)).value)
                weighted_value_loss = args.vf_coef * mean(value_losses)
                self.accelerator.backward(weighted_value_loss / self.current_gradient_accumulation_steps)
                weighted_value_loss = weighted_value_loss.detach()
        extras = (*(["value"] if shared else []), *(["aux_loss"] if self.aux_loss_enabled else []))
        output = self._completion_forward(model, inputs, ("log_probs", *extras))
        if shared:
            value_losses, value_clipped = value_part(output.value)
            weighted_value_loss = args.vf_coef * mean(value_losses)
        policy_losses, ratio, clipped = maths.policy_loss(
            output.log_probs, inputs["old_logps"], inputs["advantages"], self.epsilon_low, self.epsilon_high
        )
        change = (output.log_probs - inputs["old_logps"]) ** 2 / 2
        per_token = (policy_losses, value_losses, output.entropy, change, ratio, clipped, value_clipped, mask)
        with torch.no_grad():
            self._minibatch_sums += torch.stack([(x.float() * mask).sum() for x in per_token])
        loss = mean(policy_losses) + weighted_value_loss
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * output.aux_loss
        return loss

    def _evaluation_loss(self, rollout: Rollout) -> torch.Tensor:
        """The loss with unchanged weights: ratios are 1 and values are the old ones, so it needs no forward pass."""
        losses = -rollout["advantages"] + self.args.vf_coef * (rollout["old_values"] - rollout["returns"]) ** 2 / 2
        return maths.masked_mean(losses, rollout["loss_mask"])

    def _finish_minibatch(self, model: nn.Module) -> None:
        """Record a minibatch's metrics; past `target_kl`, drop its gradients and end the rollout early."""
        sums, self._minibatch_sums = self._sum(self._minibatch_sums), 0.0
        means = dict(zip(MINIBATCH_METRICS, (sums[:-1] / sums[-1].clamp(min=1)).tolist(), strict=True))
        self._record(means)
        if self.args.target_kl is None:
            return
        self._stopped = means["approx_kl"] > self.args.target_kl
        self._record({"early_stop": float(self._stopped)})
        if self._stopped:
            # Optimizers skip parameters without a gradient; with a zero gradient, momentum would still move them.
            model.zero_grad(set_to_none=True)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._stopped:  # no step was made: a norm of 0 would look like gradients that vanish
            logs.pop("grad_norm", None)
        super().log(logs, start_time)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        created = self.optimizer is None
        self.roles.repair()  # something may have switched adapters with PEFT's own methods before the training
        optimizer = super().create_optimizer(model)
        if created and self.args.value_learning_rate is not None:
            value = {id(p) for p in self.roles.value_parameters}
            for group in list(optimizer.param_groups):
                moved = [p for p in group["params"] if id(p) in value]
                group["params"] = [p for p in group["params"] if id(p) not in value]
                if moved:
                    optimizer.add_param_group({**group, "params": moved, "lr": self.args.value_learning_rate})
        return optimizer

    # Checkpoints

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        with self.roles.bare():
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            self.roles.save(str(output_dir or self.args.output_dir), self.kl_controller.value)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.roles.is_peft:
            with self.roles.bare():
                super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.kl_controller.value = self.roles.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if not self.roles.is_peft:
            with self.roles.bare():
                super()._load_best_model()
        self.roles.load(str(self.state.best_model_checkpoint))


def _reward_adapter(**_: Any) -> list[float]:
    """A placeholder for the reward adapter until its base model is loaded."""
    raise NotImplementedError


def _disable_dropout(model: nn.Module) -> None:
    """Switch dropout off, also where a probability is a plain number (OPT, XGLM), which TRL's function leaves on."""
    disable_dropout_in_model(model)
    for module in model.modules():
        for name in ("dropout", "attention_dropout", "activation_dropout", "hidden_dropout", "layerdrop"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
