"""Conditions of alarms on measurements: the probe's, PPO's KL on rollouts, and another engine's samples.

Each takes the `AlarmDetector`, which knows earlier rows, and a row of `metrics.jsonl`.
"""

import math
from statistics import NormalDist
from typing import Any

# As in `alarms`.
Finding = tuple[float, str | None] | None


def _kl(detector: Any, row: dict[str, Any]) -> Finding:
    # PPO also measures the KL on each rollout.
    values = [row[key] for key in ("probe/kl", "objective/kl") if key in row]
    budget = detector.config.kl.above
    if budget is None or not values:
        return None
    value = max(values)
    return value, None if value <= budget else (
        f"KL to the reference is {value:.3g} nats per answer, beyond the budget of {budget:g}; raise "
        "trainer.args.beta where there is one, lower trainer.args.learning_rate, or train for fewer steps"
    )


def _forgetting(detector: Any, row: dict[str, Any]) -> Finding:
    rises = {key.removeprefix("probe/forgetting/"): row[key] for key in row if key.startswith("probe/forgetting/")}
    if not rises:
        return None
    domain, value = max(rises.items(), key=lambda item: item[1])
    return value, None if value <= detector.config.forgetting.above else (
        f"it forgets: texts of domain {domain} cost {value:.3g} nats per token more than at the start; lower "
        "trainer.args.learning_rate or peft.lora.r, train for fewer steps, or mix in data of that kind"
    )


def _collapse(detector: Any, row: dict[str, Any]) -> Finding:
    shares = {
        key: row[key] / detector.start[key]
        for key in ("probe/entropy", "probe/distinct_2")
        if key in row and detector.start.get(key)
    }
    if not shares:
        return None
    key, value = min(shares.items(), key=lambda item: item[1])
    return value, None if value >= detector.config.collapse.below else (
        f"mode collapse: {key} has fallen to {row[key]:.3g}, {value:.0%} of the start; raise "
        "trainer.args.beta where there is one, lower trainer.args.learning_rate, or see in samples.jsonl "
        "whether one answer fits all"
    )


def _length(detector: Any, row: dict[str, Any]) -> Finding:
    if "probe/length" not in row or not detector.start.get("probe/length"):
        return None
    setting, growth = detector.config.length, row["probe/length"] / detector.start["probe/length"]
    ended, before = row.get("probe/ended"), detector.start.get("probe/ended")
    # If all answers are cut at the limit, they are equally long, and R² says nothing; this check does.
    if growth >= setting.growth and ended is not None and before and ended < before / 2:
        return ended, (
            f"answers run on: they are {growth:.1f} times as long as at the start, and {ended:.0%} of them end by "
            f"themselves, {before:.0%} at the start; ask for an end (trainer.args.missing_eos_penalty in PPO) or "
            "for brevity in the reward, or raise probe.max_new_tokens where it is what cuts them"
        )
    r = row.get("probe/length_correlation", 0.0)
    value = r * r if r > 0 else 0.0
    return value, None if value <= setting.above or growth < setting.growth else (
        f"length explains the reward: R² {value:.2f}, and answers are {growth:.1f} times as long as at the start; "
        "take a reward that does not grow with length, or add one that asks for brevity"
    )


def _sampling(detector: Any, row: dict[str, Any]) -> Finding:
    # Logged where another engine samples (vLLM), with its own weights, precision and kernels.
    if (value := row.get("sampling/sampling_logp_difference/mean")) is None:
        return None
    most = detector.config.sampling.above
    if math.isfinite(value) and value <= most:
        return value, None
    return value, (
        "completions come from another distribution than is trained: their log-probabilities differ by "
        f"{value:.3g} nats per token (alarms.sampling.above={most:g}); keep "
        "trainer.args.vllm_importance_sampling_correction=true, sample in the precision that is trained in, or "
        "look whether the engine gets the new weights"
    )


def _over_optimisation(detector: Any, row: dict[str, Any]) -> Finding:
    drops = {k.removeprefix("probe/gold_drop/"): row[k] for k in row if k.startswith("probe/gold_drop/")}
    if not drops:
        return None
    detector.measured += 1
    own = detector.config.over_optimisation.proxy
    metric = next((m for m in ((own,) if own else ("probe/reward", "rewards/margins")) if m in detector.last), "")
    proxy, worst = detector.last.get(metric), (0.0, "")
    for name, drop in drops.items():
        if drop == 0:
            detector.proxy_at_best[name] = proxy
        elif proxy is not None and name in detector.proxy_at_best:
            # No trainer logs before the first step, so a proxy's first logged value stands for its start.
            best = detector.proxy_at_best[name]
            if proxy > (detector.first[metric] if best is None else best):
                stderr = row.get(f"probe/gold_drop_stderr/{name}")
                worst = max(worst, (0.0 if stderr is None else drop / stderr if stderr else math.inf, name))
    if proxy is None:
        return None
    errors, name = worst
    needed = corrected_threshold(detector.config.over_optimisation.above, detector.measured)
    return errors, None if errors <= needed else (
        f"over-optimisation: {metric} has risen to {proxy:.3g} while the gold reward {name} has fallen by "
        f"{drops[name]:.3g} since its best ({errors:.1f} standard errors; chance among {detector.measured} "
        f"measurements seldom gives {needed:.1f}); stop at the best, raise trainer.args.beta where there is one, "
        "or train the reward on more comparisons"
    )


def corrected_threshold(errors: float, measured: int) -> float:
    """The threshold in standard errors for `measured` measurements that is as unlikely as `errors` is for two.

    The best measurement is partly luck, and each later one is compared with it: Bonferroni's correction over all pairs.
    """
    normal, pairs = NormalDist(), max(measured * (measured - 1) // 2, 1)
    # The lower tail, where small probabilities keep their precision.
    return max(errors, -normal.inv_cdf(max(normal.cdf(-errors) / pairs, 1e-300)))


CONDITIONS = {
    "kl": _kl,
    "forgetting": _forgetting,
    "collapse": _collapse,
    "length": _length,
    "sampling": _sampling,
    "over_optimisation": _over_optimisation,
}
