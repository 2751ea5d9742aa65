"""The callbacks of a training that sample from its policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from posttrain.config import trainers
from posttrain.config.schema import Run
from posttrain.data.loading import Data
from posttrain.runs.directory import RunDirectory
from posttrain.training.metrics_log import NoTracker

if TYPE_CHECKING:
    from posttrain.probe.texts import ProbeTexts
    from posttrain.training.alarm_callback import Alarms


def callbacks(
    run: Run,
    data: Data,
    texts: ProbeTexts | None,
    tokenizer: Any,
    directory: RunDirectory,
    tracker: NoTracker,
    functions: dict[str, Any],
    alarms: Alarms,
) -> list[Any]:
    """The probe if there are `texts`, and for DPO the check of its pairs; `functions` are the run's rewards."""
    kind = trainers.of(run.trainer.kind)
    checks_pairs = kind.is_a("DPOTrainer") and bool(run.probe.shift_prompts)
    measures: list[Any] = []
    if texts is not None:
        from posttrain.probe.callback import Probe
        from posttrain.probe.scores import probe_rewards

        rewards = probe_rewards(run.reward, run.probe, functions, kind.takes_rewards)
        files = (directory.metrics, directory.samples)
        measures.append(Probe(run.probe, data.prompts, tokenizer, rewards, texts, tracker, alarms, *files, run.engine))
    if checks_pairs:
        from posttrain.probe.shift import ShiftCheck

        # Held-out pairs from another path say nothing about the training pairs.
        pairs = data.eval if data.eval is not None and run.data.eval_path is None else data.first
        places = (tracker, directory.metrics, measures[0] if measures else None, run.engine)
        measures.append(ShiftCheck(run.probe, pairs, tokenizer, *places))
    return measures
