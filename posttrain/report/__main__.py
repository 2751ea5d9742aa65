"""`posttrain report PATH…`: compare runs, in the terminal and as one HTML page (docs/report.md)."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.console import print_error, print_plain
from posttrain.errors import PosttrainError
from posttrain.report import tables
from posttrain.report.compare import compare
from posttrain.report.runs import find
from posttrain.runs.durable import write_atomic

if TYPE_CHECKING:
    from posttrain.report.compare import Comparison

FORMATS = {"csv": tables.as_csv, "json": tables.as_json, "markdown": tables.as_markdown}
# The file that marks a folder as a report.
MARKER = "report.json"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="posttrain report",
        description="Compare runs: reward against KL, over-optimisation, failure modes, and which is best.",
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="folders of runs, sweeps or pipelines, or above them"
    )
    parser.add_argument(
        "--metric",
        help="what to compare by, such as gold/rm or eval_rewards/accuracies (default: a gold reward, else another "
        "reward, else a held-out metric)",
    )
    parser.add_argument("--lower-is-better", action="store_true", help="less is better, if the name does not tell")
    parser.add_argument(
        "--kl-budget",
        type=_budgets,
        default=[],
        metavar="NATS",
        help="name the best run up to this KL, or several: 2,5,10",
    )
    parser.add_argument(
        "--reference", metavar="RUN", help="the model that KL is measured to (default: most runs' start)"
    )
    parser.add_argument(
        "--format", choices=("table", *FORMATS), default="table", help="how the runs are printed (default table)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="page and pictures (default: ./report; with another --format: none)",
    )
    return parser


def _budgets(text: str) -> list[float]:
    try:
        budgets = sorted({float(part) for part in text.split(",")})
    except ValueError:
        budgets = []
    if not budgets or any(not (math.isfinite(budget) and budget >= 0) for budget in budgets):
        raise argparse.ArgumentTypeError(f"{text}: expected numbers of nats, such as 5 or 2,5,10")
    return budgets


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        report(args)
    except PosttrainError as error:
        print_error(error)
        return 1
    except BrokenPipeError:
        raise
    except OSError as error:  # a name that is too long, a folder below a file, a full or read-only disk
        print_error(f"{error.filename or args.out}: {error.strerror or error}; choose another place")
        return 1
    return 0


def report(args: argparse.Namespace) -> None:
    """Read, compare, write the page, print."""
    out = args.out or (Path("report") if args.format == "table" else None)
    if out and out.exists() and not (out / MARKER).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise PosttrainError(f"--out={out}: holds something else than a report; choose another folder")
    comparison = compare(find(args.paths), args.metric, args.kl_budget, args.reference, args.lower_is_better)
    if out:
        write(comparison, out)
    if args.format == "table":
        if out:
            print_plain(f"page     {out / 'index.html'}\n")
        tables.show(comparison)
    else:
        sys.stdout.write(FORMATS[args.format](comparison))


def write(comparison: Comparison, out: Path) -> None:
    """`report.json`, the pictures as PNG, and `index.html`, in place of those of an earlier report."""
    from posttrain.report import page, plots, style

    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / MARKER, tables.as_json(comparison))
    figures = plots.draw(comparison)
    for name in page.PICTURES:
        (out / f"{name}.png").unlink(missing_ok=True)
    for name, figure in figures.items():
        temporary = out / f".{name}.incomplete.png"
        figure.savefig(temporary, dpi=150)
        temporary.replace(out / f"{name}.png")
    write_atomic(out / "index.html", page.render(comparison, figures))
    style.close(figures)


if __name__ == "__main__":
    sys.exit(main())
