"""Checks of the settings of sample, evaluate and doctor; imports nothing heavy."""

from collections.abc import Iterable, Iterator

from posttrain.config import trainers
from posttrain.config.checks import wrong_choice
from posttrain.config.schema import DoctorConfig, Run, SampleConfig

SELECT = ("all", "best", "top", "threshold", "pairs")
SPLITS = ("train", "eval")
FAIL_ON = ("error", "warning", "never")


def check(run: Run) -> Iterable[str]:
    """Everything wrong with the settings of the job."""
    if run.job == "sample":
        return _sample(run.sample, bool(run.reward))
    if run.job == "doctor":
        return _doctor(run.doctor)
    return _evaluate(run) if run.job == "evaluate" else []


def _sample(sample: SampleConfig, scored: bool) -> list[str]:
    errors = [wrong_choice("sample.select", sample.select, SELECT), wrong_choice("sample.split", sample.split, SPLITS)]
    several = sample.select in ("best", "pairs")
    if several and sample.n < 2:
        errors.append(f"sample.n={sample.n}: sample.select={sample.select} compares completions; set at least 2")
    if sample.select in SELECT and sample.select != "all" and not scored:
        errors.append(
            f"sample.select={sample.select}: needs scores; choose reward=NAME, +reward.NAME.function=..., or "
            "+reward.NAME.model=RUN, or sample.select=all"
        )
    if sample.select == "threshold" and sample.threshold is None:
        errors.append("sample.threshold: required by sample.select=threshold; set the least score that is kept")
    if sample.select != "threshold" and sample.threshold is not None:
        errors.append(f"sample.threshold={sample.threshold:g}: only read by sample.select=threshold; set that, or null")
    return [error for error in errors if error]


def _evaluate(run: Run) -> Iterator[str]:
    kind = trainers.find(run.trainer.kind)
    online = kind is not None and kind.samples_completions
    if online and not (run.reward or run.probe.judges):
        yield f"reward: job=evaluate of {run.trainer.kind} needs one; choose reward=NAME, or set probe.rewards"
    if online and not (run.probe.prompts or run.probe.greedy_prompts):
        yield "probe.prompts=0: nothing to evaluate; set it, or probe.greedy_prompts"


def _doctor(doctor: DoctorConfig) -> list[str]:
    return [wrong] if (wrong := wrong_choice("doctor.fail_on", doctor.fail_on, FAIL_ON)) else []
