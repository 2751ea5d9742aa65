"""What the config must hold for the jobs beside training, for probe and alarms; nothing heavy is imported."""

from __future__ import annotations

import difflib

from posttrain.config import alarms, trainers
from posttrain.config.schema import DoctorConfig, Run, SampleConfig

SELECT = ("all", "best", "top", "threshold", "pairs")
SPLITS = ("train", "eval")
FAIL_ON = ("error", "warning", "never")


def check(run: Run) -> list[str]:
    """Everything wrong with the settings of the job."""
    if run.job == "sample":
        return _sample(run.sample, bool(run.reward))
    if run.job == "doctor":
        return _doctor(run.doctor)
    return _evaluate(run) if run.job == "evaluate" else []


def probe(run: Run) -> list[str]:
    """Everything wrong with the settings of the probe and of the alarms."""
    config = run.probe
    errors: list[str] = []
    # job=sample trains nothing and has no probe.
    for name, entry in config.gold.items() if run.job != "sample" else ():
        same = [
            n
            for n, e in run.reward.items()
            if (e.function, e.model, e.args) == (entry.function, entry.model, entry.args)
        ]
        if name in run.reward or same:
            errors.append(f"probe.gold.{name}: training sees reward.{(same or [name])[0]}; gold must be another reward")
        if name in config.rewards:
            errors.append(f"probe.gold.{name}: probe.rewards.{name} is there too; give one of them another name")
    known = [*run.reward, *config.rewards, *config.gold]
    if config.win_by is not None and config.win_by not in known:
        errors.append(f"probe.win_by={config.win_by}: no such reward; there are {', '.join(known) or 'none'}")
    if run.job == "train":
        kind = trainers.find(run.trainer.kind)
        sampled = kind is None or not kind.scores
        during = sampled and bool(config.prompts) and bool(config.every or config.during)
        measured = {
            "forgetting": None if config.texts else "probe.texts=embedded:texts, or a file",
            "over_optimisation": None if config.gold else "probe.gold.NAME.function or model, a reward not trained on",
        }
        errors += alarms.check(run.alarms, during, kind is not None and kind.is_a("PPOTrainer"), measured)
    return errors


def wrong_choice(key: str, value: object, allowed: tuple[str, ...]) -> str | None:
    """What is wrong with a value that must be one of `allowed`."""
    if value in allowed:
        return None
    near = difflib.get_close_matches(str(value), allowed, n=1)
    return f"{key}={value}: " + (f"did you mean {near[0]}? " if near else "") + f"choose from {', '.join(allowed)}"


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


def _evaluate(run: Run) -> list[str]:
    errors = []
    kind = trainers.find(run.trainer.kind)
    online = kind is not None and kind.samples_completions
    if online and not (run.reward or run.probe.judges):
        errors.append(f"reward: job=evaluate of {run.trainer.kind} needs one; choose reward=NAME, or set probe.rewards")
    if online and not (run.probe.prompts or run.probe.greedy_prompts):
        errors.append("probe.prompts=0: nothing to evaluate; set it, or probe.greedy_prompts")
    for name in run.reward.keys() & run.probe.rewards.keys():
        one, other = run.reward[name], run.probe.rewards[name]
        if (one.function, one.model, one.grader) != (other.function, other.model, other.grader):
            errors.append(f"probe.rewards.{name}: is not reward.{name}; give it another name")
    return errors


def _doctor(doctor: DoctorConfig) -> list[str]:
    return [wrong] if (wrong := wrong_choice("doctor.fail_on", doctor.fail_on, FAIL_ON)) else []
