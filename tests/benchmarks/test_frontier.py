"""The study of reward against KL: its budget, its order, and the chain on the random model, killed and gone on."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.config import probe_checks, recipes
from posttrain.config.schema import Run
from posttrain.errors import PosttrainError
from posttrain.jobs import preflight
from posttrain.pipeline import plan
from posttrain.pipeline.stages import Stage, Stages
from tests.helpers.runs import compose, rows

if not (recipes.ROOT / "benchmarks").is_dir():
    pytest.skip("benchmarks/ belongs to a checkout", allow_module_level=True)
sys.path.insert(0, str(recipes.ROOT / "benchmarks"))
import frontier
import frontier_budget
import frontier_results
import frontier_runner


def stage(name: str, *parents: str) -> Stage:
    return Stage(name, None, {}, {f"key{i}": parent for i, parent in enumerate(parents)})


# a, 10 s, then b (20 s) and c (5 s) from it; d (8 s) by itself.
DIAMOND = {s.name: s for s in (stage("d"), stage("a"), stage("b", "a"), stage("c", "a"))}
SECONDS = {"a": 10.0, "b": 20.0, "c": 5.0, "d": 8.0}


def test_the_longest_chain_comes_first():
    assert frontier_runner.by_rank(DIAMOND, SECONDS) == ["a", "b", "d", "c"]


@pytest.mark.parametrize(("jobs", "end"), [(1, 43), (2, 30), (3, 30)])
def test_makespan_by_hand(jobs: int, end: float):
    assert frontier_runner.makespan(DIAMOND, SECONDS, jobs) == end
    # With a there already, b and d run side by side on two, then c.
    assert frontier_runner.makespan(DIAMOND, {n: s for n, s in SECONDS.items() if n != "a"}, 2) == 20


def test_a_stage_that_nothing_can_run_beside_has_all_cores(monkeypatch, tmp_path):
    """`a` first, `b` and `c` side by side, `d` after both."""
    monkeypatch.setattr(frontier_runner, "divide", lambda jobs: [(0,), (1,)])
    stages = {s.name: s for s in (stage("a"), stage("b", "a"), stage("c", "a"), stage("d", "b", "c"))}
    given: dict[str, tuple[int, ...]] = {}
    both = threading.Barrier(2, timeout=30)

    def execute(step: Any, cores: tuple[int, ...]) -> int:
        given[step.stage.name] = cores
        if step.stage.name in ("b", "c"):
            both.wait()
        (tmp_path / step.stage.name / "done").touch()
        return 0

    def step_for(one: Stage) -> Any:
        folder = tmp_path / one.name
        folder.mkdir(exist_ok=True)
        directory = SimpleNamespace(path=folder, finished=(folder / "done").exists)
        return SimpleNamespace(stage=one, state="run", why="new", directory=directory)

    monkeypatch.setattr(frontier_runner, "wait_until_free", lambda *args: nullcontext())
    progress: Any = SimpleNamespace(stages=SimpleNamespace(stages=stages), finished={}, step_for=step_for)
    ended = frontier_runner.Study(progress, dict.fromkeys(stages, 1.0), 2, execute, tmp_path).run()
    assert {name: end.state for name, end in ended.items()} == dict.fromkeys(stages, "finished")
    assert sorted(given["a"]) == sorted(given["d"]) == [0, 1]
    assert {given["b"], given["c"]} == {(0,), (1,)}


def test_a_grid_multiplies_a_stage_and_leaves_the_others():
    entries = {"sft": {"recipe": "x"}, "dpo": {"trainer": {"args": {"beta": 9}}}, "chosen": {"recipe": "y"}}
    made = frontier.expand(entries, {"dpo": (0.1, 1.0), "chosen": ()}, (1, 2))
    assert list(made) == [
        "sft",
        *("dpo_beta0p1_seed1", "dpo_beta0p1_seed2", "dpo_beta1_seed1", "dpo_beta1_seed2"),
        *("chosen_seed1", "chosen_seed2"),
    ]
    assert made["sft"] == {"recipe": "x"}
    assert made["dpo_beta0p1_seed2"][frontier.BETA] == 0.1
    assert made["chosen_seed2"] == {"recipe": "y", frontier.SEED: 2, "probe.start": False}
    measured = [name for name, entry in made.items() if entry.get("probe.start", True)]
    assert measured == ["sft", "dpo_beta0p1_seed1"], "all start from one model"


def test_the_budget_follows_the_settings():
    """By hand, with 64 held-out prompts and texts of 24 tokens."""
    rates = frontier_budget.Rates(
        start=10, learn=100, pairs=80, rollout=120, read=200, draw=50, probe=0.5, evaluate=0.25
    )
    drawn = compose("+recipe=ppo_smollm2", "job=sample", "sample.prompts=100", "sample.n=4", "sample.max_new_tokens=20")
    assert frontier_budget.seconds(drawn[0], rates) == 10 + 400 * 20 / 50
    sft = ["+recipe=sft_smollm2", "data=imdb", "probe=none", "data.max_train_rows=1000"]
    assert frontier_budget.seconds(compose(*sft)[0], rates) == 10 + 1000 * 24 / 100 + 2 * 64 * 24 / 200
    twice = frontier_budget.seconds(compose(*sft, "trainer.args.num_train_epochs=2")[0], rates)
    assert twice - frontier_budget.seconds(compose(*sft)[0], rates) == 1000 * 24 / 100
    dpo = ["+recipe=dpo_smollm2", "data=imdb", "probe=none", "data.max_train_rows=1000"]
    pairs = 2 * 1000 * 24 * (1 / 80 + 1 / 200) + 2 * 2 * 64 * 2 * 24 / 200
    assert frontier_budget.seconds(compose(*dpo)[0], rates) == pytest.approx(10 + pairs)
    ppo = ["+recipe=ppo_smollm2", "data=imdb", "probe=imdb", "trainer.args.max_steps=8"]
    rollout = 16 * 24 / 50 + 16 * 24 * (3 / 200 + 2 / 120)
    assert frontier_budget.seconds(compose(*ppo)[0], rates) == pytest.approx(10 + 4 * rollout + 2 * 64 * (0.25 + 0.5))
    # Nothing evaluated; probed at 0, 3, 6 and 8.
    along = [*ppo, "trainer.args.eval_on_start=false", "probe.every=3"]
    assert frontier_budget.seconds(compose(*along)[0], rates) == pytest.approx(10 + 4 * rollout + 4 * 64 * 0.5)


@pytest.fixture(scope="module")
def small() -> tuple[Any, dict[str, Run]]:
    run = frontier.composed(frontier.SMALL, Path("outputs"))
    stages = plan.read(run.stages, run.common)
    once = {name: stage for name, stage in stages.stages.items() if not name.endswith(("_seed2", "_seed3"))}
    return stages, frontier.settings(Stages(once, {}), run)


def test_the_small_study_fits_into_its_ninety_minutes(small):
    stages, runs = small
    costs = {}
    for name, stage in stages.stages.items():
        run = runs[re.sub("_seed[23]$", "_seed1", name)]
        run = replace(run, probe=replace(run.probe, start=stage.settings.get("probe.start", True)))
        costs[name] = frontier_budget.seconds(run, frontier.SMALL.rates)
    assert all(second > frontier.SMALL.rates.start for second in costs.values())
    assert frontier_runner.makespan(stages.stages, costs, 2) < frontier.SMALL.minutes * 60
    assert frontier_runner.makespan(stages.stages, costs, 1) == pytest.approx(sum(costs.values()))


def test_the_small_study_compares_the_methods_on_the_same_256_prompts_with_three_seeds(small):
    stages, runs = small
    assert {run.probe.prompts for name, run in runs.items() if name.endswith("_seed1")} == {256}
    assert runs["held_out"].sample.prompts > 256, "some have no two completions that end"
    names = list(stages.stages)
    for method, points in frontier.SMALL.grid.items():
        found = [n for n in names if n.rpartition("_seed")[0].split("_beta")[0] == method]
        assert len(found) == 3 * max(len(points), 1)
        assert all(stages.stages[n].parents["data.eval_path"] == "held_out" for n in found)
        assert all(stages.stages[n].parents["model.init_from"] == "sft" for n in found)


def test_the_study_of_over_optimisation_has_the_stages_that_the_small_one_leaves_out():
    stages = {name: frontier.composed(frontier.SIZES[name], Path("outputs")).stages for name in frontier.SIZES}
    shared = {"sft", "held_out", "pairs"}
    few = {"reward_few", "best_of_n_few", *(f"overoptimize_seed{n}" for n in (1, 2))}
    assert set(stages["overoptimization"]) == {*shared, *few}
    assert set(stages["overoptimization"]) & set(stages["small"]) == shared
    medium = {name.split("_beta")[0].split("_seed")[0] for name in stages["medium"]}
    assert medium == {name.split("_beta")[0].split("_seed")[0] for name in [*stages["small"], *few]}


def test_gold_is_measured_in_every_run_and_trained_on_in_one_method_only(small):
    """Where it is the run's own reward, the probe measures it as that."""
    _, runs = small
    for name, run in runs.items():
        assert probe_checks.check(run) == []
        if run.job == "train" and run.probe.prompts:
            assert ("positive" in run.reward) == name.startswith("ppo_gold")
            assert ("positive" in run.probe.gold) == (not name.startswith("ppo_gold"))


