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
from posttrain.tokens import ids as token_ids
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
            with self._apart():
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
            "probe/length": fmean(len(d["ids"]) for d in drawn),
            "probe/ended": fmean(d["ended"] for d in drawn),
        }
        kl = self._kl(model, drawn)
        if kl:
            metrics["probe/kl"] = fmean(kl)
            metrics["probe/kl_stderr"] = float(torch.tensor(kl).std() / len(kl) ** 0.5) if len(kl) > 1 else 0.0
        rows = self.greedy_rows or self.rows
        judged = self._generate(model, rows, do_sample=False) if self.greedy_rows else drawn
        completions = [d["text"] for d in judged]
        scores = self._scores(rows, judged, state)
        for name, values in scores.items():
            applicable = [v for v in values if v is not None]
            if applicable:
                metrics[f"probe/rewards/{name}"] = fmean(applicable)
        samples = [
            {
                "prompt": self._text(row["prompt"]),
                "completion": completion,
                **{name: values[i] for name, values in scores.items()},
            }
            for i, (row, completion) in enumerate(zip(rows, completions, strict=True))
        ]
        return metrics, samples

    def _generate(self, model: Any, rows: list[dict[str, Any]], do_sample: bool) -> list[dict[str, Any]]:
        """One completion per prompt: prompt ids, completion ids (EOS included), text, and whether EOS came."""
        eos = _eos_ids(model, self.tokenizer)
        encoded = [token_ids(self.tokenizer, row["prompt"], generation=True) for row in rows]
        drawn: list[dict[str, Any]] = [{} for _ in encoded]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        for start in range(0, len(order), self.config.batch_size):
            part = order[start : start + self.config.batch_size]
            batch = self.tokenizer.pad(
                {"input_ids": [encoded[i] for i in part]}, padding_side="left", return_tensors="pt"
            ).to(model.device)
            output = model.generate(
                **batch,
                do_sample=do_sample,
                temperature=1.0 if do_sample else None,
                top_p=1.0 if do_sample else None,
                top_k=0 if do_sample else None,
                max_new_tokens=self.config.max_new_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=list(eos),
            )
            for i, row in zip(part, output[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
                end = next((n + 1 for n, token in enumerate(row) if token in eos), None)
                ids = row[:end]
                text = self.tokenizer.decode(ids, skip_special_tokens=True)
                drawn[i] = {"prompt_ids": encoded[i], "ids": ids, "text": text, "ended": end is not None}
        return drawn

    def _kl(self, model: Any, drawn: list[dict[str, Any]]) -> list[float]:
        """Sequence KL of each sample; empty without a reference in memory (full fine-tuning by SFT, say)."""
        reference = self._reference(model)
        if reference is None:
            return []
        result = []
        order = sorted(drawn, key=lambda d: len(d["prompt_ids"]) + len(d["ids"]))
        # Logits of two models over the whole vocabulary: a few sequences at a time.
        for start in range(0, len(order), 4):
            part = order[start : start + 4]
            completion = max(len(d["ids"]) for d in part)
            # Aligned at the boundary of prompt and completion: both sides are padded.
            width = max(len(d["prompt_ids"]) for d in part)
            rows, masks = [], []
            for d in part:
                left, right = width - len(d["prompt_ids"]), completion - len(d["ids"])
                pad = self.tokenizer.pad_token_id
                rows.append([pad] * left + d["prompt_ids"] + d["ids"] + [pad] * right)
                masks.append([0] * left + [1] * (len(d["prompt_ids"]) + len(d["ids"])) + [0] * right)
            ids, mask = torch.tensor(rows, device=model.device), torch.tensor(masks, device=model.device)

            def logits(net: Any, ids: torch.Tensor, mask: torch.Tensor, n: int = completion) -> torch.Tensor:
                positions = (mask.cumsum(-1) - 1).clamp(min=0)
                out = net(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=n + 1)
                return out.logits[:, :-1]

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

    def _scores(
        self, rows: list[dict[str, Any]], judged: list[dict[str, Any]], state: Any
    ) -> dict[str, list[float | None]]:
        """Each reward's score of each completion; functions get what TRL's trainers give them."""
        if not self.rewards:
            return {}
        completions = [d["text"] for d in judged]
        columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
        prompts = [row["prompt"] for row in rows]
        conversational = not isinstance(prompts[0], str)
        given: list[Any] = (
            [[{"role": "assistant", "content": c}] for c in completions] if conversational else completions
        )
        return {
            name: list(
                function(
                    completions=given,
                    prompts=prompts,
                    prompt_ids=[d["prompt_ids"] for d in judged],
                    completion_ids=[d["ids"] for d in judged],
                    trainer_state=state,
                    **columns,
                )
            )
            for name, function in self.rewards.items()
        }

    def _text(self, prompt: Any) -> str:
        return prompt if isinstance(prompt, str) else "\n".join(f"{m['role']}: {m['content']}" for m in prompt)

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Evaluation mode and a random state of the probe's own; everything as before afterwards."""
        model = self.trainer.model
        training, accelerator = model.training, self.trainer.accelerator
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices), torch.no_grad(), accelerator.autocast():
            torch.manual_seed(SEED)
            model.eval()
            try:
                yield
            finally:
                model.train(training)


def _eos_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every token at which generation stops."""
    ids = model.generation_config.eos_token_id
    found = set(ids if isinstance(ids, list) else [ids]) | {tokenizer.eos_token_id}
    return found - {None}
