"""Making experience: generate a rollout, score it in every role, turn scores into advantages and returns."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from trl import RLOOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import nanstd

from . import maths
from .forward import CompletionOutput, positions
from .roles import VALUE, Roles
from .rollout import Rollout, arrange, collate, lengths, put, take


class ExperienceTrainer(RLOOTrainer):
    """The base of `PPOTrainer`: it generates and scores rollouts; `PPOTrainer` adds the learning."""

    # TRL and Transformers declare wider types, or optional ones; these hold once a trainer is built.
    args: Any
    model: Any
    ref_model: Any
    train_dataset: Any
    reward_funcs: list[Any]
    num_generations: int
    chat_template_kwargs: dict[str, Any]
    roles: Roles
    kl_controller: maths.KLController
    takes_position_ids: bool
    pad_to_multiple_of: int | None
    _step: int
    _buffered_inputs: Any
    _seconds: dict[str, float]
    _arrangement: list[list[torch.Tensor]]
    _generated_tokens: int
    _metrics: dict[str, Any]
    _logs: dict[str, Any]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Rollout:
        """Generate a completion for every row of `inputs` and compute all that PPO learns from.

        Returns:
            A rollout with `prompt_ids`, `prompt_mask`, (B, P); `completion_ids`, `completion_mask`, `loss_mask`,
            `old_logps`, `old_values`, `advantages`, `returns` and, where there is a reference, `ref_logps`, (B, T).
        """
        prompts = [row["prompt"] for row in inputs]
        with self._clock("generation"):
            prompt_ids, completion_ids, completions = self._generate(prompts)
        device = self.accelerator.device
        rollout = collate(prompt_ids, completion_ids, self._tokenizer.pad_token_id, device)
        ended = torch.tensor([ids[-1] in self.eos_token_ids for ids in completion_ids], device=device)
        rollout["loss_mask"] = rollout["completion_mask"].clone()
        if self.mask_truncated_completions:
            rollout["loss_mask"] *= ended.unsqueeze(1)

        with disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            with self._clock("scoring"):
                self._score(rollout, self._arrange(rollout))
            with self._clock("rewards"):
                rows = [{**row, "prompt_ids": ids} for row, ids in zip(inputs, prompt_ids, strict=True)]
                rewards = self._calculate_rewards(rows, prompts, completions, completion_ids)

        first = self.accelerator.process_index * len(prompts)  # rewards are of all processes
        rollout["scores"] = self._penalize(self._combine(rewards)[first : first + len(prompts)], ended)
        # A completion that no reward function could judge teaches nothing.
        rollout["judged"] = ~torch.isnan(rollout["scores"])
        rollout["loss_mask"] *= rollout["judged"].unsqueeze(1)
        rollout["scores"] = torch.nan_to_num(rollout["scores"])
        self._estimate_advantages(rollout)
        self._record_rewards(rewards, prompts, completions, rollout)
        return rollout

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        # vLLM must not be sent the value head, nor continuous batching cast it to bfloat16.
        with self.roles.bare():
            return super()._generate_single_turn(*args, **kwargs)

    def _arrange(self, rollout: Rollout) -> list[list[torch.Tensor]]:
        """The division of a rollout into microbatches for its first pass; scoring uses the same one."""
        if self.model.training:
            self._arrangement = arrange(
                lengths(rollout), self.args.num_mini_batches, self.args.per_device_train_batch_size
            )
            return self._arrangement
        return arrange(lengths(rollout), 1, self.args.per_device_eval_batch_size)

    # Scoring

    def _completion_forward(self, model: nn.Module, batch: Rollout, want: tuple[str, ...]) -> CompletionOutput:
        """Forward pass over a microbatch with the active adapter; see `add_completion_forward` for `want`."""
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        labels = batch["completion_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        extra = {"position_ids": positions(mask)} if self.takes_position_ids else {}
        with self.accelerator.autocast():
            return model(
                input_ids=torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                attention_mask=mask,
                completion_labels=labels,
                want=want,
                **extra,
            )

    @torch.no_grad()
    def _score(self, rollout: Rollout, arrangement: list[list[torch.Tensor]]) -> None:
        """Add the policy's and the reference's log-probabilities and the values; each adapter is activated once.

        Runs microbatch by microbatch, each cut to its own longest row. The policy is scored on the very microbatches it
        is trained on first, which makes the first probability ratio exactly 1.
        """
        shared = self.args.value_mode == "head"
        names = ["old_logps", "old_values", *(["ref_logps"] if self._has_reference else [])]
        for name in names:
            rollout[name] = torch.zeros_like(rollout["completion_mask"], dtype=torch.float32)
        batches = [(rows, take(rollout, rows, self.pad_to_multiple_of)) for part in arrangement for rows in part]
        for rows, batch in batches:
            output = self._completion_forward(self.model, batch, ("log_probs", *(["value"] if shared else [])))
            put(rollout["old_logps"], rows, output.log_probs)
            if shared:
                put(rollout["old_values"], rows, output.value)
        if not shared:
            with self.roles.use(VALUE):
                for rows, batch in batches:
                    put(rollout["old_values"], rows, self._completion_forward(self.model, batch, ("value",)).value)
        if self._has_reference:
            reference = self.model if self.ref_model is None else self.ref_model
            with self.roles.reference():
                for rows, batch in batches:
                    output = self._completion_forward(reference, batch, ("log_probs",))
                    put(rollout["ref_logps"], rows, output.log_probs)

    @property
    def _has_reference(self) -> bool:
        # An adapter's reference costs no memory, so KL is measured even where it is not charged (beta = 0).
        return self.roles.is_peft or self.ref_model is not None

    # From rewards to advantages

    def _combine(self, rewards_per_func: torch.Tensor) -> torch.Tensor:
        """Weighted sum of the rewards of each completion, (N, functions) to (N,); NaN where none applies."""
        scores = (rewards_per_func * self.reward_weights.to(rewards_per_func.device)).nansum(dim=1)
        return scores.masked_fill(torch.isnan(rewards_per_func).all(dim=1), torch.nan)

    def _penalize(self, scores: torch.Tensor, ended: torch.Tensor) -> torch.Tensor:
        """Clip the scores, (N,), then subtract the penalty of completions without EOS, which is thus never clipped."""
        if self.reward_clip_range:
            scores = scores.clamp(*self.reward_clip_range)
        if self.args.missing_eos_penalty:
            scores = scores - self.args.missing_eos_penalty * ~ended
        return scores

    def _estimate_advantages(self, rollout: Rollout) -> None:
        """Add `advantages` and `returns`, (B, T), record the objective's metrics, and adapt the KL coefficient."""
        args, mask, learned = self.args, rollout["completion_mask"], rollout["loss_mask"]
        values = rollout["old_values"]
        charged, measured = torch.zeros_like(values), torch.zeros_like(values)
        if self._has_reference:
            logps, ref_logps = rollout["old_logps"], rollout["ref_logps"]
            charged = maths.kl_estimate(logps, ref_logps, args.kl_estimator) * mask
            measured = maths.kl_estimate(logps, ref_logps, "k1") * mask
        coefficient = self.kl_controller.value
        rewards = maths.token_rewards(rollout["scores"], charged, coefficient, mask)
        if args.whiten_rewards:
            rewards = maths.masked_whiten(rewards, learned, shift_mean=False, reduce=self._sum)
        advantages, rollout["returns"] = maths.gae(rewards, values, mask, args.gamma, args.lam)
        rollout["advantages"] = advantages * learned
        kl = self._record_objective(rollout, measured, -coefficient * charged)
        if args.whiten_advantages:
            rollout["advantages"] = maths.masked_whiten(advantages, learned, reduce=self._sum)
        if self.model.training:
            self.kl_controller.update(kl, len(mask) * self.accelerator.num_processes)

    def _record_objective(self, rollout: Rollout, kl: torch.Tensor, charge: torch.Tensor) -> float:
        """Record the rollout's metrics, over all processes; returns the mean KL per completion, in nats.

        Args:
            kl, charge: (B, T), unbiased KL estimate in nats, and the KL penalty as a (negative) reward.
        """
        mask, learned, values = rollout["completion_mask"], rollout["loss_mask"], rollout["old_values"]
        scores, judged = rollout["scores"], rollout["judged"]
        sums = {
            "objective/kl": kl.sum(),
            "objective/entropy": -(rollout["old_logps"] * mask).sum(),
            "objective/non_score_reward": charge.sum(),
            "objective/rlhf_reward": charge[judged].sum() + scores.sum(),
            "objective/scores": scores.sum(),
            "kl": kl.sum(),
            "advantages/mean": rollout["advantages"].sum(),
            "value/mean": (values * learned).sum(),
        }
        counts = torch.stack([torch.tensor(len(mask), device=mask.device), judged.sum(), mask.sum(), learned.sum()])
        totals = self._sum(torch.stack([*sums.values(), *counts])).tolist()
        completions, judgements, tokens, learned_tokens = totals[len(sums) :]
        # NaN, which TRL leaves out of its means, where nothing was judged.
        divisors = [completions] * 3 + [judgements or math.nan] * 2 + [tokens] + [max(learned_tokens, 1)] * 2
        metrics = {name: total / by for name, total, by in zip(sums, totals, divisors, strict=False)}
        if not self._has_reference:
            del metrics["objective/kl"], metrics["kl"]
        explained = maths.explained_variance(values, rollout["returns"], learned, self._sum).item()
        self._record({**metrics, "value/explained_variance": explained, "kl_coef": self.kl_controller.value})
        if self.model.training:
            self._generated_tokens = int(tokens)
        return totals[0] / completions

    def _sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")

    # Recording

    def _record(self, metrics: dict[str, float]) -> None:
        mode = "train" if self.model.training else "eval"
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)

    def _record_rewards(
        self, rewards_per_func: torch.Tensor, prompts: list[Any], completions: list[Any], rollout: Rollout
    ) -> None:
        """Fill TRL's reward metrics and the completions table."""
        metrics = {}
        for i, name in enumerate(self.reward_func_names):
            metrics[f"rewards/{name}/mean"] = torch.nanmean(rewards_per_func[:, i]).item()
            metrics[f"rewards/{name}/std"] = nanstd(rewards_per_func[:, i]).item()
            self._logs["rewards"][name].extend(rewards_per_func[:, i].tolist())
        total = self._combine(rewards_per_func)
        self._record({**metrics, "reward": torch.nanmean(total).item(), "reward_std": nanstd(total).item()})
        self._logs["prompt"].extend(gather_object(prompts))
        self._logs["completion"].extend(gather_object(completions))
        self._logs["extra"]["score"].extend(self.accelerator.gather(rollout["scores"]).tolist())
        tokens = rollout["loss_mask"].sum(1).clamp(min=1)
        self._logs["advantages"].extend(self.accelerator.gather(rollout["advantages"].sum(1) / tokens).tolist())
        self._flush_user_logs(len(prompts))

    def _flush_user_logs(self, num_rows: int) -> None:
        """Record the columns and metrics that reward functions logged through `log_extra` and `log_metric`."""
        # Sorted, so that all processes gather in the same order.
        for column in sorted(set(gather_object(list(self._pending_extra_logs)))):
            values = self._pending_extra_logs.get(column, [None] * num_rows)
            self._logs["extra"][column].extend(gather_object(values))
        self._pending_extra_logs.clear()
        for name in sorted(set(gather_object(list(self._pending_metrics)))):
            values = self._pending_metrics.get(name, [])
            sums = torch.tensor([sum(values), len(values)], dtype=torch.float32, device=self.accelerator.device)
            total, count = self._sum(sums).tolist()
            self._record({name: total / count})
        self._pending_metrics.clear()

    @contextmanager
    def _clock(self, section: str) -> Iterator[None]:
        """Add the seconds spent in the block to `time/<section>`, in training."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.model.training:
                self._seconds[section] += time.perf_counter() - start

    def _record_time(self) -> None:
        """Record the seconds of each section of the rollout, and the generated tokens per second overall."""
        total = self._seconds.pop("total")
        rest = total - sum(self._seconds.values())
        self._record({f"time/{name}": seconds for name, seconds in {**self._seconds, "policy": rest}.items()})
        self._record({"tokens_per_second": self._generated_tokens / total})
        self._seconds.clear()
