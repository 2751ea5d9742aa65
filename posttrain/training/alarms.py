"""Detection of alarms in a run's metrics, each as a sentence with the number and the fix.

Nothing here knows torch. `AlarmDetector` reads the rows of `metrics.jsonl` one by one; `alarm_callback.py` acts on
what it finds.
docs/probe.md has the conditions and their thresholds.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import NormalDist, median
from typing import Any

from posttrain.config.alarms import NAMES, AlarmsConfig, setting

# Gradient norms that must be known before one is called unusual, those looked back at, and logs in a row that must be.
KNOWN, LOOKED_BACK, IN_A_ROW = 10, 1000, 3


@dataclass(frozen=True)
class Alarm:
    """One alarm: the number that raised it, at which step, and what is to be done."""

    name: str
    step: int
    value: float | None
    action: str
    message: str


# What a condition says of a row: None where the row does not bear on it, (number, None) where all is well.
Finding = tuple[float, str | None] | None


class AlarmDetector:
    """Reads a run's rows in order, and raises each alarm when its condition begins to hold."""

    def __init__(self, config: AlarmsConfig):
        self.config = config
        self.last: dict[str, float] = {}
        self.start: dict[str, float] = {}
        self.norms: deque[float] = deque(maxlen=LOOKED_BACK)
        self.unusual = 0
        self.first: dict[str, float] = {}
        self.proxy_at_best: dict[str, float | None] = {}
        self.measured = 0
        self.ringing: set[str] = set()
        self.lost = 0
        # With float16 an overflow is ordinary: the step is left out and the scale lowered.
        self.float16 = False

    def restore(self, rows: list[dict[str, Any]]) -> None:
        """Read what was logged before, raising nothing anew; but what would stop the run does so again."""
        for row in rows:
            self.check_row(row)
        self.ringing = {name for name in self.ringing if getattr(self.config, name).action != "stop"}

    def check_row(self, row: dict[str, Any]) -> list[Alarm]:
        """The alarms that the next row raises."""
        numbers = {k: v for k, v in row.items() if isinstance(v, (int, float))}
        self.last |= numbers
        self.first = numbers | self.first
        if "probe/length" in row:
            self.start = self.start or dict(row)
        raised = []
        for name in NAMES:
            action = getattr(self.config, name).action
            finding: Finding = getattr(self, f"_{name}")(row) if action != "off" else None
            if finding is None:
                continue
            value, message = finding
            if message is None:
                self.ringing.discard(name)
            elif name not in self.ringing:
                self.ringing.add(name)
                raised.append(Alarm(name, int(row["step"]), value if math.isfinite(value) else None, action, message))
        return raised

    def _non_finite(self, row: dict[str, Any]) -> Finding:
        found = {key: row[key] for key in ("loss", "reward") if key in row}
        broken = {key: value for key, value in found.items() if not _finite(value)}
        self.lost = self.lost + 1 if broken else 0
        if not found or 0 < self.lost < (IN_A_ROW if self.float16 else 1):
            return None
        for key, value in broken.items():
            return math.nan if value is None else value, (
                f"{key} is {value}, from which no run recovers; lower trainer.args.learning_rate, or look for a broken "
                "row or reward just before"
            )
        return 0.0, None

    def _gradient(self, row: dict[str, Any]) -> Finding:
        if (norm := row.get("grad_norm")) is None:
            return None
        usual = median(self.norms) if len(self.norms) >= KNOWN else None
        setting, message, patience = self.config.gradient, None, IN_A_ROW
        if not _finite(norm):
            message = f"grad_norm is {norm}; lower trainer.args.learning_rate"
        elif usual and norm > setting.above * usual:
            patience = 1
            message = (
                f"gradients explode: grad_norm is {norm:.3g}, {norm / usual:.3g} times its median so far; lower "
                "trainer.args.learning_rate or max_grad_norm, or look at the data of these steps"
            )
        elif usual is not None and norm <= setting.below * usual:
            message = (
                f"gradients vanish: grad_norm is {norm:.3g}, its median so far {usual:.3g}: the loss has nothing left "
                "to teach, or all answers to a prompt score alike; stop earlier, or take other data or another reward"
            )
        if math.isfinite(norm):
            self.norms.append(norm)
        self.unusual = self.unusual + 1 if message else 0
        return None if message and self.unusual < patience else (norm, message)

    def _kl(self, row: dict[str, Any]) -> Finding:
        # PPO also measures it on each rollout.
        values = [row[key] for key in ("probe/kl", "objective/kl") if key in row]
        budget = self.config.kl.above
        if budget is None or not values:
            return None
        value = max(values)
        return value, None if value <= budget else (
            f"KL to the reference is {value:.3g} nats per answer, beyond the budget of {budget:g}; raise "
            "trainer.args.beta where there is one, lower trainer.args.learning_rate, or train for fewer steps"
        )

    def _forgetting(self, row: dict[str, Any]) -> Finding:
        rises = {key.removeprefix("probe/forgetting/"): row[key] for key in row if key.startswith("probe/forgetting/")}
        if not rises:
            return None
        domain, value = max(rises.items(), key=lambda item: item[1])
        return value, None if value <= self.config.forgetting.above else (
            f"it forgets: texts of domain {domain} cost {value:.3g} nats per token more than at the start; lower "
            "trainer.args.learning_rate or peft.lora.r, train for fewer steps, or mix in data of that kind"
        )

    def _collapse(self, row: dict[str, Any]) -> Finding:
        shares = {
            key: row[key] / self.start[key]
            for key in ("probe/entropy", "probe/distinct_2")
            if key in row and self.start.get(key)
        }
        if not shares:
            return None
        key, value = min(shares.items(), key=lambda item: item[1])
        return value, None if value >= self.config.collapse.below else (
            f"mode collapse: {key} has fallen to {row[key]:.3g}, {value:.0%} of the start; raise "
            "trainer.args.beta where there is one, lower trainer.args.learning_rate, or see in samples.jsonl "
            "whether one answer fits all"
        )

    def _length(self, row: dict[str, Any]) -> Finding:
        if "probe/length" not in row or not self.start.get("probe/length"):
            return None
        setting, growth = self.config.length, row["probe/length"] / self.start["probe/length"]
        ended, before = row.get("probe/ended"), self.start.get("probe/ended")
        # Where all are cut at the limit, they are equally long and nothing can be explained by their length.
        if growth >= setting.growth and ended is not None and before and ended < before / 2:
            return ended, (
                f"answers run on: they are {growth:.1f} times as long as at the start, and {ended:.0%} of them end by "
                f"themselves, {before:.0%} at the start; ask for an end (trainer.args.missing_eos_penalty in PPO) or "
                "for brevity in the reward, or raise probe.max_new_tokens where it is what cuts them"
            )
        r = row.get("probe/length_correlation", 0.0)
        value = r * r if r > 0 else 0.0
        return value, None if value <= setting.above or growth < setting.growth else (
            f"length explains the reward: R² {value:.2f}, and answers are {growth:.1f} times as long as at the start; "
            "take a reward that does not grow with length, or add one that asks for brevity"
        )

    def _sampling(self, row: dict[str, Any]) -> Finding:
        # Logged where another engine samples (vLLM), with its own weights, precision and kernels.
        if (value := row.get("sampling/sampling_logp_difference/mean")) is None:
            return None
        most = self.config.sampling.above
        if math.isfinite(value) and value <= most:
            return value, None
        return value, (
            "completions come from another distribution than is trained: their log-probabilities differ by "
            f"{value:.3g} nats per token (alarms.sampling.above={most:g}); keep "
            "trainer.args.vllm_importance_sampling_correction=true, sample in the precision that is trained in, or "
            "look whether the engine gets the new weights"
        )

    def _over_optimisation(self, row: dict[str, Any]) -> Finding:
        drops = {k.removeprefix("probe/gold_drop/"): row[k] for k in row if k.startswith("probe/gold_drop/")}
        if not drops:
            return None
        self.measured += 1
        own = self.config.over_optimisation.proxy
        metric = next((m for m in ((own,) if own else ("probe/reward", "rewards/margins")) if m in self.last), "")
        proxy, worst = self.last.get(metric), (0.0, "")
        for name, drop in drops.items():
            if drop == 0:
                self.proxy_at_best[name] = proxy
            elif proxy is not None and name in self.proxy_at_best:
                # Before the first step no trainer logs: a proxy that is no gold reward began where it was first logged.
                best = self.proxy_at_best[name]
                if proxy > (self.first[metric] if best is None else best):
                    stderr = row.get(f"probe/gold_drop_stderr/{name}")
                    worst = max(worst, (0.0 if stderr is None else drop / stderr if stderr else math.inf, name))
        if proxy is None:
            return None
        errors, name = worst
        needed = corrected_threshold(self.config.over_optimisation.above, self.measured)
        return errors, None if errors <= needed else (
            f"over-optimisation: {metric} has risen to {proxy:.3g} while the gold reward {name} has fallen by "
            f"{drops[name]:.3g} since its best ({errors:.1f} standard errors; chance among {self.measured} "
            f"measurements seldom gives {needed:.1f}); stop at the best, raise trainer.args.beta where there is one, "
            "or train the reward on more comparisons"
        )


