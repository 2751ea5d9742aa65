"""Reward against KL for every method, on one picture: the study in docs/studies/frontier.md, two runs at a time.

    python benchmarks/frontier.py --size small --dry-run       # what would run, and how long each takes
    python benchmarks/frontier.py --size small                 # three seeds: 90 minutes on 2 CPU cores
    python benchmarks/frontier.py --size overoptimization      # PPO against a poor reward model, two seeds
    python benchmarks/frontier.py --size medium                # all of it with more betas: a night
    python benchmarks/frontier.py --size full                  # more data, more points, three seeds: for a GPU
    python benchmarks/frontier.py --size tiny                  # the random model: the chain, end to end, no result

The stages are those of recipes/frontier_smollm2.yaml; a stage with a grid below runs once for each value and seed.
Finished runs are used again, so the same command goes on after a stop or a kill.
"""

import argparse
import itertools
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from frontier_budget import CORE, TINY, Rates, seconds
from frontier_results import results
from frontier_runner import Processes, Study, clock, makespan
from rich.table import Table

from posttrain.config import recipes
from posttrain.config.schema import Run
from posttrain.console import console, print_plain
from posttrain.errors import PosttrainError
from posttrain.jobs import preflight
from posttrain.pipeline import plan
from posttrain.pipeline.overrides import quote, run_of
from posttrain.pipeline.stages import Stages
from posttrain.runs.directory import RunDirectory
from posttrain.runs.durable import write_atomic

RECIPE = "frontier_smollm2"
SEED, BETA = "trainer.args.seed", "trainer.args.beta"


@dataclass(frozen=True)
class Size:
    """Settings over those of the recipe, flat; `grid` gives a stage values of beta (none: the recipe's own).

    Each point of the grid runs with every seed, `jobs` runs at a time; `minutes` is what it has to end within. Stages
    in `without` are left out.
    """

    grid: Mapping[str, tuple[float, ...]]
    seeds: tuple[int, ...]
    jobs: int
    rates: Rates
    minutes: int | None = None
    common: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    without: frozenset[str] = frozenset()


ROWS, STEPS = "data.max_train_rows", "trainer.args.max_steps"


def _tiny() -> Size:
    """The random model: its tokens are bytes, its completions do not end. Methods learn fast, or all were one point."""
    fast = {"trainer.args.learning_rate": 1e-2}
    learn = {"trainer.args.max_length": 256, "trainer.args.per_device_train_batch_size": 8}
    draw = {ROWS: 64, "trainer.args.max_completion_length": 8, "trainer.args.per_device_train_batch_size": 8}
    sample = {"sample.max_new_tokens": 8, "sample.unfinished": True}
    return Size(
        grid={"chosen": (), "dpo": (0.1,), "kto": (), "ppo": (0.1,), "ppo_gold": (), "grpo": (), "overoptimize": ()},
        seeds=(1,),
        jobs=2,
        rates=TINY,
        common={
            **{"model": "tiny", "data.max_eval_rows": 8, "trainer.args.bf16": False},
            **{"probe.prompts": 8, "probe.max_new_tokens": 8},
        },
        stages={
            **{name: {**learn, ROWS: 16} for name in ("sft", "reward", "reward_few")},
            **{name: {**learn, **fast, ROWS: 16} for name in ("chosen", "dpo", "kto")},
            **{name: {**draw, **fast, STEPS: 4} for name in ("ppo", "ppo_gold", "grpo")},
            "overoptimize": {**draw, **fast, STEPS: 6, "probe.every": 2},
            "held_out": {**sample, "sample.prompts": 8},
            "pairs": {**sample, "sample.prompts": 24},
            **{name: {**sample, "sample.n": 4} for name in ("best_of_n", "best_of_n_few")},
        },
    )


