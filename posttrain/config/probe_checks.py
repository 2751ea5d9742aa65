"""Checks of the probe's rewards and of the alarms; imports nothing heavy."""

from collections.abc import Iterator
from dataclasses import replace

from posttrain.config import trainers
from posttrain.config.alarms import NAMES
from posttrain.config.schema import Run

ACTIONS = ("off", "warn", "alert", "stop")
# What samples.jsonl says of a completion besides its rewards.
SAMPLE_FIELDS = ("step", "prompt", "completion")
# Alarms that only the probe feeds.
NEED_PROBE = ("kl", "forgetting", "collapse", "length", "over_optimisation")


def check(run: Run) -> list[str]:
    """Everything wrong with the settings of the probe and of the alarms."""
    return [*_rewards(run), *(_alarms(run) if run.job == "train" else ())]


def _rewards(run: Run) -> Iterator[str]:
    config = run.probe
    for path in ("reward", "probe.rewards") if run.job == "train" else ():
        for name in filter(run.rewards[path].__contains__, SAMPLE_FIELDS):
            yield f"{path}.{name}: samples.jsonl has its own {name!r}; give the reward another name"
    for name, entry in config.rewards.items():
        if name in run.reward and replace(entry, weight=1.0) != replace(run.reward[name], weight=1.0):
            yield f"probe.rewards.{name}: is not reward.{name}; give it another name"
    # job=sample trains nothing and has no probe.
    for name, entry in config.gold.items() if run.job != "sample" else ():
        gold = (entry.function, entry.model, entry.grader, entry.args)
        same = [n for n, e in run.reward.items() if (e.function, e.model, e.grader, e.args) == gold]
        if name in run.reward or same:
            yield f"probe.gold.{name}: training sees reward.{(same or [name])[0]}; gold must be another reward"
        if name in config.rewards:
            yield f"probe.gold.{name}: probe.rewards.{name} is there too; give one of them another name"
    known = [*run.reward, *config.rewards, *config.gold]
    if config.win_by is not None and config.win_by not in known:
        yield f"probe.win_by={config.win_by}: no such reward; there are {', '.join(known) or 'none'}"


def _alarms(run: Run) -> Iterator[str]:
    """Alarms with an unknown action, and those that stop or alert while nothing is measured that could raise them."""
    probe, kind = run.probe, trainers.find(run.trainer.kind)
    probed = not (kind and kind.scores) and probe.prompts and (probe.every or probe.during)
    start = None if probe.start else "probe.start=true"
    # Alarm -> the setting that it lacks besides the probe.
    lacking = {
        **dict.fromkeys(("collapse", "length"), start),
        "forgetting": start if probe.texts else "probe.texts=embedded:texts, or a file",
        "over_optimisation": None if probe.gold else "probe.gold.NAME.function or model, a reward not trained on",
    }
    for name in NAMES:
        action = getattr(run.alarms, name).action
        if action not in ACTIONS:
            yield f"alarms.{name}.action={action}: choose from {', '.join(ACTIONS)}"
        fed = probed or (name == "kl" and kind and kind.is_a("PPOTrainer"))  # PPO logs its KL
        if action == "stop" and name in NEED_PROBE and not fed:
            yield (
                f"alarms.{name}.action=stop: nothing is measured during training that could raise it; set probe.every "
                "and probe.prompts"
            )
        elif action in ("alert", "stop") and (lacks := lacking.get(name)):
            yield f"alarms.{name}.action={action}: nothing measures it; set {lacks}"
    if run.alarms.kl.action in ("alert", "stop") and run.alarms.kl.above is None:
        yield f"alarms.kl.action={run.alarms.kl.action}: needs a budget; set alarms.kl.above, in nats per answer"
