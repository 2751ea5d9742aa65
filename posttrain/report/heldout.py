"""Comparison by held-out rows where no run has a reward: accuracy, margin and loss."""

from collections import Counter
from collections.abc import Callable, Sequence

from posttrain.report.groups import Group
from posttrain.report.runs import Run

# Metrics by which runs without a reward are compared, best known first.
METRICS = (
    *("eval_rewards/accuracies", "eval_accuracy", "eval_rewards/margins", "eval_margin"),
    *("eval_loss", "eval_mean_token_accuracy"),
)


def is_held_out(metric: str) -> bool:
    return metric.startswith("eval_")


def choose(groups: Sequence[Group]) -> str | None:
    """The metric to compare by: the best known metric of each group, and of these the one that most groups have."""
    own = [next((metric for metric in METRICS if group.mean(metric)), None) for group in groups]
    counts = Counter(metric for metric in own if metric)
    return max(counts, key=lambda metric: (counts[metric], -METRICS.index(metric)), default=None)


def comparable(groups: Sequence[Group], metric: str) -> tuple[list[Group], list[str]]:
    """The groups that can be compared by `metric`, and a remark for each reason to leave others out."""
    having = [group for group in groups if group.mean(metric)]
    notes = []
    if metric in ("eval_loss", "eval_margin", "eval_rewards/margins", "eval_mean_token_accuracy"):
        having, left = _most(having, lambda group: group.kind)
        if left:
            notes.append(
                f"{_labels(left)}: {metric} of another trainer is not on the same scale, so it is not compared"
            )
    having, left = _most(having, lambda group: _ruler(group.runs[0]))
    if left:
        notes.append(f"{_labels(left)}: measured on other held-out rows, so not compared with the rest")
    return having, notes


def _most(groups: list[Group], key: Callable[[Group], str]) -> tuple[list[Group], list[Group]]:
    """The groups with the most frequent key, and the others."""
    counts = Counter(key(group) for group in groups)
    if len(counts) < 2:
        return groups, []
    most = counts.most_common(1)[0][0]
    return [group for group in groups if key(group) == most], [group for group in groups if key(group) != most]


def _ruler(run: Run) -> str:
    """The identity of a set of held-out rows."""
    data = run.record.get("data")
    return str([data.get(key) for key in ("path", "held_out", "held_out_rows")]) if isinstance(data, dict) else ""


def _labels(groups: Sequence[Group]) -> str:
    return ", ".join(group.label for group in groups)