def options(output: Path) -> argparse.Namespace:
    return argparse.Namespace(size="tiny", jobs=1, output=output, dry_run=False)


class Here:
    """Runs stages in this process and keeps their names; `fail` and `kill` name one that does not get through."""

    def __init__(self, fail: str = "", kill: str = ""):
        self.fail, self.kill, self.ran = fail, kill, []

    def __call__(self, step: plan.Step, cores: tuple[int, ...]) -> int:
        if step.stage.name == self.kill:
            raise KeyboardInterrupt
        if step.stage.name == self.fail:
            return 1
        self.ran.append(step.stage.name)
        run, origin = compose(*step.overrides)
        preflight.check(run)
        getattr(importlib.import_module(f"posttrain.jobs.{run.job}"), run.job)(run, origin)
        return 0


class Inline:
    """A pool of this thread: signal handlers, which training sets, belong to it."""

    def __init__(self, workers: int):
        pass

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def submit(self, function: Any, *args: Any) -> Future[int]:
        future: Future[int] = Future()
        future.set_result(function(*args))
        return future


CHAIN = ("sft", "held_out", "pairs", "reward_few", "overoptimize_seed1", "best_of_n_few")


@pytest.mark.usefixtures("few_rows")
@pytest.mark.timeout(900)  # six stages in one process: half a minute, or many on a busy machine
def test_the_chain_goes_on_where_it_was_killed_and_trains_nothing_twice(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(frontier_runner, "ThreadPoolExecutor", Inline)
    reported: list[set[str]] = []
    monkeypatch.setattr(frontier, "report", lambda output, finished: reported.append(set(finished)))
    whole = frontier.composed

    def fewer(size: Any, output: Path) -> Any:
        run = whole(size, output)
        return replace(run, stages={name: run.stages[name] for name in CHAIN})

    monkeypatch.setattr(frontier, "composed", fewer)
    out = tmp_path / "study"

    killed = Here(kill="pairs")
    with pytest.raises(KeyboardInterrupt):
        frontier.study(options(out), killed)
    assert killed.ran == ["sft"]
    assert not reported

    failed = Here(fail="reward_few")
    with pytest.raises(PosttrainError) as caught:
        frontier.study(options(out), failed)
    assert "reward_few failed: no output" in str(caught.value)
    assert "overoptimize_seed1 left out: reward_few is not there" in str(caught.value)
    assert set(failed.ran) == {"held_out", "pairs"}

    last = Here()
    assert frontier.study(options(out), last) == out
    assert set(last.ran) == {"reward_few", "overoptimize_seed1", "best_of_n_few"}
    assert sorted(killed.ran + failed.ran + last.ran) == sorted(CHAIN)
    assert reported == [{"sft", "held_out", "pairs"}, set(CHAIN)]

    table = (out / "frontier.md").read_text()
    assert "\n| overoptimize | 1 | " in table
    assert "not measured" not in table
    assert "\n| sft, the start of all | | 0 | " in table
    assert "\n| best of 4 by reward_few | | 0.64 | " in table, "log 4 - 3/4 nats"
    (over,) = out.glob("overoptimize_seed1-*")
    assert [row["step"] for row in rows(over / "metrics.jsonl") if frontier_results.GOLD[0] in row] == [0, 2, 4, 6]
    (best,) = out.glob("best_of_n_few-*")
    scored = [piece["rewards"] for piece in rows(best / "rewards.jsonl")]
    assert all(set(rewards) == {"rm", "positive"} for rewards in scored)
    (held_out,) = out.glob("held_out-*")
    prompts = json.loads((held_out / "run.json").read_text())["metrics"]["kept"]
    assert sum(len(rewards["rm"]) for rewards in scored) == 4 * prompts

    shutil.rmtree(over)
    with pytest.raises(PosttrainError):
        frontier.study(options(out), Here(fail="overoptimize_seed1"))
    assert "; 6 of 6 stages, about 0 s left" in capsys.readouterr().out, "what is there already is not waited for"


def test_two_methods_are_apart_equal_or_open(tmp_path):
    """Against a tenth of gold's range, 1 here; the last method's seeds lie too far apart to tell."""
    (tmp_path / "rewards.jsonl").write_text(json.dumps({"rewards": {"positive": [0.0] * 10 + [10.0] * 10}}))
    held_out: Any = SimpleNamespace(path=tmp_path)
    golds = {"dpo": [3.0, 3.1, 2.9], "kto": [1.0, 1.1, 0.9], "grpo": [1.1, 1.0, 1.2]}
    said = {row.split(" | ")[0].strip("| "): row.split(" | ")[-1].strip("| ") for row in pairs_of(golds, held_out)}
    assert said == {"dpo, kto": "apart", "dpo, grpo": "apart", "kto, grpo": "equal"}
    said = pairs_of({"dpo": [3.0, 0.0, 6.0], "kto": [1.0, 4.0, -2.0], "overoptimize": [9.0, 9.0]}, held_out)
    assert len(said) == 1
    assert said[0].endswith(" | open |")
    assert frontier_results._pairs({"dpo": [1.0], "kto": [2.0, 3.0]}, held_out) == []


def pairs_of(golds: dict[str, list[float]], held_out: Any) -> list[str]:
    return [line for line in frontier_results._pairs(golds, held_out)[3:] if line.startswith("| ")]


def test_stop_goes_to_every_process_that_runs(tmp_path):
    execute = frontier_runner.Processes(tmp_path, program=(sys.executable, "-c", "import time; time.sleep(60)"))
    step: Any = SimpleNamespace(stage=SimpleNamespace(name="a"), overrides=())
    status: list[int] = []
    thread = threading.Thread(target=lambda: status.append(execute(step, ())))
    thread.start()
    while not execute.running:
        time.sleep(0.01)
    execute.stop(signal.SIGTERM)
    thread.join(timeout=10)
    assert status == [-signal.SIGTERM]
    assert (tmp_path / "a.log").read_text().startswith("$ ")
    assert not execute.running