MANY_PROMPTS: dict[str, Any] = {
    "common": {"data.max_eval_rows": 256, "probe.prompts": 256},
    "stages": {"held_out": {"sample.prompts": 288}, "overoptimize": {"probe.prompts": 64}},
}
POOR_REWARD = frozenset({"reward_few", "overoptimize", "best_of_n_few"})
# 256 held-out prompts and three seeds; each method at a beta that should end about 1.5 nats from the start.
SMALL = Size(
    grid={"chosen": (), "dpo": (0.2,), "kto": (0.1,), "grpo": (0.05,), "ppo": (0.05,), "ppo_gold": (0.05,)},
    seeds=(1, 2, 3),
    jobs=2,
    rates=CORE,
    minutes=90,
    without=POOR_REWARD,
    **MANY_PROMPTS,
)
OVEROPTIMIZATION = Size(
    grid={"overoptimize": ()},
    seeds=(1, 2),
    jobs=2,
    rates=CORE,
    minutes=90,
    without=frozenset({*SMALL.grid, "reward_pairs", "reward", "best_of_n"}),
    **MANY_PROMPTS,
)
# All stages, with several values of beta.
MEDIUM = Size(
    grid={
        **{"chosen": (), "dpo": (0.03, 0.1, 0.2, 1.0), "kto": (0.03, 0.1, 0.3), "grpo": (0.02, 0.05, 0.1)},
        **{"ppo": (0.02, 0.05, 0.15), "ppo_gold": (0.02, 0.05, 0.15), "overoptimize": ()},
    },
    seeds=(1, 2, 3),
    jobs=2,
    rates=CORE,
    minutes=600,
    **MANY_PROMPTS,
)
FULL = Size(
    grid={
        **{"chosen": (), "dpo": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0), "kto": (0.03, 0.1, 0.3), "grpo": (0.02, 0.1, 0.5)},
        **{"ppo": (0.02, 0.05, 0.1, 0.2, 0.5), "ppo_gold": (0.02, 0.05, 0.1, 0.2, 0.5), "overoptimize": ()},
    },
    seeds=(1, 2, 3),
    jobs=1,
    rates=CORE,
    common={"data.max_eval_rows": 256, "probe.prompts": 256},
    stages={
        **{"sft": {ROWS: 8192}, "held_out": {"sample.prompts": 256}, "pairs": {"sample.prompts": 4096}},
        **{name: {ROWS: 3900} for name in ("reward", "chosen", "dpo", "kto")},
        **{"reward_few": {ROWS: 128}, "best_of_n": {"sample.n": 64}},
        **{name: {ROWS: 8192, STEPS: 200} for name in ("ppo", "ppo_gold")},
        "grpo": {ROWS: 8192, STEPS: 100},
        "overoptimize": {ROWS: 8192, STEPS: 400, "probe.every": 40},
    },
)
SIZES = {"tiny": _tiny(), "small": SMALL, "overoptimization": OVEROPTIMIZATION, "medium": MEDIUM, "full": FULL}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--jobs", type=int, help="runs at a time (default: 2 on a CPU, 1 for the full size)")
    parser.add_argument("--output", type=Path, help="default: outputs/frontier-SIZE")
    parser.add_argument("--dry-run", action="store_true", help="the plan and its budget; nothing is run")
    options = parser.parse_args(arguments)
    try:
        study(options)
    except PosttrainError as error:
        sys.exit(f"{error}")


def study(options: argparse.Namespace, execute: Any = None) -> Path:
    """Run what is not finished, and report; the output folder; `execute` runs a stage (by default, a process)."""
    size = SIZES[options.size]
    output = options.output or Path(f"outputs/frontier-{options.size}")
    jobs = options.jobs or size.jobs
    run = composed(size, output)
    stages = plan.check(run, preflight.check)
    progress = plan.Progress(stages, run)
    expected = {name: seconds(each, size.rates) for name, each in settings(stages, run).items()}
    console.print(budget(stages, progress, expected, jobs, size))
    if options.dry_run:
        return output
    logs = output / "logs"
    ended = Study(progress, expected, jobs, execute or Processes(logs), logs).run()
    table = results(progress.finished, expected, ended, options.size)
    write_atomic(output / "frontier.md", table)
    print_plain(table)
    report(output, progress.finished)
    if lost := {name: end for name, end in ended.items() if name not in progress.finished}:
        lines = "\n".join(f"{name} {end.state}: {end.why}" for name, end in lost.items())
        raise PosttrainError(f"{lines}\nRun the same command again after the fix; it resumes.")
    return output


