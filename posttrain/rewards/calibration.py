"""Calibration of a reward model on held-out pairs, and scores adjusted by it.

Bradley-Terry scores have no fixed origin or unit, and often rise with length. From scored pairs this module fits a mean
and a spread (to add scores to other rewards), a temperature (to read the difference of two scores as a probability),
and a slope over length (to remove the effect of length).
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError
from posttrain.runs.code_identity import CALIBRATION
from posttrain.runs.durable import write_json

SCALES = ("none", "zscore", "batch", "temperature")
ARGS = ("scale", "length_penalty", "calibration")
DTYPES = ("auto", "float32", "bfloat16", "float16")
BINS = 10


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of scores; the temperature of p = sigmoid(difference / temperature).

    `ece_before` and `ece_after` are expected calibration errors at temperature 1 and at temperatures that were fitted
    on other prompts' pairs; `accuracy` is the share of pairs whose chosen answer scores higher; ties count half.
    """

    mean: float
    std: float
    temperature: float
    ece_before: float
    ece_after: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Fitted on `pairs` held-out pairs: `raw`, the scale of the scores; `slope`, reward per token; the mean `length`.

    `correlation` is between score and length, within prompts; `residual` is the scale of the scores without the slope.
    """

    pairs: int
    data: str
    raw: Scale
    slope: float
    length: float
    correlation: float
    residual: Scale

    def adjust(
        self, scores: Sequence[float], lengths: Sequence[int], scale: str, penalty: float | str | None
    ) -> list[float]:
        """Scores without the fitted slope where `penalty` is "fitted", as z-scores or in units of the temperature."""
        known = self.residual if penalty == "fitted" else self.raw
        if penalty == "fitted":
            scores = without_length(scores, lengths, self.slope, self.length)
        if scale == "zscore":
            return [(score - known.mean) / (known.std or 1.0) for score in scores]
        return [score / known.temperature for score in scores] if scale == "temperature" else list(scores)

    def describe(self) -> list[str]:
        """The figures in words, a line each."""
        return [
            f"scores: mean {self.raw.mean:.3g}, standard deviation {self.raw.std:.3g} (scale=zscore)",
            f"the difference of two scores over {self.raw.temperature:.3g} is a probability (scale=temperature); "
            f"expected calibration error {self.raw.ece_before:.3f} before, {self.raw.ece_after:.3f} after, on pairs of "
            "other prompts",
            f"length: {self.slope:+.3g} per token of an answer, correlation {self.correlation:+.2f} within prompts; "
            f"without it (length_penalty=fitted) accuracy is {self.residual.accuracy:.3f}, was {self.raw.accuracy:.3f}",
        ]

    def write(self, folder: Path) -> None:
        write_json(folder / CALIBRATION, asdict(self))


def read(folder: str, key: str) -> Calibration:
    """The calibration that `folder` (a reward run, or its evaluation) holds; raises `PosttrainError` where none."""
    file = Path(os.path.expanduser(folder)) / CALIBRATION
    if not file.is_file():
        raise PosttrainError(
            f"{key}: {file} is not there; it is measured by job=evaluate of the reward model: the command that trained "
            "it, with job=evaluate model.init_from=RUN; for a model without a run name that evaluation: "
            "args.calibration=EVALUATION"
        )
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        return Calibration(**{**known, "raw": Scale(**known["raw"]), "residual": Scale(**known["residual"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PosttrainError(f"{key}: {file} is no calibration ({error}); evaluate the reward model again") from None


def check(args: dict[str, Any], key: str) -> list[str]:
    """Errors in a reward model's args, `scale` and `length_penalty` among them; nothing is read."""
    for name in ("batch_size", "max_length"):
        value = args.get(name)
        whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if not whole and (value is not None or (name == "batch_size" and name in args)):
            return [f"{key}.{name}={value}: expected a whole number of at least 1"]
    if args.get("dtype", "auto") not in DTYPES:
        return [f"{key}.dtype={args['dtype']}: choose from {', '.join(DTYPES)}"]
    scale, penalty = args.get("scale", "none"), args.get("length_penalty")
    if scale not in SCALES:
        return [f"{key}.scale={scale}: choose from {', '.join(SCALES)}"]
    number = isinstance(penalty, (int, float)) and abs(penalty) < float("inf") and not isinstance(penalty, bool)
    if penalty is not None and penalty != "fitted" and not number:
        return [f"{key}.length_penalty={penalty}: expected fitted, or a number: reward taken off per token"]
    if number and scale in ("zscore", "temperature"):
        return [
            f"{key}.length_penalty={penalty}: scale={scale} was measured without it; set length_penalty=fitted, or "
            "scale=batch"
        ]
    if args.get("calibration") is not None and not needed(scale, penalty):
        return [f"{key}.calibration: only read for scale=zscore, scale=temperature and length_penalty=fitted"]
    return []


def check_available(args: dict[str, Any], key: str, model: str) -> None:
    """Raise `PosttrainError` where a stored calibration is asked for and not there."""
    if needed(args.get("scale", "none"), args.get("length_penalty")):
        read(args.get("calibration") or model, key)


