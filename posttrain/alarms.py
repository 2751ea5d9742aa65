"""Alarms: what a run's own numbers say is going wrong, each as a plain sentence with the number and the mend.

Nothing here knows torch. `Watch` reads the rows of `metrics.jsonl` one by one; posttrain.watch acts on what it finds.
docs/probe.md has the conditions and their thresholds.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict, dataclass, field, fields
from statistics import NormalDist, median
from typing import Any

ACTIONS = ("off", "warn", "alert", "stop")
# Gradient norms that must be known before one is called unusual, those looked back at, and logs in a row that must be.
KNOWN, LOOKED_BACK, IN_A_ROW = 10, 1000, 3


@dataclass
class Action:
    """What is done when an alarm rings: one of `ACTIONS`."""

    action: str = "warn"

    def __post_init__(self) -> None:
        if self.action == "False":  # what YAML makes of a bare off
            self.action = "off"


@dataclass
class NonFiniteAlarm(Action):
    """A loss, a reward or a weight that is not a number."""

    action: str = "stop"


@dataclass
class GradientAlarm(Action):
    """The gradient's norm, in multiples of the run's median so far."""

    above: float = 100.0
    below: float = 1e-4


@dataclass
class KLAlarm(Action):
    """A budget of KL to the reference, nats per answer; null is none."""

    above: float | None = None


@dataclass
class ForgettingAlarm(Action):
    """Rise of the negative log-likelihood of a domain's texts, nats per token."""

    above: float = 0.2


@dataclass
class CollapseAlarm(Action):
    """Entropy or distinct-2 as a share of what they were at the start."""

    below: float = 0.25


@dataclass
class LengthAlarm(Action):
    """R² of reward and length, where the answers have grown by the factor `growth` since the start.

    It also rings where answers that have grown so end half as often as they did.
    """

    above: float = 0.5
    growth: float = 1.5


@dataclass
class OverOptimisationAlarm(Action):
    """Standard errors by which a gold reward has fallen since its best, while `proxy` has risen.

    `proxy` is a metric: null is the training reward, or the margin of DPO and KTO. `above` is for two measurements:
    among more of them chance alone gives larger falls (`allowing`).
    """

    above: float = 2.0
    proxy: str | None = None


@dataclass
class AlarmsConfig:
    """Alarms by name; `action` is off, warn, alert (W&B sends a message too) or stop (with a checkpoint)."""

    non_finite: NonFiniteAlarm = field(default_factory=NonFiniteAlarm)
    gradient: GradientAlarm = field(default_factory=GradientAlarm)
    kl: KLAlarm = field(default_factory=KLAlarm)
    forgetting: ForgettingAlarm = field(default_factory=ForgettingAlarm)
    collapse: CollapseAlarm = field(default_factory=CollapseAlarm)
    length: LengthAlarm = field(default_factory=LengthAlarm)
    over_optimisation: OverOptimisationAlarm = field(default_factory=OverOptimisationAlarm)


NAMES = tuple(f.name for f in fields(AlarmsConfig))
# Alarms that only the probe feeds.
PROBED = ("kl", "forgetting", "collapse", "length", "over_optimisation")


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


class Watch:
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

    def recall(self, rows: list[dict[str, Any]]) -> None:
        """Read what was logged before, raising nothing anew; but what would stop the run does so again."""
        for row in rows:
            self.see(row)
        self.ringing = {name for name in self.ringing if getattr(self.config, name).action != "stop"}

    def see(self, row: dict[str, Any]) -> list[Alarm]:
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
        broken = {key: value for key, value in found.items() if not math.isfinite(value)}
        self.lost = self.lost + 1 if broken else 0
        if not found or 0 < self.lost < (IN_A_ROW if self.float16 else 1):
            return None
        for key, value in broken.items():
            return value, (
                f"{key} is {value}, from which no run recovers; lower trainer.args.learning_rate, or look for a broken "
                "row or reward just before"
            )
        return 0.0, None

    def _gradient(self, row: dict[str, Any]) -> Finding:
        if (norm := row.get("grad_norm")) is None:
            return None
        usual = median(self.norms) if len(self.norms) >= KNOWN else None
        setting, message, patience = self.config.gradient, None, IN_A_ROW
        if not math.isfinite(norm):
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
                # Before the first step no trainer logs: a proxy of its own began where it was first logged.
                best = self.proxy_at_best[name]
                if proxy > (self.first[metric] if best is None else best):
                    stderr = row.get(f"probe/gold_drop_stderr/{name}")
                    worst = max(worst, (0.0 if stderr is None else drop / stderr if stderr else math.inf, name))
        if proxy is None:
            return None
        errors, name = worst
        needed = allowing(self.config.over_optimisation.above, self.measured)
        return errors, None if errors <= needed else (
            f"over-optimisation: {metric} has risen to {proxy:.3g} while the gold reward {name} has fallen by "
            f"{drops[name]:.3g} since its best ({errors:.1f} standard errors; chance among {self.measured} "
            f"measurements seldom gives {needed:.1f}); stop at the best, raise trainer.args.beta where there is one, "
            "or train the reward on more comparisons"
        )


def allowing(errors: float, measured: int) -> float:
    """Standard errors that one fall among `measured` measurements must have to be as unlikely as `errors` among two.

    The best is the luckiest of them, and each later one is held against it: Bonferroni's correction over the pairs.
    """
    normal, pairs = NormalDist(), max(measured * (measured - 1) // 2, 1)
    # The lower tail, which keeps its digits where it is small.
    return max(errors, -normal.inv_cdf(max(normal.cdf(-errors) / pairs, 1e-300)))


def setting(config: AlarmsConfig, name: str) -> dict[str, Any]:
    return asdict(getattr(config, name))


def check(config: AlarmsConfig, probed: bool, kl_logged: bool) -> list[str]:
    """What is wrong with the settings; `probed`: the probe measures during training, `kl_logged`: the trainer does."""
    errors = []
    for name in NAMES:
        entry = getattr(config, name)
        if entry.action not in ACTIONS:
            errors.append(f"alarms.{name}.action={entry.action}: choose from {', '.join(ACTIONS)}")
        for key in ("above", "below", "growth"):
            if (value := getattr(entry, key, None)) is not None and not value > 0:
                errors.append(f"alarms.{name}.{key}={value:g}: expected above 0")
        fed = probed or (name == "kl" and kl_logged)
        if entry.action == "stop" and name in PROBED and not fed:
            errors.append(
                f"alarms.{name}.action=stop: nothing is measured during training that could raise it; set probe.every "
                "and probe.prompts"
            )
    if config.kl.action in ("alert", "stop") and config.kl.above is None:
        errors.append(f"alarms.kl.action={config.kl.action}: needs a budget; set alarms.kl.above, in nats per answer")
    return errors


def refusal(record: dict[str, Any] | None, config: AlarmsConfig) -> str | None:
    """What to say when a run is called again that an alarm has stopped, and that alarm is still set as it was."""
    if record is None or record.get("status") != "stopped":
        return None
    stopped = record["stopped"]
    if stopped["setting"] != setting(config, stopped["alarm"]):
        return None
    return told(stopped)


def told(stopped: dict[str, Any]) -> str:
    name, kept = stopped["alarm"], stopped["checkpoint"]
    return (
        f"alarms.{name}: stopped at step {stopped['step']}: {stopped['message']}. "
        + (f"Kept: {kept}. " if kept else "No checkpoint had been saved. ")
        + f"To go on all the same, the same command with alarms.{name}.action=warn, or another threshold"
    )
