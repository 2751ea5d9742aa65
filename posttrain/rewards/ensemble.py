"""Several reward models combined into one reward.

Members that disagree about an answer indicate that it is far from their training data. The minimum of their scores, or
the mean minus their disagreement, is harder to exploit (Coste et al. 2023, "Reward Model Ensembles Help Mitigate
Overoptimization", arXiv:2310.02743: worst-case and uncertainty-weighted optimization).
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

from posttrain.errors import PosttrainError
from posttrain.rewards import calibration as calibrations

if TYPE_CHECKING:
    from posttrain.rewards.model import RewardModel
    from posttrain.rewards.text import Completion
    from posttrain.runs.lineage import Source

COMBINE = ("mean", "min", "mean_minus_std")


class Ensemble:
    """The combined score of `models` (runs of reward models, or hub ids), a list or a mapping by name.

    `combine` is mean, min or mean_minus_std.

    `mean_minus_std` is the mean minus `k` population standard deviations over the members. `scale` and
    `length_penalty` are first applied to each member; see `RewardModel`. Each member reads its own calibration, or that
    in `calibration`, which names folders in the form of `models`. Adapters on the same base share its weights.
    """

    def __init__(
        self,
        models: list[str] | dict[str, str],
        combine: str = "mean",
        k: float = 1.0,
        scale: str = "none",
        length_penalty: float | str | None = None,
        calibration: list[str | None] | dict[str, str | None] | None = None,
        batch_size: int = 16,
        max_length: int | None = None,
        dtype: str = "auto",
    ):
        from posttrain.rewards.model import RewardModel
        from posttrain.runs import lineage

        self.combine, self.k = combine, k
        self.members: list[RewardModel] = []
        bases: dict[Any, RewardModel] = {}
        for path, stored in zip(paths(models), folders(models, calibration), strict=True):
            origin = lineage.source(path, key="reward model")
            key = base_of(origin)
            member = RewardModel(
                path,
                batch_size,
                max_length,
                dtype,
                scale=scale,
                length_penalty=length_penalty,
                calibration=stored,
                beside=bases.get(key) if origin.adapter else None,
            )
            if origin.adapter:
                bases.setdefault(key, member)
            self.members.append(member)
        self.__name__ = "ensemble"

    def __call__(
        self, /, completions: list[Completion], prompts: list[Completion], log_metric: Any = None, **columns: Any
    ) -> list[float | None]:
        """One score per completion; the mean disagreement is logged where the trainer takes it."""
        each = [member(completions=completions, prompts=prompts, **columns) for member in self.members]
        rows = [[score for score in row if score is not None] for row in zip(*each, strict=True)]
        if log_metric is not None and rows:
            log_metric("ensemble/std", fmean(pstdev(row) for row in rows))
        return [combined(row, self.combine, self.k) for row in rows]

    @classmethod
    def check(cls, args: dict[str, Any], key: str) -> list[str]:
        """Everything wrong with the args that can be known without reading a model's config."""
        errors, models = [], paths(args.get("models"))
        if len(models) < 2 or not all(isinstance(model, str) for model in models):
            return [f"{key}.models={args.get('models')}: expected at least two runs or hub ids, [RUN,RUN]"]
        if twice := sorted({model for model in models if models.count(model) > 1}):
            errors.append(f"{key}.models: {twice[0]} is named twice")
        if (combine := args.get("combine", "mean")) not in COMBINE:
            errors.append(f"{key}.combine={combine}: choose from {', '.join(COMBINE)}")
        k = args.get("k", 1.0)
        if not isinstance(k, (int, float)) or isinstance(k, bool) or not 0 <= k < float("inf"):
            errors.append(f"{key}.k={k}: expected a number of at least 0")
        stored = args.get("calibration")
        if stored is not None and (type(stored) is not type(args["models"]) or len(stored) != len(models)):
            errors.append(f"{key}.calibration={stored}: expected a folder, or null, for each of models, in its form")
        return errors + calibrations.check(args, key)

    @classmethod
    def check_reachable(cls, args: dict[str, Any], key: str) -> list[str]:
        """Errors in the members, from their configs: no weights are loaded."""
        from posttrain.models import weights
        from posttrain.runs import lineage

        errors, sources = [], []
        for model, stored in zip(paths(args["models"]), folders(args["models"], args.get("calibration")), strict=True):
            try:
                sources.append(lineage.source(model, key=f"{key}.models"))
                weights.check_model(sources[-1], f"{key}.models", scores=True)
                calibrations.check_available({**args, "calibration": stored}, key, model)
            except PosttrainError as error:
                errors.append(str(error))
        bases = {trained_on(origin) for origin in sources}
        if not errors and len(bases) > 1 and args.get("scale", "none") == "none":
            errors.append(
                f"{key}.models: trained on different bases ({', '.join(sorted(bases))}), their scores have different "
                f"units; set {key}.scale=zscore (after job=evaluate of each), or batch"
            )
        return errors


def paths(models: Any) -> list[Any]:
    """The members of a list, or of a mapping by name."""
    return list(models.values()) if isinstance(models, dict) else models if isinstance(models, list) else []


def folders(models: Any, calibration: Any) -> list[str | None]:
    """The calibration that is named for each member, in the order of `models`."""
    if isinstance(models, dict):
        return [(calibration or {}).get(name) for name in models]
    return list(calibration) if calibration else [None] * len(models)


def trained_on(origin: Source) -> str:
    """The model that the training started from, as far as it is known."""
    return str((origin.record.get("model") or {}).get("path") or origin.base)


def base_of(origin: Source) -> tuple[Any, ...]:
    """What identifies the base weights of `origin`; adapters with equal values can share them in memory."""
    from posttrain.runs import lineage

    return lineage.weights_location(origin), str(origin.quantization), origin.dtype


def combined(scores: Sequence[float], combine: str, k: float) -> float:
    """The score of one completion, given the members' scores."""
    if combine == "min":
        return min(scores)
    return fmean(scores) - (k * pstdev(scores) if combine == "mean_minus_std" else 0.0)
