"""The one ruler: what the policy itself says on held-out prompts, and how far that is from the reference.

Training losses of SFT, DPO and GRPO cannot be compared; samples can. The probe draws them before and after training,
and at evaluations when asked, from its own random state, so that training is the same with it and without.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from posttrain.config import ProbeConfig
from posttrain.generate import Drawn, align, apart, completion_logits, encode_prompts, generate
from posttrain.rewards import score
from posttrain.tokens import as_text
from posttrain.tracking import Tracker, append

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from posttrain.rewards import RewardFunction

SEED = 0


@torch.no_grad()
def sequence_kl(policy: Any, reference: Any, ids: torch.Tensor, mask: torch.Tensor, completion: int) -> torch.Tensor:
    """KL(policy || reference) of each sequence in nats, from samples of the policy at temperature 1.

    `ids`, `mask`: (batch, prompt + completion), left-padded prompts; `completion`: number of completion positions;
    `policy`, `reference`: callables returning logits (batch, completion, vocabulary) for those positions. Returns
    (batch,). At each position of a sample the KL of the two next-token distributions is exact, and the sum over a
    sample's positions estimates the sequence KL without bias and with less variance than the sum of log-ratios
    (Amini et al. 2025, "Better Estimation of the KL Divergence Between Language Models", eq. 10).
    """
    log_p = policy(ids, mask).float().log_softmax(-1)
    log_q = reference(ids, mask).float().log_softmax(-1)
    per_token = (log_p.exp() * (log_p - log_q)).sum(-1)
    return (per_token * mask[:, -completion:]).sum(-1)


class Probe(TrainerCallback):
    """Samples on fixed held-out prompts; logs `probe/*` and keeps the completions in `samples.jsonl`."""

    def __init__(
        self,
        config: ProbeConfig,
        prompts: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        rewards: dict[str, RewardFunction],
        tracker: Tracker,
        metrics_path: Path,
        samples_path: Path,
    ):
        self.config = config
        self.rows = [prompts[i] for i in range(min(config.prompts, len(prompts)))]
        self.greedy_rows = [prompts[i] for i in range(min(config.greedy_prompts, len(prompts)))]
        self.tokenizer = tokenizer
        self.rewards = rewards
        self.tracker = tracker
        self.metrics_path = metrics_path
        self.samples_path = samples_path
        self.trainer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.measure(state)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.config.during and 0 < state.global_step < state.max_steps:
            self.measure(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            self.measure(state)

    def measure(self, state: Any) -> dict[str, float]:
        """Sample, score and log; returns the metrics (on the main process; the others wait)."""
        metrics: dict[str, float] = {}
        if state.is_world_process_zero:
            with apart(self.trainer, SEED):
                metrics, samples = self._run(state)
            append(self.metrics_path, {"step": state.global_step, **metrics})
            for sample in samples:
                append(self.samples_path, {"step": state.global_step, **sample})
            self.tracker.log(metrics, state.global_step)
            self.tracker.table("probe/samples", [{"step": state.global_step, **s} for s in samples], state.global_step)
        self.trainer.accelerator.wait_for_everyone()
        return metrics

    def _run(self, state: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        drawn = self._generate(model, self.rows, do_sample=True)
        metrics = {
            "probe/length": fmean(len(d.ids) for d in drawn),
            "probe/ended": fmean(d.ended for d in drawn),
        }
        kl = self._kl(model, drawn)
        if kl:
            metrics["probe/kl"] = fmean(kl)
            metrics["probe/kl_stderr"] = float(torch.tensor(kl).std() / len(kl) ** 0.5) if len(kl) > 1 else 0.0
        rows = self.greedy_rows or self.rows
        judged = self._generate(model, rows, do_sample=False) if self.greedy_rows else drawn
        completions = [d.text for d in judged]
        scores = score(self.rewards, rows, judged, state)
        for name, values in scores.items():
            applicable = [v for v in values if v is not None]
            if applicable:
                metrics[f"probe/rewards/{name}"] = fmean(applicable)
        samples = [
            {
                "prompt": as_text(row["prompt"]),
                "completion": completion,
                **{name: values[i] for name, values in scores.items()},
            }
            for i, (row, completion) in enumerate(zip(rows, completions, strict=True))
        ]
        return metrics, samples

    def _generate(self, model: Any, rows: list[dict[str, Any]], do_sample: bool) -> list[Drawn]:
        """One completion per prompt."""
        return generate(
            model,
            self.tokenizer,
            encode_prompts(self.tokenizer, rows),
            max_new_tokens=self.config.max_new_tokens,
            batch_size=self.config.batch_size,
            do_sample=do_sample,
        )

    def _kl(self, model: Any, drawn: list[Drawn]) -> list[float]:
        """Sequence KL of each sample; empty without a reference in memory (full fine-tuning by SFT, say)."""
        reference = self._reference(model)
        if reference is None:
            return []
        result = []
        order = sorted(drawn, key=lambda d: len(d.prompt_ids) + len(d.ids))
        # Logits of two models over the whole vocabulary: a few sequences at a time.
        for start in range(0, len(order), 4):
            part = order[start : start + 4]
            ids, mask, completion = align(
                [(d.prompt_ids, d.ids) for d in part], self.tokenizer.pad_token_id, model.device
            )

            def logits(net: Any, ids: torch.Tensor, mask: torch.Tensor, n: int = completion) -> torch.Tensor:
                return completion_logits(net, ids, mask, n)

            def policy(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
                return logits(model, ids, mask)

            def behind(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
                with reference() as net:
                    return logits(net, ids, mask)

            result += sequence_kl(policy, behind, ids, mask, completion).tolist()
        return result

    def _reference(self, model: Any) -> Any:
        """A context manager giving the reference model, or `None`: the frozen `ref` adapter, the base, or a copy."""
        from peft import PeftModel
        from trl.trainer.utils import use_adapter

        if isinstance(model, PeftModel):

            @contextmanager
            def adapter_off() -> Iterator[Any]:
                with use_adapter(model, "ref" if "ref" in model.peft_config else None):
                    yield model

            return adapter_off
        copy = getattr(self.trainer, "ref_model", None)
        return None if copy is None else lambda: nullcontext(copy)
