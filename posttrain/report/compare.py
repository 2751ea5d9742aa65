"""The comparison of runs: everything that a report shows, computed in one place."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from posttrain.config.objective import lower_is_better
from posttrain.errors import PosttrainError, first_line
from posttrain.report import heldout
from posttrain.report.baseline import Baseline, baseline
from posttrain.report.gold import chosen_on_gold, on_gold, trained_on
from posttrain.report.groups import Group, Mean, differing, identity, number, pool
from posttrain.report.maths import Fit, fit, pareto_front
from posttrain.report.runs import SHARES, Found, Run
from posttrain.report.verdict import Candidate, Verdict, judge, name
from posttrain.runs import metrics

START = "the starting policy"
REWARDS = ("probe/gold/", "probe/rewards/")
# Metrics of the probe that show no failure mode: the axes, and the probe's cost.
NOT_A_MODE = ("probe/kl", "probe/reward", "probe/seconds", "probe/share")
INTERVAL_SUFFIXES = ("_low", "_high")


@dataclass
class Comparison:
    """`groups` are all trained groups, `probed` those with KL to `reference`, `compared` those with `metric`, which are
    among `probed` unless it is a held-out metric; `front` are indices of `compared`.

    `fits` are by metric, then by method or by the run of best-of-n. `start` is the starting policy's value by metric,
    from which gains are counted. `best_of` are the best-of-n baselines of the starting policy.
    """

    found: Found
    groups: list[Group]
    others: list[Run]
    metric: str | None = None
    minimise: bool = False
    reference: str = ""
    compared: list[Group] = field(default_factory=list)
    probed: list[Group] = field(default_factory=list)
    front: list[int] = field(default_factory=list)
    start: dict[str, float] = field(default_factory=dict)
    best_of: list[Baseline] = field(default_factory=list)
    fits: dict[str, dict[str, Fit]] = field(default_factory=dict)
    settings: dict[str, list[str]] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def rewards(self) -> list[str]:
        """The metric of the report, then the gold rewards and proxies that were probed."""
        found = {m for g in self.compared for m in _metrics(g) if m.startswith(REWARDS)}
        if sum(m.startswith("probe/rewards/") for m in found) > 1:
            found |= {"probe/reward" for g in self.compared if "probe/reward" in _metrics(g)}
        found |= {self.metric} if self.metric else set()
        return sorted(found, key=lambda m: (m != self.metric, not m.startswith("probe/gold/"), m))

    @property
    def held_out(self) -> list[str]:
        """The metrics on held-out rows that any run has."""
        return [metric for metric in heldout.METRICS if any(group.mean(metric) for group in self.groups)]

    @property
    def modes(self) -> list[str]:
        """Metrics that show failure modes: everything that the probe measures besides rewards and KL."""
        found = {m for g in self.groups for m in _metrics(g) if m.startswith("probe/")}
        apart = (*NOT_A_MODE, self.metric)
        return sorted(m for m in found if not m.startswith(REWARDS) and m not in apart and not _beside_another(m))


def compare(
    found: Found, metric: str | None, budgets: list[float], reference: str | None, lower: bool = False
) -> Comparison:
    """Pool seeds, choose reference and metric if they are not given, and compare; raises `PosttrainError`."""
    trained = on_gold([run for run in found.runs.values() if run.job == "train"])
    names = {run.name: run for run in found.runs.values()}
    groups, repeated = pool(trained, names)
    found.left_out.update(repeated)
    others = [run for run in found.runs.values() if run.job != "train"]
    result = Comparison(found, groups, others, settings=differing(groups, names) if len(groups) > 1 else {})
    probed = [group for group in groups if group.mean("probe/kl")]
    chosen = _reference(probed, found, reference, result)
    result.metric = _metric(chosen, groups, metric)
    if result.metric is not None and heldout.is_held_out(result.metric):
        result.compared, notes = heldout.comparable(groups, result.metric)
        result.notes += notes
        result.compared = [g for g in result.compared if g in chosen or not g.mean("probe/kl")]
    else:
        result.compared = [group for group in chosen if result.metric in _metrics(group)]
    result.probed = [group for group in groups if group in chosen or group in result.compared]
    result.notes += _no_frontier(result)
    if result.metric is None or not result.compared:
        return result
    result.minimise = lower or _minimise(result.metric, result.compared)
    _compare(result, budgets)
    return result


def _compare(result: Comparison, budgets: list[float]) -> None:
    """Start, front, baseline, fits and verdicts."""
    metric = str(result.metric)
    for reward in result.rewards:
        values = [mean.value for group in result.compared if (mean := group.mean(reward, start=True))]
        tied = any(metrics.starts_tied(reward, run.points.get(0, {})) for g in result.compared for run in g.counted)
        if values and not tied:
            result.start[reward] = fmean(values)
    _baselines(result)
    _seen(result)
    _prompts(result)
    candidates = [c for group in result.compared if group.finished and (c := _candidate(group, metric))]
    broken = [c.label for c in candidates if c.reward.nan or (c.kl and c.kl.nan)]
    if broken:
        result.notes.append(f"{', '.join(broken)}: ended in NaN, so the last finite values are of no model to choose")
        candidates = [c for c in candidates if c.label not in broken]
    # The front includes the start, so that a group that is no better than the start is not on it.
    start = _start(result, metric)
    pool_ = [*start, *candidates]
    placed = [c for c in pool_ if c.kl]
    best = [placed[i] for i in pareto_front([(c.distance, c.reward.value) for c in placed], result.minimise)]
    steps = [c for c in best if c.group]
    result.front = [result.compared.index(c.group) for c in steps if c.group]
    result.fits = {reward: _fits(result, reward) for reward in result.rewards if is_reward(reward)}
    if not candidates:
        result.notes.append("no finished run to choose from")
        return
    # By default, budgets are the KL of each point of the front, and none.
    held_out = heldout.is_held_out(metric)
    at = budgets or ({} if held_out else dict.fromkeys(_round_up(c.distance) for c in steps[:-1]))
    for budget in [*at, *([] if budgets else [None])]:
        allowed = [c for c in pool_ if budget is None or c.distance <= budget]
        if not allowed:
            result.notes.append(f"--kl-budget {budget:g}: no finished run has as little KL")
            continue
        limit = budget if budget is not None else max(c.distance for c in allowed)
        blind = [one for one in result.best_of if not chosen_on_gold(one, metric)]
        verdict = judge(pool_, metric, budget, result.minimise)
        seen = verdict.best.group is not None and trained_on(verdict.best.group, metric)
        result.verdicts.append(_with_best_of_n(verdict, metric, result.best_of if seen else blind, limit))
        fair = [c for c in pool_ if c.group is None or not trained_on(c.group, metric)]
        if seen and any(c in fair for c in allowed):
            # The best that is possible without training on that reward.
            other = judge(fair, metric, budget, result.minimise, pool_)
            sentence = f"Of those that never saw {name(metric)}: {other.sentence[0].lower()}{other.sentence[1:]}"
            result.verdicts.append(_with_best_of_n(replace(other, sentence=sentence), metric, blind, limit))


def _round_up(kl: float) -> float:
    """`kl` rounded up to a short number."""
    for digits in (1, 2, 3, 6):
        if (up := round(kl, digits)) >= kl or (up := round(kl + 0.5 * 10**-digits, digits)) >= kl:
            return up
    return kl


def _candidate(group: Group, metric: str) -> Candidate | None:
    kl, reward = group.mean("probe/kl"), group.mean(metric)
    if reward is None or (kl is None and not heldout.is_held_out(metric)):
        return None
    rows = group.counted[0].held_out_rows if metric in SHARES else 0
    return Candidate(group.label, kl, reward, group.by_prompt(metric), group, rows)


def _start(result: Comparison, metric: str) -> list[Candidate]:
    if metric not in result.start:
        return []
    starts = [mean for group in result.compared if (mean := group.mean(metric, start=True))]
    each = tuple(value for mean in starts for value in mean.each)
    prompts = next((p for group in result.compared if (p := group.by_prompt(metric, start=True))), {})
    reward = Mean(result.start[metric], None, "", each)
    rows = max((g.counted[0].held_out_rows for g in result.compared), default=0) if metric in SHARES else 0
    return [Candidate(START, Mean(0.0, None, "", (0.0,)), reward, prompts, rows=rows)]


def _with_best_of_n(verdict: Verdict, metric: str, best_of: list[Baseline], limit: float) -> Verdict:
    """The verdict with a sentence on best-of-n at the same KL, if there is a baseline."""
    for one in best_of:
        if (there := one.within(metric, limit)) and there[0] > 1:
            n, reward = there
            return replace(
                verdict,
                sentence=f"{verdict.sentence} Best of {n} samples of {START} by {one.chosen_by}, without training, has "
                f"{reward} at {number(one.kl[one.ns.index(n)])}.",
            )
    return verdict


def _reference(probed: list[Group], found: Found, wanted: str | None, result: Comparison) -> list[Group]:
    """The groups with KL to the same model: to `wanted`, or to the model of most groups."""
    of = {id(group): reference(group.runs[0], found) for group in probed}
    counts = Counter(key for key, _ in of.values())
    labels = dict(of.values())
    if not counts and wanted is not None:
        raise PosttrainError(f"--reference={wanted}: no run here measured a KL; leave it out")
    if not counts:
        return []
    if wanted is None:
        key = counts.most_common(1)[0][0]
    else:
        named = [key for key, label in labels.items() if wanted.rstrip("/") in (label, Path(label).name)]
        named = named or [key for key, label in labels.items() if Path(wanted).name == Path(label).name]
        if not named:
            raise PosttrainError(f"--reference={wanted}: no KL is to that; there are {', '.join(labels.values())}")
        key = named[0]
    result.reference = labels[key]
    for other, label in labels.items():
        if other != key:
            names = ", ".join(group.label for group in probed if of[id(group)][0] == other)
            result.notes.append(
                f"{names}: KL is to {label}, not to {labels[key]}; not on one axis (--reference {label})"
            )
    return [group for group in probed if of[id(group)][0] == key]


def reference(run: Run, found: Found) -> tuple[str, str]:
    """The identity of the model that `probe/kl` is measured to (the policy's start), and its name."""
    parents = [p for p in run.record.get("parents", []) if isinstance(p, dict)]
    parent = next((p for p in parents if p.get("role") == "policy"), None)
    if parent is None:
        model = {**run.record.get("model", {})}
        if run.job != "train":
            model["path"] = run.settings.get("model.path")
        return f"{model.get('path')} {model.get('revision')}", str(model.get("path"))
    names = {other.name: other for other in found.runs.values()}
    if known := names.get(str(parent.get("name"))):
        return f"{known.kind}: {identity(known, names)}", known.name
    return str(parent.get("content") or parent.get("name")), str(parent.get("name"))


def _no_frontier(result: Comparison) -> list[str]:
    """A note, with the fix, if the picture of reward against KL lacks an axis."""
    have_kl = any(group.mean("probe/kl") for group in result.compared or result.groups)
    if result.metric and not heldout.is_held_out(result.metric):
        return []
    wanting = "neither a KL nor a reward" if not have_kl else "no reward"
    shown = f"the picture has {title(result.metric)}" if have_kl and result.metric else "there is no picture"
    kl = "" if have_kl else " and probe.prompts=32 (KL needs an adapter, or a method with a reference)"
    return [
        f"These runs measured {wanting}, so {shown} against KL. For reward against KL, train with a reward to compare "
        f"by, such as +probe.rewards.NAME.function=MODULE.FUNCTION or +probe.gold.NAME.model=RUN{kl}."
    ]


def _metric(groups: list[Group], everyone: list[Group], wanted: str | None) -> str | None:
    """The full name of `wanted`; by default a gold reward, else another reward, in each case that of most groups; else
    the held-out metric of most of `everyone`."""
    counts = Counter(
        metric
        for group in groups
        for metric in _metrics(group)
        if metric.startswith("probe/") and not _beside_another(metric)
    )
    held_out = [metric for metric in heldout.METRICS if any(group.mean(metric) for group in everyone)]
    if wanted is not None:
        if wanted in held_out:
            return wanted
        for full in (wanted, f"probe/{wanted}", f"probe/rewards/{wanted}", f"probe/gold/{wanted}"):
            if full in counts:
                return full
        raise PosttrainError(
            f"--metric={wanted}: not probed; there are {', '.join([*sorted(counts), *held_out]) or 'none'}"
        )
    rewards = [m for m in counts if m.startswith(REWARDS)] or [m for m in counts if m == "probe/win_rate"]
    best = min(rewards, key=lambda m: (not m.startswith("probe/gold/"), -counts[m], m), default=None)
    return best or heldout.choose(everyone)


def _minimise(metric: str, groups: list[Group]) -> bool:
    """Whether less is better: by the metric's name, or by the sign of the reward's weight."""
    last = metric.rpartition("/")[2]
    keys = [f"{place}.{last}.weight" for place in ("probe.rewards", "probe.gold", "reward")]
    weights = [g.runs[0].settings[key] for g in groups for key in keys if key in g.runs[0].settings]
    return lower_is_better(metric) or (bool(weights) and all(weight < 0 for weight in weights))


def _baselines(result: Comparison) -> None:
    """Add the best-of-n baselines from runs of job=sample of the reference model."""
    own = reference(result.compared[0].runs[0], result.found)[0]
    for run in result.others:
        if run.job == "sample" and reference(run, result.found)[0] == own:
            try:
                made = baseline(run, result.rewards)
            except (ArithmeticError, AttributeError, TypeError, ValueError) as error:  # files that a person has edited
                made = f"its files hold something else: {first_line(error)}"
            if isinstance(made, str):
                result.notes.append(f"{run.name}: no best-of-n baseline: {made}")
            elif str(result.metric) in made.rewards:
                result.best_of.append(made)
                if made.split == "train":
                    result.notes.append(f"{run.name}: best-of-n is over training prompts (sample.split=eval is fairer)")
    # A verdict names the first one; those on held-out prompts, and not chosen by the gold reward, come first.
    result.best_of.sort(key=lambda one: (chosen_on_gold(one, str(result.metric)), one.split == "train"))


def _seen(result: Comparison) -> None:
    """Add a note on groups that were trained on the gold reward."""
    metric = str(result.metric)
    if seen := [group.label for group in result.compared if trained_on(group, metric)]:
        result.notes.append(f"{', '.join(seen)}: trained on {name(metric)} itself, which the other runs never saw")


def _prompts(result: Comparison) -> None:
    """Add a note on groups that were probed on other prompts, whose rewards are not comparable."""
    sets: dict[frozenset[str], list[str]] = {}
    for group in result.compared:
        if last := group.runs[0].last(str(result.metric)):
            prompts = frozenset(group.runs[0].by_prompt(str(result.metric), last[0]))
            if prompts:
                sets.setdefault(prompts, []).append(group.label)
    if len(sets) > 1:
        few = ", ".join(label for labels in sorted(sets.values(), key=len)[:-1] for label in labels)
        result.notes.append(f"{few}: probed on other prompts than the rest, so differences are partly the prompts'")


def _fits(result: Comparison, metric: str) -> dict[str, Fit]:
    """The curves of Gao et al. for each method, fitted to all points of its groups, and for best-of-n."""
    if metric not in result.start:
        return {}
    base, fits = result.start[metric], {}
    for method in dict.fromkeys(group.method for group in result.compared):
        points = [p for g in result.compared if g.method == method for p in g.path("probe/kl", metric)]
        points = [p for p in points if p["probe/kl"] >= 0]
        if found := fit("rl", [p["probe/kl"] for p in points], [p[metric] - base for p in points]):
            fits[method] = found
    for one in result.best_of:
        if metric in one.rewards:
            gains = [mean - one.rewards[metric][0][0] for mean, _ in one.rewards[metric]]
            if found := fit("best_of_n", one.kl, gains):
                fits[one.name] = found
    return fits


def is_reward(metric: str) -> bool:
    return metric.startswith(REWARDS) or metric == "probe/reward"


def _beside_another(metric: str) -> bool:
    return metric.endswith(INTERVAL_SUFFIXES) or "_stderr" in metric


def _metrics(group: Group) -> set[str]:
    return {metric for run in group.counted for point in run.points.values() for metric in point}


MODES = {
    "probe/length": "length (tokens)",
    "probe/ended": "share that ends",
    "probe/distinct_1": "distinct 1-grams (share)",
    "probe/distinct_2": "distinct 2-grams (share)",
    "probe/self_bleu": "self-BLEU",
    "probe/entropy": "entropy (nats per token)",
    "probe/win_rate": "win rate against the start",
    "probe/repetition": "repetition (share)",
}


def title(metric: str) -> str:
    """A metric's title on a column or axis: "gold reward: sentiment", "reward: length", "preference accuracy"."""
    if metric in MODES:
        return MODES[metric]
    unit = " (nats per token)" if metric.startswith(("probe/nll/", "probe/forgetting/")) else ""
    return metrics.title(metric) + unit
