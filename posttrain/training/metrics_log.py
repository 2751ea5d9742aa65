"""`metrics.jsonl`, which every run writes, and the tracker of a run that has no other (`tracking=none`)."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback


class NoTracker:
    """`tracking=none`, and the interface of every tracker (`posttrain.training.tracking`)."""

    # The value for Transformers' `report_to`, and where a person finds the metrics.
    report_to = "none"
    where = "metrics.jsonl"

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Send scalars of optimizer step `step`."""

    def table(self, name: str, rows: list[dict[str, Any]], step: int) -> None:
        """Send a table of samples, one row per completion."""

    def alert(self, title: str, text: str) -> None:
        """Send a message to the owner of the run."""

    def isolate_callback(self, trainer: Any) -> None:
        """Keep an error in Transformers' callback of the backend from ending the training."""

    def finish(self) -> None:
        """End the run, so that the next job of a sweep gets one of its own."""


class Metrics(TrainerCallback):
    """First in the callback chain: adds metrics to a logged point, then writes it to `metrics.jsonl`.

    DPO and KTO log `rewards/chosen` = beta * log(policy / reference) (Rafailov et al. 2023, eq. 5). Divided by beta
    it is the log-ratio in nats per sequence, comparable across betas: `logratio/chosen`, `logratio/rejected`.
    """

    def __init__(self, path: Path, beta: float | None):
        self.path = path
        self.beta = beta

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not logs:
            return
        if self.beta:
            for key in [k for k in logs if k.removeprefix("eval_") in ("rewards/chosen", "rewards/rejected")]:
                logs[key.replace("rewards/", "logratio/")] = logs[key] / self.beta
        if state.is_world_process_zero:
            append(self.path, {"step": state.global_step, **logs})


def append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, default=float) + "\n")
