"""The probe as a callback of every trainer: its schedule, its log and its cost."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from posttrain.config.schema import ProbeConfig
from posttrain.console import print_plain
from posttrain.models import engines
from posttrain.models.generate import Generated, encode_prompts, generate
from posttrain.models.random_state import measuring
from posttrain.models.tokens import as_text
from posttrain.probe import distance, diversity, forgetting, safety
from posttrain.probe.intervals import standard_error
from posttrain.probe.scores import ProbeRewards, Scores
from posttrain.probe.texts import ProbeTexts
from posttrain.runs.metrics import read
from posttrain.training import rollouts, sharding
from posttrain.training.metrics_log import NoTracker, append
from posttrain.training.progress import Phase

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from posttrain.training.alarm_callback import Alarms

SEED = 0
# The probe's largest cost, as a share of the training's time without it.
MAX_SHARE = 0.05
# Shorter runs, in seconds, get no advice about the cost.
LONG_RUN_SECONDS = 600.0
# The step after which the cost of the whole run is estimated, with a warning if it will exceed MAX_SHARE.
FORECAST_STEPS = 10
# Prompts in the tracker's table, which is sent as a whole each time; samples.jsonl has all prompts.
TABLE_PROMPTS = 16


@dataclass
class Cost:
    """Seconds since this process began to train, at step `first`, and the probe's part of them."""

    began: float = field(default_factory=time.perf_counter)
    first: int = 0
    seconds: float = 0.0
    times: int = 0

    def add(self, seconds: float, step: int) -> dict[str, float]:
        self.seconds += seconds
        self.times += 1
        return {"probe/seconds": seconds, **({"probe/share": self.share} if step else {})}

    @property
    def trained(self) -> float:
        """Seconds of training without the probe."""
        return max(time.perf_counter() - self.began - self.seconds, 1e-9)

    @property
    def share(self) -> float:
        return self.seconds / self.trained

    def describe(self, config: ProbeConfig, step: int) -> str:
        """The cost as a sentence, with the fix if it exceeds `MAX_SHARE`."""
        measured = f"{self.times} measurement{'s' if self.times > 1 else ''}"
        seconds = f"{self.seconds:.{0 if self.seconds >= 10 else 1}f} s"
        text = f"{measured} took {seconds}, {self.share:.1%} of the training time"
        if self.share <= MAX_SHARE or self.trained < LONG_RUN_SECONDS:
            return text
        return f"{text}; {self._fix(config, self.trained, step - self.first)}"

    def expected(self, config: ProbeConfig, step: int, steps: int) -> str | None:
        """The expected cost of a long run, in words, after `step` of `steps` steps, if it will exceed `MAX_SHARE`.

        It is a lower bound: future evaluations, at which `config.during` measures, are not known.
        """
        if not self.times or step <= self.first:
            return None
        whole = self.trained / (step - self.first) * (steps - self.first)
        planned = self.times + sum(1 for at in range(step + 1, steps) if config.every and at % config.every == 0) + 1
        each = self.seconds / self.times
        share = planned * each / whole
        if share <= MAX_SHARE or whole < LONG_RUN_SECONDS:
            return None
        text = f"{planned} measurements of {each:.1f} s will be about {share:.0%} of the training time"
        return f"{text}; {self._fix(config, whole, steps - self.first)}"

    def _fix(self, config: ProbeConfig, trained: float, steps: int) -> str:
        """The setting that brings the cost below `MAX_SHARE`: fewer measurements, or smaller ones."""
        paid = int(MAX_SHARE * trained * self.times / self.seconds)
        if paid < 2:  # the start and the end
            return f"fewer probe.prompts or a smaller probe.max_new_tokens bring it below {MAX_SHARE:.0%}"
        every = "null" if paid == 2 else math.ceil(steps / (paid - 1))
        without = " probe.during=false" if config.during else ""
        return f"probe.every={every}{without} brings it below {MAX_SHARE:.0%}"


