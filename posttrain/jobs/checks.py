"""What the config must hold for job=sample, job=evaluate and job=doctor; nothing heavy is imported."""

from __future__ import annotations

import difflib

from posttrain.config import DoctorConfig, EvaluateConfig, Run, SampleConfig
from posttrain.trainers import KINDS

SELECT = ("all", "best", "top", "threshold", "pairs")
SPLITS = ("train", "eval")
FAIL_ON = ("error", "warning", "never")


def check(run: Run) -> list[str]:
    """Everything wrong with the settings of the job."""
    if run.job == "sample":
        return _sample(run.sample, bool(run.reward))
    if run.job == "doctor":
        return _doctor(run.doctor)
    return _evaluate(run.evaluate, run) if run.job == "evaluate" else []


def choice(key: str, value: object, allowed: tuple[str, ...]) -> str | None:
    """What is wrong with a value that must be one of `allowed`."""
    if value in allowed:
        return None
    near = difflib.get_close_matches(str(value), allowed, n=1)
    return f"{key}={value}: " + (f"did you mean {near[0]}? " if near else "") + f"choose from {', '.join(allowed)}"


def least(values: dict[str, tuple[float | None, float]]) -> list[str]:
    """A message for each value below its least."""
    below = {key: low for key, (value, low) in values.items() if value is not None and value < low}
    return [f"{key}={values[key][0]}: expected at least {low}" for key, low in below.items()]


def _sample(sample: SampleConfig, scored: bool) -> list[str]:
    errors = [choice("sample.select", sample.select, SELECT), choice("sample.split", sample.split, SPLITS)]
    several = sample.select in ("best", "pairs")
    if several and sample.n < 2:
        errors.append(f"sample.n={sample.n}: sample.select={sample.select} compares completions; set at least 2")
    elif sample.n < 1:
        errors.append(f"sample.n={sample.n}: expected at least 1")
    if sample.select in SELECT and sample.select != "all" and not scored:
        errors.append(
            f"sample.select={sample.select}: needs scores; choose reward=NAME, +reward.NAME.function=..., or "
            "+reward.NAME.model=RUN, or sample.select=all"
        )
    if sample.select == "threshold" and sample.threshold is None:
        errors.append("sample.threshold: required by sample.select=threshold; set the least score that is kept")
    if sample.select != "threshold" and sample.threshold is not None:
        errors.append(f"sample.threshold={sample.threshold:g}: only read by sample.select=threshold; set that, or null")
    if not 0 < sample.fraction <= 1:
        errors.append(f"sample.fraction={sample.fraction:g}: expected a share above 0, at most 1")
    if not 0 < sample.top_p <= 1:
        errors.append(f"sample.top_p={sample.top_p:g}: expected a share above 0, at most 1")
    if sample.temperature <= 0:
        errors.append(f"sample.temperature={sample.temperature:g}: expected above 0; for greedy completions take 0.01")
    errors += least(
        {
            "sample.margin": (sample.margin, 0),
            "sample.prompts": (sample.prompts, 1),
            "sample.max_new_tokens": (sample.max_new_tokens, 1),
            "sample.batch_size": (sample.batch_size, 1),
            "sample.seed": (sample.seed, 0),
        }
    )
    return [error for error in errors if error]


def _evaluate(evaluate: EvaluateConfig, run: Run) -> list[str]:
    errors = []
    online = run.trainer.kind in KINDS and KINDS[run.trainer.kind].online
    if online and not (run.reward or run.probe.rewards):
        errors.append(f"reward: job=evaluate of {run.trainer.kind} needs one; choose reward=NAME, or set probe.rewards")
    if online and not (run.probe.prompts or run.probe.greedy_prompts):
        errors.append("probe.prompts=0: nothing to evaluate; set it, or probe.greedy_prompts")
    for name in run.reward.keys() & run.probe.rewards.keys():
        if (one := run.reward[name]) != (other := run.probe.rewards[name]) and (one.function, one.model) != (
            other.function,
            other.model,
        ):
            errors.append(f"probe.rewards.{name}: is not reward.{name}; give it another name")
    if not 0 < evaluate.confidence < 1:
        errors.append(f"evaluate.confidence={evaluate.confidence:g}: expected between 0 and 1, such as 0.95")
    if evaluate.resamples < 100:
        errors.append(f"evaluate.resamples={evaluate.resamples}: expected at least 100; fewer make no interval")
    return errors


def _doctor(doctor: DoctorConfig) -> list[str]:
    errors = [choice("doctor.fail_on", doctor.fail_on, FAIL_ON)]
    for name in ("near", "tolerance", "stop", "length_accuracy", "noise_rate", "other_language", "cluster"):
        if not 0 <= (share := getattr(doctor, name)) <= 1:
            errors.append(f"doctor.{name}={share:g}: expected a share between 0 and 1")
    errors += least(
        {
            "doctor.sample": (doctor.sample, 1),
            "doctor.noise_rows": (doctor.noise_rows, 1),
            "doctor.examples": (doctor.examples, 0),
        }
    )
    return [error for error in errors if error]
