"""Generated bad input for some minutes, in one process: `make fuzz`, or `python -m tests.fuzz --minutes 3 --seed 0`.

Configs: a recipe with a few settings that are wrong, odd or fine, drawn from the options of the libraries and our own
schema. Each must compose and pass, or be refused by a `PosttrainError`. What passes goes on as the plan does, before a
run directory exists: the libraries build the trainer's config, optimizer and adapter, and what they refuse must be said
with the setting at fault (`refused by the plan`: a model's layers, torch's compilers). Files: rows of data damaged in
content and in bytes, through the data room's loader. Anything else than a `PosttrainError` is a finding; the command
prints how to repeat it.
"""

import argparse
import json
import math
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from posttrain.config import options, ranges, trainers
from posttrain.errors import PosttrainError
from posttrain.jobs import preflight
from tests.helpers.runs import ENVIRONMENT, compose, write_pairs

ODD: tuple[Any, ...] = (
    *(-1, 0, 1, 2, 3, 7, 2**32, 10**30, -0.5, 0.3, 0.5, 1.5, 1e-5, math.nan, math.inf, -math.inf, True, False, None),
    *("", " ", "auto", "none", "all", "../x", "/dev/null", "a\nb", "no such", "é\x1b[2J", "x" * 300, "1e-4", "nan"),
    *([], [1], [-1, 2.5], ["a"], [[]], {}, {"a": 1}, {"a": {"b": math.nan}}),
)
KINDS = {name: trainers.of(name) for name in ("sft", "reward", "dpo", "kto", "grpo", "rloo", "ppo")}
CPU = {"use_cpu": True, "bf16": False, "fp16": False}


def settings(random_: random.Random) -> dict[str, Any]:
    """A few settings by their keys; most of the values are wrong."""
    kind = random_.choice(list(KINDS))
    known = options.options_of(KINDS[kind].config)
    ours = [path for path in ranges.SCHEMA_RANGES if "*" not in path]
    found: dict[str, Any] = {"": kind}
    for _ in range(random_.choice((1, 1, 1, 2, 3))):  # what passes as a whole is what the libraries are asked about
        place = random_.random()
        if place < 0.6:
            name = random_.choice(list(known))
            allowed = known[name].choices
            value = random_.choice(allowed) if allowed and random_.random() < 0.4 else random_.choice(ODD)
            found[f"trainer.args.{name}"] = value
        elif place < 0.75:
            name = random_.choice(list(options.options_of("LoraConfig")))
            found |= {"peft": "lora", f"peft.lora.{name}": random_.choice(ODD)}
        elif place < 0.8:
            name = random_.choice(list(options.options_of("BitsAndBytesConfig")))
            found |= {"peft": "qlora", f"peft.quantization.{name}": random_.choice(ODD)}
        elif place < 0.95:
            found[random_.choice([*ours, "name", "output_dir", "objective", "data.columns", "probe.texts"])] = (
                random_.choice(ODD)
            )
        else:
            found[random_.choice(("trainer.kidn", "lr", "data.mix", "stages", "common.x"))] = random_.choice(ODD)
    return found


def one_config(given: dict[str, Any]) -> str:
    """Compose and check one config; returns what became of it, raises for a finding."""
    from posttrain.config import composition_errors
    from posttrain.pipeline.overrides import to_overrides

    kind = given[""]
    flat = {key: value for key, value in given.items() if key}
    words = to_overrides({"trainer": kind, "model": "tiny", "data": "squad", **flat})
    if kind in ("grpo", "rloo", "ppo"):
        words.append("reward=length")
    if kind == "ppo" and "peft" not in flat:
        words.append("peft=lora")
    try:
        run = compose(*words)[0]
        preflight.check(run)
    except PosttrainError as error:
        return "refused" if str(error).strip() else _empty()
    except Exception as error:
        if composition_errors.explain_hydra_error(error) is None:
            raise
        return "refused by the grammar"
    try:
        _libraries(run)
    except PosttrainError as error:
        if not any(key in line.partition(": ")[0] for key in flat for line in str(error).splitlines()):
            raise
        return "refused by the plan"
    return "taken"


def _empty() -> str:
    raise AssertionError("an empty message")


