"""A condition on a stage's metrics: `METRIC OP NUMBER`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass

OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}
EXPRESSION = re.compile(r"\s*([^\s<>=]+)\s*(>=|<=|==|>|<)\s*(\S+)\s*")


@dataclass(frozen=True)
class Gate:
    """The condition on a metric under which the pipeline continues."""

    metric: str
    operator: str
    bound: float

    @classmethod
    def parse(cls, text: object, stage: str) -> Gate:
        """Parse `METRIC OP NUMBER`; the metric may begin with `stage`. Raises `ValueError` for other text."""
        if not isinstance(text, str) or not (parts := EXPRESSION.fullmatch(text)):
            raise ValueError(f"expected METRIC OP NUMBER with OP one of {' '.join(OPERATORS)}")
        metric, sign, bound = parts.groups()
        try:
            number = float(bound)
            if math.isnan(number):  # no metric would ever meet it
                raise ValueError
        except ValueError:
            raise ValueError(f"{bound} is not a number; expected METRIC OP NUMBER") from None
        return cls(metric.removeprefix(f"{stage}."), sign, number)

    def met(self, metrics: Mapping[str, float]) -> bool:
        """Whether the condition holds; False for a metric that was not measured, or is NaN."""
        return self.metric in metrics and bool(OPERATORS[self.operator](metrics[self.metric], self.bound))

    def __str__(self) -> str:
        return f"{self.metric} {self.operator} {self.bound:g}"