def _finite(value: Any) -> bool:
    """A reward that no function gave is None, or NaN once it has been averaged."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def corrected_threshold(errors: float, measured: int) -> float:
    """Standard errors that one fall among `measured` measurements must have to be as unlikely as `errors` among two.

    The best is the luckiest of them, and each later one is held against it: Bonferroni's correction over the pairs.
    """
    normal, pairs = NormalDist(), max(measured * (measured - 1) // 2, 1)
    # The lower tail, which keeps its digits where it is small.
    return max(errors, -normal.inv_cdf(max(normal.cdf(-errors) / pairs, 1e-300)))


def stopped_run_message(record: dict[str, Any] | None, config: AlarmsConfig) -> str | None:
    """What to say when a run is called again that an alarm has stopped, and that alarm is still set as it was."""
    if record is None or record.get("status") != "stopped":
        return None
    stopped = record["stopped"]
    if stopped["setting"] != setting(config, stopped["alarm"]):
        return None
    return stop_message(stopped)


def stop_message(stopped: dict[str, Any]) -> str:
    name, kept = stopped["alarm"], stopped["checkpoint"]
    return (
        f"alarms.{name}: stopped at step {stopped['step']}: {stopped['message']}. "
        + (f"Kept: {kept}. " if kept else "No checkpoint was saved. ")
        + f"To continue, use the same command with alarms.{name}.action=warn, or another threshold"
    )
