"""`objective`: the number that a sweep optimises, or the numbers of a sweep that draws a front.

`METRIC` is its last value in a run. `METRIC at kl 5` is its best value over the logged points whose `probe/kl` is at
most 5 nats: what the run could give under that budget, had it been stopped there.
"""

import ast
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from posttrain.config import classes, hints, trainers
from posttrain.config.schema import Run
from posttrain.config.suggestions import did_you_mean
from posttrain.config.trainers import Kind
from posttrain.errors import PosttrainError

AT_KL = re.compile(r"(?P<metric>\S+)\s+at\s+(?:probe/)?kl\s*(?:<=|≤)?\s*(?P<budget>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)")
# What Transformers' Trainer logs, whatever the trainer.
OF_EVERY_TRAINER = (
    *("loss", "grad_norm", "learning_rate", "runtime", "samples_per_second", "steps_per_second", "total_flos"),
    *("train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second"),
)
# Metrics of the jobs that do not train; of a metric with slashes, the part before the first.
OF_JOBS = {
    "sample": "prompts completions kept ended length tokens_per_second score best_of_n kept_score rewards",
    "evaluate": "loss_per_token perplexity implicit_accuracy implicit_margin likelihood_accuracy likelihood_margin "
    "chosen_log_prob rejected_log_prob accuracy margin sampled greedy against difference",
}
SEE = "docs/tracking.md has those of each trainer"
LOGGED_BESIDE = ("judge/", "ensemble/", "shift/")  # beginnings of what our rewards, and DPO's shift, log
# The measurements of the probe (docs/probe.md) by the part behind `probe/`.
OF_PROBE = (
    *("kl", "kl_stderr", "reward", "reward_stderr", "rewards", "rewards_stderr", "gold", "gold_stderr", "gold_drop"),
    *("gold_drop_stderr", "win_rate", "win_rate_low", "win_rate_high", "length", "length_correlation", "ended"),
    *("entropy", "repetition", "distinct_1", "distinct_2", "self_bleu", "nll", "forgetting", "refusals", "seconds"),
    "share",
)
# Metrics of which less is better; of all others, more is taken to be better.
LOWER_IS_BETTER = ("loss", "perplexity", "nll", "forgetting", "repetition", "self_bleu", "kl", "gold_drop")


@dataclass(frozen=True)
class Objective:
    """One number: the metric, and the most KL in nats at which it counts."""

    text: str
    metric: str
    budget: float | None = None


def parse(objective: Any) -> list[Objective]:
    """The objectives that `objective` names, a text or a list; raises `PosttrainError` for what cannot be read."""
    if objective is None:
        return []
    several = objective if isinstance(objective, list) else [objective]
    if not several or not all(isinstance(text, str) and text.strip() for text in several):
        raise PosttrainError(f"objective={objective}: expected a metric, or a list of them, such as probe/rewards/NAME")
    return [_one(text.strip()) for text in several]


def _one(text: str) -> Objective:
    if " " not in text:
        return Objective(text, text)
    if not (match := AT_KL.fullmatch(text)):
        raise PosttrainError(
            f"objective={text}: expected METRIC, or METRIC at kl NUMBER, such as probe/gold/rm at kl 5"
        )
    return Objective(text, match["metric"], float(match["budget"]))


def check(objective: Any) -> list[str]:
    """What is wrong with the setting."""
    try:
        parse(objective)
    except PosttrainError as error:
        return [str(error)]
    return []


def unmeasured(run: Run) -> list[str]:
    """Errors for metrics in the config (objective, best model, an alarm's proxy) that its run will not measure."""
    best, proxy = run.trainer.args.get("metric_for_best_model"), run.alarms.over_optimisation.proxy
    named = [(f"objective={one.text}", one) for one in (parse(run.objective) if not check(run.objective) else [])]
    errors = []
    if isinstance(best, str):
        key = f"trainer.args.metric_for_best_model={best}"
        named.append((key, Objective(best, f"eval_{best.removeprefix('eval_')}")))
        if run.trainer.args.get("eval_strategy") == "no":
            errors.append(f"{key}: no checkpoint is evaluated with eval_strategy=no; set it to epoch or steps")
    if proxy is not None:
        named.append((f"alarms.over_optimisation.proxy={proxy}", Objective(proxy, proxy)))
    kind = trainers.of(run.trainer.kind)
    return errors + [f"{key}: {wrong}" for key, one in named if (wrong := _unmeasured(run, kind, one))]


