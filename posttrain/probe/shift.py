"""Distribution shift of DPO: the policy's log-probabilities of the pairs' answers, compared with its own samples.

DPO only makes a chosen answer likelier than a rejected one. If both are far from the policy's own answers, these may
not change (docs/dpo.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from posttrain.config.schema import ProbeConfig
from posttrain.console import console
from posttrain.models import engines
from posttrain.models.generate import Generated, encode_answer, encode_prompts, generate, log_probs
from posttrain.models.random_state import measuring
from posttrain.probe.callback import Probe
from posttrain.probe.intervals import standard_error
from posttrain.training import sharding
from posttrain.training.metrics_log import NoTracker, append
from posttrain.training.progress import Phase

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

# A warning needs a gap above this: nats per token by which chosen answers are less likely than the policy's own.
THRESHOLD = 1.0
SEED = 0


@dataclass(frozen=True)
class Shift:
    """Mean log-probability per token, in nats, under the policy: of chosen, rejected and its own answers.

    `gap` is `own` - `chosen`, the mean over prompts, and `stderr` its standard error (0 for one prompt).
    """

    chosen: float
    rejected: float
    own: float
    gap: float
    stderr: float

    @property
    def is_far(self) -> bool:
        """Whether the gap is above `THRESHOLD` by more than two standard errors."""
        return self.gap - 2 * self.stderr > THRESHOLD

    def __str__(self) -> str:
        return (
            f"log-probability per token under the policy: chosen {self.chosen:.2f}, rejected {self.rejected:.2f}, "
            f"its own answers {self.own:.2f}"
        )


def measure(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    max_new_tokens: int = 64,
    batch_size: int = 32,
    samples: Mapping[tuple[int, ...], Generated] | None = None,
    sampler: Any = None,
) -> Shift:
    """Compare the pairs `rows` (prompt, chosen, rejected) with one sample each at temperature 1.

    `samples` are existing samples by prompt; `sampler` (by default `model`) draws the missing ones.

    Only the first `max_new_tokens` tokens of each of the three answers count, since later ones are easier to predict.
    Random numbers come from torch's global generator.
    """
    encoded = encode_prompts(tokenizer, rows)
    known, limit = dict(samples or {}), max_new_tokens
    missing = [prompt for prompt in encoded if tuple(prompt) not in known]
    passes = math.ceil(len(missing) / batch_size) * limit
    with Phase(f"pairs    {len(missing)} samples to compare with", passes) as phase:
        limits: dict[str, Any] = {"max_new_tokens": limit, "batch_size": batch_size, "step": phase.advance}
        drawn = generate(sampler or model, tokenizer, missing, **limits)
    known |= {tuple(d.prompt_ids): d for d in drawn}
    sequences = [(prompt, known[tuple(prompt)].ids) for prompt in encoded]
    for row in rows:
        for prompt, answer in encode_answer(tokenizer, row["prompt"], [row["chosen"], row["rejected"]], row=row):
            sequences.append((prompt, answer[:max_new_tokens]))
    # An answer may be without tokens, hence `max` below; its mean is then 0.
    with Phase(f"pairs    log-probabilities of {len(sequences)} answers", len(sequences)) as phase:
        totals = log_probs(model, sequences, tokenizer.pad_token_id, phase.advance)
    each = [total / max(len(answer), 1) for total, (_, answer) in zip(totals, sequences, strict=True)]
    own, pairs = each[: len(rows)], each[len(rows) :]
    chosen, rejected = pairs[::2], pairs[1::2]
    gaps = [a - b for a, b in zip(own, chosen, strict=True)]
    return Shift(fmean(chosen), fmean(rejected), fmean(own), fmean(gaps), standard_error(gaps) or 0.0)


class ShiftCheck(TrainerCallback):
    """Measures at the start of a training, not at a resume; logs `shift/*` at step 0 and prints what it means.

    `probe` runs before it; its samples are used for prompts that both measure.
    """

    def __init__(
        self,
        config: ProbeConfig,
        pairs: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        tracker: NoTracker,
        metrics_path: Path,
        probe: Probe | None = None,
        engine: str = "transformers",
    ):
        self.config = config
        self.engine = engine
        self.probe = probe
        self.rows = [pairs[i] for i in range(min(config.shift_prompts, len(pairs)))]
        self.tokenizer = tokenizer
        self.tracker = tracker
        self.metrics_path = metrics_path
        self.trainer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step > 0:
            return
        if state.is_world_process_zero or sharding.divides(self.trainer):
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            with measuring(self.trainer, SEED):
                samples = self.probe.first_samples if self.probe else None
                parts = (self.config.max_new_tokens, self.config.batch_size, samples)
                sampler = engines.of_model(self.engine, model, self.trainer)
                shift = measure(model, self.tokenizer, self.rows, *parts, sampler=sampler)
            metrics = {f"shift/{name}": getattr(shift, name) for name in ("chosen", "rejected", "own")}
            if state.is_world_process_zero:
                append(self.metrics_path, {"step": 0, **metrics})
                self.tracker.log(metrics, 0)
                message(shift)
        self.trainer.accelerator.wait_for_everyone()


def message(shift: Shift) -> None:
    console.print(f"[bold]pairs[/]    {shift}")
    if shift.is_far:
        console.print(
            f"[bold yellow]warning[/]    the chosen answers are {shift.gap:.1f} nats per token less likely than what "
            "the model says itself: DPO may rank the pairs and leave its own answers as they are. Sample on-policy "
            "pairs (recipes online_dpo_*, or job=sample sample.select=pairs), or do SFT on the "
            "chosen answers first (recipes sft_dpo_*): docs/dpo.md",
            soft_wrap=True,
        )