class Probe(TrainerCallback):
    """Samples on fixed held-out prompts; logs `probe/*` and keeps the completions in `samples.jsonl`.

    A resumed run reads its earlier measurements from `metrics_path` and `samples_path`.
    """

    def __init__(
        self,
        config: ProbeConfig,
        prompts: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        judge: ProbeRewards,
        probe_texts: ProbeTexts,
        tracker: NoTracker,
        alarms: Alarms,
        metrics_path: Path,
        samples_path: Path,
        engine: str = "transformers",
    ):
        self.config = config
        self.engine = engine
        self.rows = [prompts[i] for i in range(min(config.prompts, len(prompts)))]
        self.greedy_rows = [prompts[i] for i in range(min(config.greedy_prompts, len(prompts)))]
        self.tokenizer = tokenizer
        self.judge = judge
        self.probe_texts = probe_texts
        self.tracker = tracker
        self.alarms = alarms
        self.metrics_path = metrics_path
        self.samples_path = samples_path
        self.trainer: Any = None
        self.cost = Cost()
        self.start: dict[str, float] = {}
        # Samples from before the first step, by prompt.
        self.first_samples: dict[tuple[int, ...], Generated] = {}
        self.samples: list[dict[str, Any]] = []
        self.done: set[int] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.cost = Cost(first=state.global_step)
        self._restore()
        if state.global_step == 0 and self.config.start:
            self.measure(args, state, control)

    def at_step(self, args: Any, state: Any, control: Any) -> None:
        """Called at the end of each step, after its log."""
        if self.config.every and state.global_step % self.config.every == 0 and state.global_step < state.max_steps:
            self.measure(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        early = (
            state.global_step - self.cost.first == FORECAST_STEPS
            and state.max_steps - state.global_step > FORECAST_STEPS
        )
        if early and (forecast := self.cost.expected(self.config, state.global_step, state.max_steps)):
            print_plain(f"probe    {forecast}")

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.config.during and 0 < state.global_step < state.max_steps:
            self.measure(args, state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            self.measure(args, state, control)
        if self.cost.times:
            print_plain(f"probe    {self.cost.describe(self.config, state.global_step)}")

    def measure(self, args: Any, state: Any, control: Any) -> None:
        """Sample, score, log and raise alarms, once a step.

        The main process measures, and the others wait; with sharded weights, all processes make the same measurement.
        """
        if self.alarms.weights_not_finite():
            return  # the model is broken, so sampling would fail
        metrics: dict[str, float] = {}
        main = state.is_world_process_zero
        if (main or sharding.divides(self.trainer)) and state.global_step not in self.done:
            began = time.perf_counter()
            with measuring(self.trainer, SEED):
                metrics, samples = self._run(state)
            self.done.add(state.global_step)
            metrics |= self.cost.add(time.perf_counter() - began, state.global_step)
        if main and metrics:
            append(self.metrics_path, {"step": state.global_step, **metrics})
            for sample in samples:
                append(self.samples_path, sample)
            self.samples += samples
            self.tracker.log(metrics, state.global_step)
            self.tracker.table("probe/samples", _by_prompt(self.samples), state.global_step)
        self.trainer.accelerator.wait_for_everyone()
        self.alarms.check_row({"step": state.global_step, **metrics})

    def _restore(self) -> None:
        """Read the measurements from before a resume: forgetting and wins are measured against the start."""
        self.samples = read(self.samples_path)
        self.judge.restore(self.samples)
        for row in read(self.metrics_path):
            if "probe/length" in row:
                self.done.add(row["step"])
            if row["step"] == 0:
                self.start |= {k.removeprefix("probe/nll/"): v for k, v in row.items() if k.startswith("probe/nll/")}

    def _run(self, state: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        drawn = self._generate(model, self.rows, do_sample=True)
        if state.global_step == 0:
            self.first_samples = {tuple(d.prompt_ids): d for d in drawn}
        # Without EOS, which all completions that end have in common.
        tokens = [d.ids[:-1] if d.ended else d.ids for d in drawn]
        with Phase(f"probe    entropy and KL of {len(drawn)} sample{'s' * (len(drawn) > 1)}", len(drawn)) as phase:
            parts = (model, drawn, self.tokenizer.pad_token_id, phase.advance)
            entropy, kl = distance.measure_samples(self.trainer, *parts)
        metrics = {
            "probe/length": fmean(d.length for d in drawn),
            "probe/ended": fmean(d.ended for d in drawn),
            "probe/entropy": entropy,
            **diversity.measure(tokens, [d.text for d in drawn]),
        }
        if kl:
            metrics["probe/kl"] = fmean(kl)
            if (error := standard_error(kl)) is not None:
                metrics["probe/kl_stderr"] = error
        rows = self.greedy_rows or self.rows
        scored_samples = self._generate(model, rows, do_sample=False) if self.greedy_rows else drawn
        scored, scores = self.judge.measure(rows, scored_samples, state)
        metrics |= scored | self._forgetting(model, state.global_step) | self._refusals(model)
        return metrics, _samples(state.global_step, rows, scored_samples, scores)

    def _forgetting(self, model: Any, step: int) -> dict[str, float]:
        if not self.probe_texts.texts:
            return {}
        found = forgetting.nll(model, self.probe_texts.texts, self.tokenizer.pad_token_id)
        if step == 0:
            self.start = found
        return forgetting.measure(found, self.start)

    def _refusals(self, model: Any) -> dict[str, float]:
        found = {}
        for name, prompts in self.probe_texts.safety.items():
            drawn = self._generate(model, [{"prompt": prompt} for prompt in prompts], do_sample=False)
            found[f"probe/refusals/{name}"] = safety.refused([d.text for d in drawn])
        return found

    def _generate(self, model: Any, rows: list[dict[str, Any]], do_sample: bool) -> list[Generated]:
        """One completion per prompt."""
        limit, batches = self.config.max_new_tokens, math.ceil(len(rows) / self.config.batch_size)
        what = ("sample" if do_sample else "greedy answer") + "s" * (len(rows) > 1)
        if rollouts.needed(self.trainer):
            with Phase(f"probe    {len(rows)} {what}, with calls of tools", len(rows)) as phase:

                def drawn(part: list[Generated]) -> None:
                    self.trainer.check_signal()
                    phase.advance(len(part))

                return rollouts.draw(self.trainer, rows, self.config.batch_size, do_sample, drawn)
        with Phase(f"probe    {len(rows)} {what} of up to {limit} tokens", batches * limit) as phase:
            return generate(
                engines.of_model(self.engine, model, self.trainer),
                self.tokenizer,
                encode_prompts(self.tokenizer, rows, getattr(self.trainer.args, "chat_template_kwargs", None)),
                max_new_tokens=limit,
                batch_size=self.config.batch_size,
                do_sample=do_sample,
                progress=self.trainer.check_signal,
                step=phase.advance,
            )


def _samples(
    step: int, rows: list[dict[str, Any]], drawn: list[Generated], scores: dict[str, Scores]
) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "prompt": as_text(row["prompt"]),
            "completion": completion.text,
            **{name: values[i] for name, values in scores.items()},
        }
        for i, (row, completion) in enumerate(zip(rows, drawn, strict=True))
    ]


def _by_prompt(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The samples of the first prompts, sorted by prompt, and for each prompt by step."""
    places: dict[str, int] = {}
    for sample in samples:
        places.setdefault(sample["prompt"], len(places))
    kept = [sample for sample in samples if places[sample["prompt"]] < TABLE_PROMPTS]
    return sorted(kept, key=lambda sample: (places[sample["prompt"]], sample["step"]))
