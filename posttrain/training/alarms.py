"""Detection of alarms in a run's metrics, each as a sentence with the number and the fix.

Nothing here knows torch. `AlarmDetector` reads the rows of `metrics.jsonl` one by one; `alarm_callback.py` and
`raised_alarms.py` act on its alarms. Loss and gradients are judged here, measurements in `measured_alarms.py`.
docs/probe.md has the conditions and their thresholds.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from posttrain.config.alarms import NAMES, AlarmsConfig, setting

# The beginnings of the metrics that `measured_alarms` judges.
MEASURED = ("probe/", "objective/kl", "sampling/")
# Gradient norms needed before one can be unusual; norms in the median; unusual logs in a row that raise the alarm.
KNOWN, LOOKED_BACK, IN_A_ROW = 10, 1000, 3


@dataclass(frozen=True)
class Alarm:
    """One alarm: the number that raised it, at which step, and what is to be done."""

    name: str
    step: int
    value: float | None
    action: str
    message: str


# The result of a condition for a row: None without the metric, (number, None) if all is well, (number, message) if not.
Finding = tuple[float, str | None] | None


class AlarmDetector:
    """Reads a run's rows in order, and raises an alarm when its condition starts to hold."""

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
        # With float16 an overflow is normal: the step is skipped and the loss scale lowered.
        self.float16 = False

    def restore(self, rows: list[dict[str, Any]]) -> None:
        """Read earlier rows without raising their alarms again, except for an alarm that stops the run."""
        for row in rows:
            self.check_row(row)
        self.ringing = {name for name in self.ringing if getattr(self.config, name).action != "stop"}

    def check_row(self, row: dict[str, Any]) -> list[Alarm]:
        """The alarms that the next row raises."""
        numbers = {k: v for k, v in row.items() if isinstance(v, (int, float))}
        self.last |= numbers
        self.first = numbers | self.first
        if "probe/length" in row and row["step"] == 0:
            self.start = dict(row)
        raised = []
        conditions: dict[str, Callable[[dict[str, Any]], Finding]]
        conditions = {"non_finite": self._non_finite, "gradient": self._gradient}
        if any(key.startswith(MEASURED) for key in row):
            from posttrain.training import measured_alarms

            conditions |= {name: partial(judge, self) for name, judge in measured_alarms.CONDITIONS.items()}
        for name in NAMES:
            action = getattr(self.config, name).action
            if name not in conditions or action == "off" or (finding := conditions[name](row)) is None:
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
        unrewarded = broken == {"reward": None}
        if not found or 0 < self.lost < (IN_A_ROW if self.float16 or unrewarded else 1):
            return None
        for key, value in broken.items():
            if unrewarded:
                return self.lost, f"no completion has had a reward in the last {self.lost} logs; look at the rewards"
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
        elif usual and norm <= setting.below * usual:
            message = (
                f"gradients vanish: grad_norm is {norm:.3g}, its median so far {usual:.3g}: the loss has nothing left "
                "to teach, or all answers to a prompt score alike; stop earlier, or take other data or another reward"
            )
        if math.isfinite(norm):
            self.norms.append(norm)
        self.unusual = self.unusual + 1 if message else 0
        return None if message and self.unusual < patience else (norm, message)


def _finite(value: Any) -> bool:
    """Whether a value is a finite number; a reward that no function gave is None, or NaN after averaging."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def stopped_run_message(record: dict[str, Any] | None, config: AlarmsConfig) -> str | None:
    """The message for a run that an alarm has stopped, and that is started again with the same setting of it."""
    if record is None or record.get("status") != "stopped":
        return None
    stopped = record["stopped"]
    return stop_message(stopped) if stopped["setting"] == setting(config, stopped["alarm"]) else None


def stop_message(stopped: dict[str, Any]) -> str:
    name, kept = stopped["alarm"], stopped["checkpoint"]
    return (
        f"alarms.{name}: stopped at step {stopped['step']}: {stopped['message']}. "
        + (f"Kept: {kept}. " if kept else "No checkpoint was saved. ")
        + f"To continue, use the same command with alarms.{name}.action=warn, or another threshold"
    )
