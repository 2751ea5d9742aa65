"""Rewards of the probe's completions, and their change since the start, prompt by prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import StatisticsError, correlation, fmean
from typing import TYPE_CHECKING, Any

from posttrain.config.schema import ProbeConfig, RewardConfig
from posttrain.models.generate import Generated
from posttrain.probe.heldout import wins
from posttrain.probe.intervals import interval, mean, standard_error
from posttrain.rewards import applies, resolve, score, total
from posttrain.runs.metrics import stderr_metric

if TYPE_CHECKING:
    from posttrain.rewards import RewardFunction

Scores = list[float | None]
CONFIDENCE, RESAMPLES = 0.95, 2000


@dataclass
class ProbeRewards:
    """Reward functions by name (gold ones as `gold/NAME`), and their entries in the config.

    `training`: the rewards that are trained on. `win_by`: the reward that decides which of two completions is better.
    """

    functions: dict[str, RewardFunction]
    entries: dict[str, RewardConfig]
    training: dict[str, RewardConfig]
    win_by: str | None = None
    # Scores of earlier measurements, by step and name.
    before: dict[int, dict[str, Scores]] = field(default_factory=dict)

    def restore(self, samples: Sequence[dict[str, Any]]) -> None:
        """Read earlier measurements from the rows of `samples.jsonl`."""
        for row in samples:
            known = self.before.setdefault(row["step"], {})
            for name in self.entries:
                known.setdefault(name, []).append(row.get(name))

    def measure(
        self, rows: list[dict[str, Any]], drawn: list[Generated], state: Any
    ) -> tuple[dict[str, float], dict[str, Scores]]:
        """The probe's metrics, and reward name -> the score of each completion."""
        found = score(self.functions, rows, drawn, state)
        scores = {name: [float(v) if applies(v) else None for v in values] for name, values in found.items()}
        environments = dict.fromkeys((name for d in drawn for name in d.scores), RewardConfig())
        scores |= {name: [d.scores.get(name) for d in drawn] for name in environments}
        metrics: dict[str, float] = {}
        for name, values in scores.items():
            metrics |= _mean(f"probe/{name}" if name.startswith("gold/") else f"probe/rewards/{name}", values)
        weights = {name: entry for name, entry in self.training.items() if name in scores} | environments
        totals = [total({name: scores[name][i] for name in weights}, weights) for i in range(len(drawn))]
        if weights:
            metrics |= _mean("probe/reward", totals)
        metrics |= length_explains(totals if weights else scores.get(self.win_by or "", []), [d.length for d in drawn])
        metrics |= self._change(scores, state.global_step)
        self.before[state.global_step] = scores
        return metrics, scores

    def _change(self, scores: dict[str, Scores], step: int) -> dict[str, float]:
        """Win rate against the start, and each gold reward's fall since its best measurement."""
        metrics = {}
        earlier = {s: found for s, found in self.before.items() if s < step}
        if self.win_by in scores and 0 in earlier and self.win_by in earlier[0]:
            sign = self._sign(self.win_by)
            rate = mean(wins(scores[self.win_by], earlier[0][self.win_by], sign), range(len(scores[self.win_by])))
            if rate.count:
                metrics["probe/win_rate"] = rate.value
                if (ends := interval(rate, CONFIDENCE, RESAMPLES)) is not None:
                    metrics["probe/win_rate_low"], metrics["probe/win_rate_high"] = ends
        for name in (name for name in scores if name.startswith("gold/")):
            drop, stderr = self._drop(name, scores[name], [found[name] for found in earlier.values() if name in found])
            metrics[f"probe/gold_drop/{name[5:]}"] = drop
            if stderr is not None:
                metrics[f"probe/gold_drop_stderr/{name[5:]}"] = stderr
        return metrics

    def _drop(self, name: str, now: Scores, earlier: list[Scores]) -> tuple[float, float | None]:
        """The fall of a score since the measurement with the best mean, paired over prompts, and its standard error."""
        measured = [scores for scores in (*earlier, now) if any(value is not None for value in scores)]
        sign = self._sign(name)
        best = max(measured, key=lambda scores: sign * _average([v for v in scores if v is not None]), default=now)
        pairs = zip(best, now, strict=True)
        # Equal scores have no fall, also where they are infinite.
        falls = [sign * (a - b) if a != b else 0.0 for a, b in pairs if a is not None and b is not None]
        if not falls or _average(falls) <= 0:
            return 0.0, 0.0
        return _average(falls), standard_error(falls)

    def _sign(self, name: str) -> float:
        return math.copysign(1.0, self.entries[name].weight)


def probe_rewards(
    trained: dict[str, RewardConfig], config: ProbeConfig, functions: dict[str, RewardFunction], online: bool
) -> ProbeRewards:
    """The run's own rewards (`trained`, with their `functions`), those of the probe, and the gold ones.

    Only an `online` trainer trains on the run's own rewards. A name in both is one reward, by `probe_checks`.
    """
    training = trained if online else {}
    own = {name: entry for name, entry in config.rewards.items() if name not in training}
    gold = {f"gold/{name}": entry for name, entry in config.gold.items()}
    win_by = config.win_by or next(iter((*config.gold, *config.rewards, *trained)), None)
    return ProbeRewards(
        functions={**functions, **resolve({**own, **gold})},
        entries={**trained, **config.rewards, **gold},
        training=training,
        win_by=f"gold/{win_by}" if win_by in config.gold else win_by,
    )


def length_explains(scores: Scores, lengths: Sequence[int]) -> dict[str, float]:
    """Pearson's correlation of finite scores and lengths in tokens; nothing where either is constant."""
    found = [
        (value, n) for value, n in zip(scores, lengths, strict=False) if value is not None and math.isfinite(value)
    ]
    try:
        return {"probe/length_correlation": correlation([value for value, _ in found], [n for _, n in found])}
    except StatisticsError:  # fewer than two, or constant
        return {}


def _mean(name: str, values: Scores) -> dict[str, float]:
    applicable = [value for value in values if value is not None]
    if not applicable:
        return {}
    error = standard_error(applicable)
    return {name: _average(applicable), **({} if error is None else {stderr_metric(name): error})}


def _average(values: Sequence[float]) -> float:
    """The mean, where `fmean` fails too: infinite with an infinite value, NaN with both infinities."""
    return fmean(values) if all(map(math.isfinite, values)) else sum(values) / len(values)
