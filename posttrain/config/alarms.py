"""Settings of the alarms: thresholds and actions."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass
class Action:
    """What is done when an alarm rings: off, warn, alert or stop."""

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
    """The largest KL to the reference, in nats per answer; null switches the alarm off."""

    above: float | None = None


@dataclass
class ForgettingAlarm(Action):
    """Rise of the negative log-likelihood of a domain's texts, nats per token."""

    above: float = 0.2


@dataclass
class CollapseAlarm(Action):
    """Entropy or distinct-2, as a share of its value at the start."""

    below: float = 0.25


@dataclass
class LengthAlarm(Action):
    """R² of reward and length, once the mean length has grown by the factor `growth` since the start.

    With that growth, it also rings when less than half as many answers end as at the start.
    """

    above: float = 0.5
    growth: float = 1.5


@dataclass
class OverOptimisationAlarm(Action):
    """The fall of a gold reward from its best value, in standard errors, while `proxy` has risen.

    `proxy` is a metric: null is the training reward, or the margin of DPO and KTO. `above` holds for two measurements;
    among more of them chance gives larger falls (`posttrain.training.measured_alarms.corrected_threshold`).
    """

    above: float = 2.0
    proxy: str | None = None


@dataclass
class SamplingAlarm(Action):
    """Mean difference per token, in nats, between the log-probabilities of the sampling engine and of the policy."""

    above: float = 0.1


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
    sampling: SamplingAlarm = field(default_factory=SamplingAlarm)


NAMES = tuple(f.name for f in fields(AlarmsConfig))


def setting(config: AlarmsConfig, name: str) -> dict[str, Any]:
    return asdict(getattr(config, name))