def _libraries(run: Any) -> None:
    """What the plan asks of the libraries, before a run directory and weights."""
    from posttrain.models import architecture
    from posttrain.runs.pretrained import pretrained_path
    from posttrain.training import library_checks

    own = {**run.trainer.args, **CPU, "eval_strategy": run.trainer.args.get("eval_strategy", "epoch")}
    library_checks.check_with_libraries(run.trainer.kind, own)
    if run.job == "train":
        architecture.architecture(run, pretrained_path(run.model.path), None)


def rows(random_: random.Random) -> list[Any]:
    """Rows of preference pairs, some of them damaged."""
    turn = {"role": "user", "content": "q"}
    made: list[Any] = []
    for index in range(random_.randint(0, 6)):
        answer = [{"role": "assistant", "content": f"a{index}"}]
        row: Any = {"prompt": [turn], "chosen": answer, "rejected": [{"role": "assistant", "content": "no"}]}
        for _ in range(random_.randint(0, 2)):
            key = random_.choice(["prompt", "chosen", "rejected", "extra", "label", "messages", "tools"])
            if random_.random() < 0.3:
                row.pop(key, None)
            else:
                row[key] = random_.choice(
                    [*ODD, [turn], [{"role": "bot", "content": 1}], [{"content": "x"}], [turn, turn]]
                )
        made.append(row if random_.random() < 0.95 else random_.choice(ODD))
    return made


def one_file(random_: random.Random, folder: Path) -> str:
    """Write one file of data, damaged or not, and load it as the job would."""
    from posttrain.config.schema import DataConfig
    from posttrain.data.loading import load

    made, ending = rows(random_), random_.choice(("jsonl", "json", "csv"))
    text = "\n".join(json.dumps(row) for row in made) if ending != "json" else json.dumps(made)
    if ending == "csv":
        text = "prompt,chosen,rejected\n" + "\n".join(
            ",".join(map(str, row)) if isinstance(row, dict) else "x" for row in made
        )
    content = bytearray(text.encode(errors="surrogatepass"))
    for _ in range(random_.choice((0, 0, 1, 3))):
        place = random_.randrange(len(content) + 1)
        content[place : place + random_.randint(0, 3)] = random_.randbytes(random_.randint(0, 3))
    path = folder / f"data.{ending}"
    path.write_bytes(bytes(content))
    config = DataConfig(
        path=str(path), eval_size=random_.choice((0.0, 1.0, 0.5)), on_error=random_.choice(("stop", "skip"))
    )
    try:
        load(config, random_.choice(list(KINDS)))
    except PosttrainError as error:
        return "refused" if str(error).strip() else _empty()
    return "taken"


def main(argv: list[str] | None = None) -> int:
    """Run both kinds until the time is over; returns 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0, help="the first case; each has the next number")
    parser.add_argument("--only", choices=("configs", "files"))
    parser.add_argument("--cases", type=int, help="as many and no more")
    args = parser.parse_args(argv)
    os.environ.update(ENVIRONMENT)
    found: dict[str, str] = {}
    counts: Counter[str] = Counter()
    end, case = time.monotonic() + 60 * args.minutes, args.seed
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        write_pairs(Path("pairs.jsonl"))
        while time.monotonic() < end and (args.cases is None or case < args.seed + args.cases):
            random_ = random.Random(case)
            what = args.only or ("configs" if case % 3 else "files")
            given = settings(random_) if what == "configs" else None
            try:
                outcome = one_config(given) if given is not None else one_file(random_, Path(name))
            except Exception as error:
                outcome = "unnamed" if isinstance(error, PosttrainError) else "traceback"
                where = traceback.extract_tb(error.__traceback__)[-1]
                key = f"{type(error).__name__} {str(error)[:160]!r} ({Path(where.filename).name}:{where.lineno})"
                if key not in found:
                    found[key] = f"--seed {case} --cases 1 --only {what}" + (f"  {given}" if given else "")
                    print(f"{outcome}: {key}\n    {found[key]}", flush=True)
            counts[f"{what} {outcome}"] += 1
            case += 1
            left = [
                p.name
                for p in Path(name).iterdir()
                if p.name not in ("pairs.jsonl", "data.jsonl", "data.json", "data.csv")
            ]
            if left:
                found[f"left {left}"] = f"--seed {case - 1}"
                print(f"left behind: {left}, --seed {case - 1}", flush=True)
                for leftover in left:
                    Path(name, leftover).rename(Path(tempfile.mkdtemp()) / "left")
        os.chdir("/")
    print(f"{case - args.seed} cases: {dict(sorted(counts.items()))}; {len(found)} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