def composed(size: Size, output: Path) -> Run:
    """The pipeline with its stages multiplied by grid and seeds."""
    recipes.register()
    run = run_of((f"+recipe={RECIPE}", "tracking=none", f"output_dir={quote(str(output))}"))
    stages = {
        name: {**entry, **size.stages.get(name, {})} for name, entry in run.stages.items() if name not in size.without
    }
    return replace(run, stages=expand(stages, size.grid, size.seeds), common={**run.common, **size.common})


def expand(entries: Mapping[str, Any], grid: Mapping[str, tuple[float, ...]], seeds: tuple[int, ...]) -> dict[str, Any]:
    """Stages named in `grid` once for each beta and seed: `dpo` becomes `dpo_beta0p1_seed1`, ...

    All start from the same model, so only the first run measures the start; over-optimisation compares with it.
    """
    stages: dict[str, Any] = {}
    start: dict[str, Any] = {}
    for name, entry in entries.items():
        if name not in grid:
            stages[name] = entry
            continue
        for beta, seed in itertools.product(grid[name] or (None,), seeds):
            point = name if beta is None else f"{name}_beta{beta:g}".replace(".", "p")
            measured = {} if name == "overoptimize" else start
            stages[f"{point}_seed{seed}"] = {**entry, SEED: seed, **({} if beta is None else {BETA: beta}), **measured}
            start = {"probe.start": False}
    return stages


def settings(stages: Stages, run: Run) -> dict[str, Run]:
    """The run that each stage is, wherever its parents will lie."""
    below = plan.shared(run)
    return {name: plan.run_of(stage, run.output_dir, below, {}) for name, stage in stages.stages.items()}


def budget(stages: Stages, progress: plan.Progress, expected: Mapping[str, float], jobs: int, size: Size) -> Table:
    """A row per stage, and what is left to do in all."""
    steps = list(progress.steps())
    left = {step.stage.name: expected[step.stage.name] for step in steps if step.state != "reuse"}
    progress.finished.clear()  # the study looks for itself, in its own order
    whole = makespan(stages.stages, expected, jobs)
    limit = f" of {size.minutes} min" if size.minutes else ""
    result = Table(title="stages", title_justify="left", show_footer=True)
    total = f"{clock(sum(expected.values()))} on one core"
    on_cores = f"{clock(whole)}{limit} on {jobs}; {clock(makespan(stages.stages, left, jobs))} left"
    for name, footer in (("stage", f"{len(steps)}"), ("from", on_cores), ("state", ""), ("expected", total)):
        result.add_column(name, footer=footer, overflow="fold")
    for step in steps:
        result.add_row(step.stage.name, ", ".join(step.parents), step.state, clock(expected[step.stage.name]))
    return result


def report(output: Path, finished: Mapping[str, RunDirectory]) -> None:
    """`posttrain.report` over the methods, and over what pursues the reward model of few comparisons."""
    few = {name: run for name, run in finished.items() if name.startswith(("overoptimize", "best_of_n_few"))}
    # SFT and the reward models have no KL; the pairs are samples of the start, too, but chosen by gold.
    shared = {"sft", "held_out", "pairs", "reward_pairs", "reward", "reward_few"}
    methods = {name: run for name, run in finished.items() if name not in {*few, *shared}}
    for folder, runs in (("report", methods), ("report-overoptimization", few)):
        if not (paths := [str(run.path) for run in runs.values()]):
            continue
        command = [sys.executable, "-m", "posttrain.report", *paths, "--out", str(output / folder)]
        if subprocess.run(command, check=False).returncode:
            print_plain(f"The report failed; to repeat it alone: {shlex.join(command)}")


if __name__ == "__main__":
    main()
