"""How long the data doctor takes: synthetic preference pairs as conversations, everything but label noise.

    OMP_NUM_THREADS=1 python benchmarks/doctor.py [--pairs 100000] [--noise]

Words are drawn by Zipf's law from 20,000 made-up ones; a prompt has about 60 of them, an answer about 80. One pair in a
hundred is a near copy of another, so that there are clusters to find. The time is that of the whole command, from the
start of Python to the written report.
"""

import argparse
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def write(path: Path, count: int) -> None:
    """`count` pairs as JSON lines."""
    draw = random.Random(0)
    letters = "etaoinshrdlucmfw"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 10))) for _ in range(20_000)]
    weights = list(itertools.accumulate(1 / (rank + 1) for rank in range(len(words))))

    def text(about: int) -> str:
        return " ".join(draw.choices(words, cum_weights=weights, k=draw.randint(about // 2, about * 3 // 2)))

    with path.open("w") as file:
        prompt, chosen, rejected = text(60), text(80), text(80)
        for index in range(count):
            if index % 100:
                prompt, chosen, rejected = text(60), text(80), text(80)
            else:
                chosen += f" {index}"
            row = {"prompt": [{"role": "user", "content": prompt}]}
            for side, answer in (("chosen", chosen), ("rejected", rejected)):
                row[side] = [{"role": "assistant", "content": answer}]
            file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--noise", action="store_true", help="label noise as well")
    parser.add_argument("--model", default="embedded:tiny", help="whose tokenizer")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "pairs.jsonl", given.pairs)
        command = [sys.executable, "-m", "posttrain.doctor", "trainer=dpo", "data.path=pairs.jsonl", "tracking=none"]
        command += [f"model.path={given.model}", "doctor.fail_on=never", f"doctor.noise={str(given.noise).lower()}"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": f"{folder}/cache"}
        began = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"failed:\n{done.stderr[-2000:]}")
        (report,) = Path(folder).glob("outputs/*/run.json")
        inside = json.loads(report.read_text())["seconds"]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    computing = used.ru_utime + used.ru_stime
    print(
        f"{given.pairs:,} pairs: {seconds:.1f} s in all, the checks {inside:.1f} s of them; {computing:.1f} s of CPU "
        f"time, {used.ru_maxrss / 1024:,.0f} MB of memory at most"
    )


if __name__ == "__main__":
    main()
