"""The result of one check of the doctor: numbers, examples, the consequence and the fix."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from posttrain.config.schema import DoctorConfig
from posttrain.doctor.patterns import masked

SEVERITIES = ("info", "warning", "error")


@dataclass(frozen=True)
class Example:
    """A row, by its index (from 0) in the trainer's split, and an excerpt of it with secrets masked."""

    split: str
    row: int
    text: str


@dataclass(frozen=True)
class Finding:
    """One check's result. `says` is the finding as a sentence; `consequence` and `fix` are empty if all is well."""

    name: str
    severity: str
    says: str
    numbers: dict[str, float]
    examples: list[Example] = field(default_factory=list)
    consequence: str = ""
    fix: str = ""


def severity(count: int, total: int, settings: DoctorConfig, worst: str = "error") -> str:
    """The severity by the share of rows with a fault; see `DoctorConfig.tolerance` and `stop`."""
    share = count / total if total else 0.0
    if not count or share < settings.tolerance:
        return "info"
    return worst if share >= settings.stop else "warning"


def finding(
    name: str,
    level: str,
    says: str,
    numbers: dict[str, float],
    examples: Iterable[Example] = (),
    consequence: str = "",
    fix: str = "",
) -> Finding:
    """A finding; consequence and fix are left out if nothing is wrong."""
    if level == "info":
        consequence = fix = ""
    return Finding(name, level, says, numbers, list(examples), consequence, fix)


def excerpt(text: str, limit: int = 200) -> str:
    """The beginning of a text in one line, with its secrets masked."""
    line = " ".join(masked(text[: 20 * limit]).split())
    return line if len(line) <= limit else line[: limit - 2] + " …"


def share(count: float, total: float) -> str:
    """`3 of 200 (1.5%)`, or `none of 200`."""
    return f"{count:,} of {total:,} ({count / total:.1%})" if count else f"none of {total:,}"


def plural(count: int, one: str, several: str = "") -> str:
    """`1 row`, `2,000 rows`."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"