@dataclass(frozen=True)
class Adjustment:
    """Adjusts a reward model's scores by its args `scale` and `penalty`, and the calibration that these need."""

    scale: str
    penalty: float | str | None
    calibration: Calibration | None

    def __call__(self, scores: Sequence[float], lengths: Sequence[int]) -> list[float]:
        """The adjusted scores; `lengths`, in tokens of the completions, are read only where there is a penalty."""
        if isinstance(self.penalty, (int, float)):
            scores = without_length(scores, lengths, self.penalty, 0)
        if self.calibration is not None:
            scores = self.calibration.adjust(scores, lengths, self.scale, self.penalty)
        return standardized(scores) if self.scale == "batch" else list(scores)


def adjustment(
    model: str, scale: str = "none", length_penalty: float | str | None = None, calibration: str | None = None
) -> Adjustment:
    """The `Adjustment` of a reward model's args; raises `PosttrainError` where a calibration is missing."""
    stored = None
    if needed(scale, length_penalty):
        stored = read(calibration or model, f"reward model {model}")
    return Adjustment(scale, length_penalty, stored)


def needed(scale: str, penalty: float | str | None) -> bool:
    """Whether a stored calibration is needed."""
    return penalty == "fitted" or scale in ("zscore", "temperature")


def without_length(scores: Sequence[float], lengths: Sequence[int], slope: float, around: float) -> list[float]:
    """Scores less `slope` for each token above `around`."""
    return [score - slope * (length - around) for score, length in zip(scores, lengths, strict=True)]


def standardized(scores: Sequence[float]) -> list[float]:
    """Zero mean and unit variance within the batch; zeros where all are equal."""
    import numpy as np

    values = np.asarray(scores, float)
    spread = values.std()
    return list(((values - values.mean()) / spread).tolist()) if spread > 1e-12 else [0.0] * len(values)


def fit(
    scores: Sequence[Sequence[float]], lengths: Sequence[Sequence[int]], prompts: Sequence[int], data: str
) -> Calibration:
    """Fit a calibration to (chosen, rejected) scores, the answers' lengths in tokens, and a number per pair's prompt.

    The slope comes from a linear regression of score on length with an intercept per prompt, since scores are compared
    only within a prompt: what makes all answers to a prompt long, or good, has no effect.
    """
    import numpy as np

    values, tokens = np.asarray(scores, float), np.asarray(lengths, float)
    groups = np.repeat(np.asarray(prompts), 2)
    within = _centred(values.ravel(), groups), _centred(tokens.ravel(), groups)
    cross, spread = float(within[0] @ within[1]), float(within[1] @ within[1])
    slope = cross / spread if spread else 0.0
    both = float(np.sqrt(spread * (within[0] @ within[0])))
    length = float(tokens.mean())
    residual = values - slope * (tokens - length)
    return Calibration(
        len(values),
        data,
        _scale(values, prompts),
        slope,
        length,
        cross / both if both else 0.0,
        _scale(residual, prompts),
    )


def _centred(values: Any, groups: Any) -> Any:
    """Values minus the mean of their group."""
    import numpy as np

    _, index = np.unique(groups, return_inverse=True)
    return values - (np.bincount(index, values) / np.bincount(index))[index]


def _scale(values: Any, prompts: Sequence[int]) -> Scale:
    import numpy as np

    gaps = values[:, 0] - values[:, 1]
    index = np.unique(np.asarray(prompts), return_inverse=True)[1]
    fold = index % 2
    other = np.ones_like(gaps)  # temperature 1 for a single prompt, since no other one is there to fit it on
    for part in (0, 1):
        if (fold != part).any() and (fold == part).any():
            other[fold == part] = temperature(gaps[fold != part])
    return Scale(
        float(values.mean()),
        float(values.std()),
        temperature(gaps),
        ece(gaps),
        ece(gaps / other),
        float(((gaps > 0) + 0.5 * (gaps == 0)).mean()),
    )


def temperature(gaps: Any) -> float:
    """The maximum-likelihood T of sigmoid(gap / T), the probability of chosen; within [0.001, 1000] spreads.

    Platt scaling (Platt 1999) without its intercept, which would prefer the first answer of every pair:
    temperature scaling (Guo et al. 2017, arXiv:1706.04599). The log-likelihood is concave in 1/T, so its derivative
    has one root. Where all pairs are right, the likeliest is T = 0, and where most are wrong,
    infinity: hence the bounds.
    """
    import numpy as np
    from scipy.optimize import brentq
    from scipy.special import expit

    gaps = np.asarray(gaps, float)
    unit = float(np.abs(gaps).mean())
    if not unit:
        return 1.0

    def slope(inverse: float) -> float:
        """Derivative of the mean log-likelihood by 1/T, in units of the mean gap."""
        return float(np.mean(gaps / unit * expit(-inverse * gaps / unit)))

    low, high = 1e-3, 1e3
    if slope(low) <= 0:
        return unit / low
    if slope(high) >= 0:
        return unit / high
    return unit / float(brentq(slope, low, high))


def ece(gaps: Any) -> float:
    """Expected calibration error of p = sigmoid(|gap|), the probability that the higher answer is the chosen one.

    The mean over `BINS` equally wide bins of [0.5, 1] of |accuracy - mean p|, weighted by their number of pairs
    (Naeini et al. 2015; Guo et al. 2017, eq. 3). A tie counts half.
    """
    import numpy as np
    from scipy.special import expit

    gaps = np.asarray(gaps, float)
    p, right = expit(np.abs(gaps)), (gaps > 0) + 0.5 * (gaps == 0)
    index = np.minimum(((p - 0.5) * 2 * BINS).astype(int), BINS - 1)
    off = np.abs(np.bincount(index, right - p, BINS))
    return float(off.sum() / len(gaps))