def _unmeasured(run: Run, kind: Kind, one: Objective) -> str | None:
    probe, known = run.probe, OF_JOBS.get(run.job, "").split()
    if known:
        first = one.metric.partition("/")[0]
        ours = first in known or run.evaluate.tasks  # a benchmark's has the name of its task
        return None if ours else f"job={run.job} does not measure it; {hints.nearest(first, known)}"
    _, of_probe, measured = one.metric.partition("probe/")
    what, _, name = measured.partition("/")
    there = {"gold": probe.gold, "rewards": {**run.reward, **probe.rewards}}
    if (of_probe or one.budget is not None) and (kind.scores or not probe.prompts):
        fix = "a reward model writes no answers; choose eval_accuracy" if kind.scores else "set probe.prompts"
        return f"there is no probe in this run; {fix}"
    if not of_probe:
        return _unlogged(run, kind, one.metric)
    if what in there and name not in there[what]:
        named = [f"probe/{group}/{name}" for group in there for name in there[group]]
        return f"no such reward; there are {', '.join(named) or 'none'}"
    if what not in OF_PROBE:
        return f"the probe does not measure it; {did_you_mean(one.metric, (f'probe/{m}' for m in OF_PROBE), 1, SEE)}"
    if what in ("nll", "forgetting") and not probe.texts:
        return "needs texts; set probe.texts=embedded:texts, or a file"
    return None


def _unlogged(run: Run, kind: Kind, metric: str) -> str | None:
    """Why the trainer does not log `metric`; `None` where it does, or where code of the user's may do so."""
    args = run.trainer.args
    if metric.startswith("eval_") and args.get("eval_strategy") == "no" and args.get("eval_on_start") is False:
        return "nothing is evaluated with eval_strategy=no and eval_on_start=false; leave one of them out"
    own = [entry.function for entries in run.rewards.values() for entry in entries.values()]
    if run.trainer.has_objects or any(path and not path.startswith("posttrain.") for path in own):
        return None
    if (reward := re.fullmatch(r"(?:eval_)?rewards/([^/]+)/(?:mean|std)", metric)) and reward[1] not in run.reward:
        return f"no such reward; there are {', '.join(run.reward) or 'none'}"
    name, (texts, patterns) = metric.removeprefix("eval_"), _logged(kind.path)
    name = name.replace("logratio/", "rewards/", 1)
    if name in texts or name.startswith(LOGGED_BESIDE) or any(re.fullmatch(pattern, name) for pattern in patterns):
        return None
    known = [
        metric[: -len(name)] + text for text in (*OF_EVERY_TRAINER, *texts) if "/" in text or text in OF_EVERY_TRAINER
    ]
    return f"{kind.name} logs no such metric; {did_you_mean(metric, known, 1, SEE)}"


@cache
def _logged(path: str) -> tuple[frozenset[str], frozenset[str]]:
    """Possible metric names in the source of a trainer's class: literal texts, and patterns made from f-strings."""
    texts, patterns = set(OF_EVERY_TRAINER), set()
    source = classes.find(path)
    own = (one for one in source.lineage() if not one.module.startswith("transformers.")) if source else ()
    for tree in {one.module: one.tree for one in own}.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and re.fullmatch(r"\w+(/\w+)*", text := str(node.value)):
                texts.add(text)
            elif isinstance(node, ast.JoinedStr):
                parts = [re.escape(str(n.value)) if isinstance(n, ast.Constant) else "[^/]+" for n in node.values]
                if re.match(r"\w+/\S+$", "".join(parts)):
                    patterns.add("".join(parts))
    return frozenset(texts), frozenset(patterns)


def lower_is_better(metric: str) -> bool:
    """Whether less is better, by the metric's name. The name of a reward says nothing, so its weight decides."""
    if metric.startswith(("probe/rewards/", "probe/gold/")):
        return False
    return metric == "probe/refusals/harmless" or any(
        part.removeprefix("eval_") in LOWER_IS_BETTER for part in metric.split("/")
    )
