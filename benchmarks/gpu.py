"""Everything that only a GPU can show, in commands of at most 8 minutes on a card of 80 GB or more.

    make gpu                                              # or: python benchmarks/gpu.py [--out docs/gpu.json]
    python benchmarks/gpu.py --rehearse --out FILE        # every part on a CPU, with tiny shapes, in two minutes
    python benchmarks/gpu.py --only demo,drift            # some measurements, again
    make gpu-tables                                       # the tables of docs/performance.md and docs/memory.md

Measurements come in their order of worth (`benchmarks/gpu_measure.py` has each). The results file, with card, versions
and date, is written after every one. The same command goes on after a cut, with what is missing, what failed included;
one that there is no time left for is named and left for the next time. Nothing is downloaded but the embedded wheels.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "gpu.json"
LIBRARIES = ("torch", "trl", "transformers", "peft", "bitsandbytes", "accelerate")
# The parts in their order of worth: measurements that share a worker process, and a guess at the seconds of each on a
# card of 80 GB, below which none is begun.
PARTS: dict[str, dict[str, int]] = {
    "tests": {"tests": 50},
    "llama": {"sft": 60, "dpo": 60, "reward": 25, "grpo": 60, "ppo": 70, "ppo_separate": 70},
    "shared prompts": {"shared_1b": 60, "shared_8b": 60, "shared_1b_flex": 40, "shared_8b_flex": 40},
    "overhead": {"overhead": 60},
    "demo": {"demo": 110, "drift": 100},
}
MARK = "RESULT "

Launch = Callable[[Sequence[str], float], Iterator[tuple[str, dict[str, Any]]]]


class Results:
    """The results file: written whole after every measurement; an older one of the same card is taken up."""

    def __init__(self, path: Path, about: dict[str, Any]):
        self.path, self.about = path, about
        self.measurements: dict[str, Any] = {}
        if path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            if before["card"] != about["card"] or before["versions"] != about["versions"]:
                raise SystemExit(
                    f"{path}: measured on {before['card']} with other versions or another card than this "
                    f"({about['card']}); take another --out, or remove it"
                )
            self.measurements = before["measurements"]

    def missing(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if self.measurements.get(name, {}).get("status") != "done"]

    def add(self, name: str, result: dict[str, Any]) -> None:
        self.measurements[name] = result
        half = self.path.with_suffix(".half")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        half.write_text(json.dumps({**self.about, "measurements": self.measurements}, indent=1) + "\n", "utf-8")
        half.replace(self.path)


def session(results: Results, wanted: Sequence[str], seconds: float, launch: Launch) -> bool:
    """Measure what is missing of `wanted`, for at most `seconds`; returns whether all of it is there."""
    deadline = time.monotonic() + seconds
    for guesses in PARTS.values():
        left = results.missing([name for name in guesses if name in wanted])
        while left:
            room = deadline - time.monotonic()
            if room < guesses[left[0]]:
                print(f"{left[0]}: no time left ({room:.0f} s, some {guesses[left[0]]} needed)", flush=True)
                left = left[1:]
                continue
            begun = time.monotonic()
            for name, result in launch(tuple(left), room):
                result["seconds"] = round(time.monotonic() - begun, 1)
                results.add(name, result)
                print(f"{name}: {result['status']}, {result['seconds']} s  {_brief(result)}", flush=True)
                left.remove(name)
                begun = time.monotonic()
                if left and deadline - begun < guesses[left[0]]:
                    break  # the worker is ended, and the loop says what is left out
    return not results.missing(wanted)


def _brief(result: dict[str, Any]) -> str:
    if result["status"] == "failed":
        return str(result["error"]).strip().splitlines()[-1][:200]
    kept = {k: v for k, v in result.get("figures", {}).items() if isinstance(v, int | float | str)}
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in kept.items())[:200]


def worker(command: Sequence[str], names: Sequence[str], seconds: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """The results of a process that measures `names` in turn and prints a line for each.

    When it dies, or time is up, the measurement that it was at has failed; the rest is not measured.
    """
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [*command, ",".join(names)], stdout=subprocess.PIPE, stderr=errors, text=True, env=environment()
        )
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        waiting = list(names)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(MARK):
                    result = json.loads(line.removeprefix(MARK))
                    waiting.remove(name := result.pop("name"))
                    yield name, result
            process.wait()
            if waiting:
                errors.seek(0)
                late = "" if timer.is_alive() else f"stopped after {seconds:.0f} s; "
                why = f"{late}the worker ended with status {process.returncode}:\n{errors.read()[-2000:]}"
                yield waiting[0], {"status": "failed", "error": why}
        finally:
            timer.cancel()
            process.kill()
            process.wait()


def environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled", "CI": "true"}
    return {**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(paths)}


def work(names: Sequence[str], folder: Path, rehearse: bool) -> None:
    """Measure in this process and print each result; a failure is a result too."""
    import gpu_model

    place = gpu_model.Place(folder, gpu_model.REHEARSAL if rehearse else gpu_model.REAL)
    # What libraries print must not be taken for a result.
    out, sys.stdout = sys.stdout, sys.stderr
    for name in names:
        print(MARK + json.dumps({"name": name, **one(name, place)}), file=out, flush=True)


def one(name: str, place: Any) -> dict[str, Any]:
    """The result of a measurement, also where it fails."""
    import traceback

    import gpu_measure

    try:
        return {"status": "done", "figures": gpu_measure.measure(name, place)}
    except Exception:  # whatever it is, the other measurements are still worth having
        return {"status": "failed", "error": traceback.format_exc()[-3000:]}


def about(rehearse: bool) -> dict[str, Any]:
    """The card, versions and date that the results file carries."""
    import torch

    card, memory = "CPU", None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        card, memory = properties.name, round(properties.total_memory / 2**30, 1)
    elif not rehearse:
        raise SystemExit("no CUDA GPU here; --rehearse goes through every part on a CPU, with tiny shapes")
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    today = datetime.now(timezone.utc).date().isoformat()
    versions = {"python": sys.version.split()[0], "cuda": torch.version.cuda, **found}
    return {"card": card, "memory_gib": memory, "rehearsal": rehearse, "date": today, "versions": versions}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the results file")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "gpu", help="models and runs")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--only", help="names of measurements, with commas; done ones are measured again")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    folder = given.work.absolute() / ("rehearsal" if given.rehearse else "measured")
    folder.mkdir(parents=True, exist_ok=True)
    if given.worker:
        work(given.worker.split(","), folder, given.rehearse)
        return 0
    every = [name for part in PARTS.values() for name in part]
    wanted = given.only.split(",") if given.only else every
    if unknown := [name for name in wanted if name not in every]:
        parser.error(f"--only {unknown[0]}: no measurement; there are {', '.join(every)}")
    if given.rehearse and given.out == RESULTS:
        parser.error("--rehearse needs --out FILE, so that its figures do not come into the docs")
    results = Results(given.out, about(given.rehearse))
    if given.only:
        for name in wanted:
            results.measurements.pop(name, None)
    command = [
        sys.executable,
        __file__,
        "--work",
        str(given.work),
        *(["--rehearse"] if given.rehearse else []),
    ]

    def launch(names: Sequence[str], seconds: float) -> Iterator[tuple[str, dict[str, Any]]]:
        return worker([*command, "--worker"], names, seconds)

    whole = session(results, wanted, given.minutes * 60, launch)
    missing = results.missing(wanted)
    print(f"{given.out}: " + ("all measured" if whole else f"missing: {', '.join(missing)}; the same command goes on"))
    return 0 if whole else 1


if __name__ == "__main__":
    raise SystemExit(main())
