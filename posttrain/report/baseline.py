"""Best-of-n of the starting policy, from runs of job=sample."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from posttrain.probe.intervals import standard_error
from posttrain.report.groups import Mean
from posttrain.report.maths import best_of_n, best_of_n_kl
from posttrain.report.runs import Run
from posttrain.runs.metrics import read


@dataclass(frozen=True)
class Baseline:
    """Best-of-n by the score in the run `name`. `rewards` maps a metric to (mean, standard error over prompts) for
    each of `ns`; `kl` is in nats."""

    name: str
    chosen_by: str
    split: str
    prompts: int
    ns: tuple[int, ...]
    kl: tuple[float, ...]
    rewards: dict[str, list[tuple[float, float | None]]] = field(default_factory=dict)

    def within(self, metric: str, budget: float) -> tuple[int, Mean] | None:
        """The largest n whose KL is at most `budget`, and its reward."""
        fits = [i for i, kl in enumerate(self.kl) if kl <= budget]
        if not fits or metric not in self.rewards:
            return None
        value, error = self.rewards[metric][fits[-1]]
        return self.ns[fits[-1]], Mean(value, error, "prompts" if error is not None else "", (value,))


def baseline(run: Run, probed: Sequence[str]) -> Baseline | str:
    """Best-of-n by a run of job=sample, or why there is none.

    Its reward NAME is `probe/rewards/NAME`, or `probe/gold/NAME`, whichever is among the metrics `probed`.
    """
    sample = {key.removeprefix("sample."): value for key, value in run.settings.items() if key.startswith("sample.")}
    if not run.finished:
        return "not finished"
    if sample.get("temperature", 1.0) != 1.0 or sample.get("top_p", 1.0) != 1.0:
        return "sampled with another temperature or top_p than 1, so it is not the starting policy"
    prompts = _prompts(run, int(sample.get("n", 1)))
    names = sorted({name for rewards in prompts for name in rewards})
    weights = {name: float(run.settings.get(f"reward.{name}.weight", 1.0)) for name in names}
    scored = []
    for rewards in prompts:
        if all(_whole(values) for values in rewards.values()):
            by = {name: values for name, values in rewards.items() if values}
            count = min(map(len, by.values()), default=0)
            scored.append((by, [sum(weights[k] * row[i] for k, row in by.items()) for i in range(count)]))
    scored = [(by, score) for by, score in scored if score]
    if not scored or (most := min(len(score) for _, score in scored)) < 2:
        return "fewer than two scored completions a prompt"
    ns = _ns(most)
    found: dict[str, list[tuple[float, float | None]]] = {}
    for name in weights:
        rows = [(by[name], score) for by, score in scored if name in by]
        for n in ns if rows else ():
            each = [best_of_n(score, values, n) for values, score in rows]
            metric = next((m for kind in ("rewards", "gold") if (m := f"probe/{kind}/{name}") in probed), name)
            found.setdefault(metric, []).append((fmean(each), standard_error(each)))
    used = " + ".join(f"{w:g} {k}" if w != 1 else k for k, w in weights.items() if w)
    split = str(sample.get("split", "train"))
    return Baseline(run.name, used, split, len(scored), ns, tuple(best_of_n_kl(n) for n in ns), found)


def _prompts(run: Run, n: int) -> list[dict[str, list[Any]]]:
    """For each prompt: name -> the rewards of its n completions."""
    result = []
    for piece in read(run.path / "rewards.jsonl"):
        rewards = piece["rewards"] if isinstance(piece.get("rewards"), dict) else {}
        count = max(map(len, rewards.values()), default=0)
        for start in range(0, count - n + 1, n):
            result.append({name: values[start : start + n] for name, values in rewards.items()})
    return result


def _whole(values: list[Any]) -> bool:
    """Whether all values are numbers, or all are None, for a reward that does not apply to the prompt."""
    if all(value is None for value in values):
        values.clear()
        return True
    return all(isinstance(value, (int, float)) for value in values)


def _ns(most: int) -> tuple[int, ...]:
    """1, 2, 4, …, and `most`."""
    powers = [1 << i for i in range(most.bit_length()) if 1 << i <= most]
    return tuple(dict.fromkeys([*powers, most]))
