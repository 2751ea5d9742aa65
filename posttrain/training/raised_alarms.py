"""Raised alarms: they are printed, sent to the tracker, and stored in `metrics.jsonl` and `run.json`."""

from dataclasses import asdict
from typing import Any

from rich.markup import escape

from posttrain.config.alarms import AlarmsConfig, setting
from posttrain.console import console, main_process
from posttrain.runs.directory import RunDirectory
from posttrain.training.alarms import Alarm
from posttrain.training.metrics_log import NoTracker, append


def announce(alarm: Alarm, directory: RunDirectory, tracker: NoTracker) -> dict[str, Any]:
    """Print an alarm, log it, and send it to the tracker; returns its entry for `run.json`."""
    colour = "red" if alarm.action == "stop" else "yellow"
    console.print(
        f"[bold {colour}]alarm[/]    step {alarm.step}, {alarm.name}: {escape(alarm.message)}", soft_wrap=True
    )
    found = {"name": alarm.name, "step": alarm.step, "value": alarm.value, "action": alarm.action}
    found["message"] = alarm.message
    append(directory.metrics, {"step": alarm.step, "alarm": found})
    if alarm.value is not None:
        tracker.log({f"alarm/{alarm.name}": alarm.value}, alarm.step)
    if alarm.action in ("alert", "stop"):
        tracker.alert(f"{directory.name}: {alarm.name}", alarm.message)
    return found


def write_alarms(raised: list[dict[str, Any]], directory: RunDirectory) -> None:
    """Write the entries of all raised alarms into `run.json`."""
    directory.write({**(directory.record() or {}), "alarms": raised})


def record_stop(stopped: Alarm, config: AlarmsConfig, directory: RunDirectory) -> dict[str, Any]:
    """Write the alarm that stopped the run into `run.json`; returns that entry."""
    last = directory.last_checkpoint()
    entry = {
        **{k: v for k, v in asdict(stopped).items() if k not in ("name", "action")},
        "alarm": stopped.name,
        "setting": setting(config, stopped.name),
        "checkpoint": str(last.relative_to(directory.path)) if last else None,
    }
    if main_process():
        directory.write({**(directory.record() or {}), "status": "stopped", "stopped": entry})
    return entry
