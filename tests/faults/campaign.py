"""A campaign of kills at random moments: every run that was stopped and continued must equal one that never was.

    make faults KILLS=50        or        python -m tests.faults.campaign --kills 50 --seed 1

Each trial starts a training in a forked child of this process (the libraries are imported once), ends it by SIGKILL,
SIGTERM or SIGINT at a random moment, now and then a second time, and lets it go on. Prints how many ended identical
in weights, metrics, samples and run.json, which differ and in what, and which never ended.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.test_stops import KINDS, command
from tests.helpers.faults import differences, directory, run, start, wait
from tests.helpers.runs import ENVIRONMENT, write_pairs

# Ways of every trainer beside its plain one: schedules, saves and evaluations that fall otherwise.
WAYS: tuple[tuple[str, ...], ...] = (
    (),
    ("trainer.args.eval_strategy=steps", "trainer.args.eval_steps=2", "trainer.args.save_steps=1"),
    ("trainer.args.save_strategy=epoch", "trainer.args.logging_strategy=epoch"),
    ("trainer.args.gradient_accumulation_steps=2", "trainer.args.lr_scheduler_type=cosine"),
)
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no trial after these")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="only these trainers")
    options = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    began, draw = time.monotonic(), random.Random(options.seed)
    counts: Counter[str] = Counter()
    kills = 0
    wholes: dict[tuple[str, ...], tuple[Any, float]] = {}
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        while kills < options.kills and time.monotonic() - began < options.seconds:
            kind, way = options.kinds[counts.total() % len(options.kinds)], draw.choice(WAYS)
            args = command(kind, *way)
            if args not in wholes:
                wholes[args] = _whole(Path(folder) / f"whole-{len(wholes)}", args)
            verdict, said, count = _trial(Path(folder) / f"trial-{counts.total()}", args, *wholes[args], draw)
            counts[verdict] += 1
            kills += count
            print(f"{counts.total():4} {kind:7} {' '.join(way) or 'plain':70.70} {said}", flush=True)
    seconds = time.monotonic() - began
    print(
        f"{kills} kills in {counts.total()} runs, {seconds:.0f} s: survived {counts['survived']}, "
        f"differing {counts['differing']}, stuck {counts['stuck']}"
    )
    return 0 if counts.total() == counts["survived"] else 1


def _whole(folder: Path, args: tuple[str, ...]) -> tuple[Any, float]:
    """The run that nothing stops, and the seconds that it takes."""
    before = time.monotonic()
    status = _child(folder, args)
    if status:
        raise SystemExit(f"{' '.join(args)}: ended with {status}\n{(folder / 'log.txt').read_text()}")
    return _directory(folder, args), time.monotonic() - before


def _trial(
    folder: Path, args: tuple[str, ...], whole: Any, seconds: float, draw: random.Random
) -> tuple[str, str, int]:
    """Stop a run once or twice and let it go on; returns the verdict, a line about it, and the number of kills."""
    story, kills = [], 0
    for _ in range(draw.choice((1, 1, 2))):
        number, moment = draw.choice(SIGNALS), draw.uniform(0.05, 0.9) * seconds

        def stop(child: int, number: int = number, moment: float = moment) -> None:
            time.sleep(moment)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)

        try:
            status = _child(folder, args, stop)
        except AssertionError:
            return "stuck", f"{' '.join(story)} {number.name} at {moment:.1f} s: stuck", kills
        kills += status != 0
        story.append(f"{number.name} at {moment:.1f} s -> {status};")
        if status not in (0, -number, 128 + number):
            log = (folder / "log.txt").read_text()[-1500:]
            return "differing", f"{' '.join(story)} ended otherwise: {log}", kills
    try:
        status = _child(folder, args)
    except AssertionError:
        return "stuck", f"{' '.join(story)} stuck when it went on", kills
    if status:
        return "differing", f"{' '.join(story)} failed: {(folder / 'log.txt').read_text()[-3000:]}", kills
    found = differences(whole, _directory(folder, args))
    if not found:
        shutil.rmtree(folder)
    return ("differing" if found else "survived"), f"{' '.join(story)} {found or 'identical'}", kills


def _child(folder: Path, args: tuple[str, ...], stop: Callable[[int], None] | None = None) -> int:
    folder.mkdir(exist_ok=True)
    if not (folder / "pairs.jsonl").exists():
        write_pairs(folder / "pairs.jsonl")

    def work() -> None:
        from posttrain.training.signals import ExitOnSignal

        os.chdir(folder)
        with ExitOnSignal("the same command"):  # as the command does it
            run(*args)

    child = start(work, folder / "log.txt")
    if stop is not None:
        stop(child)
    return wait(child, 300)


def _directory(folder: Path, args: tuple[str, ...]) -> Any:
    here = os.getcwd()
    os.chdir(folder)
    try:
        return directory(*args)
    finally:
        os.chdir(here)


if __name__ == "__main__":
    sys.exit(main())
