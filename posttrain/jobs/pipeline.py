"""Run a pipeline: each stage that is not finished in its own process, then one table over all of them."""

import signal
import sys
import time
from dataclasses import replace
from typing import Any

from rich.markup import escape
from rich.table import Table

from posttrain import __version__
from posttrain.config import objective
from posttrain.config.schema import Origin, Run
from posttrain.console import console, print_plain, quiet_libraries
from posttrain.errors import PosttrainError
from posttrain.pipeline import process, table
from posttrain.pipeline.plan import Progress, Step, of_stage
from posttrain.pipeline.stages import Stage, Stages, read
from posttrain.runs import objective_value
from posttrain.runs.directory import RunDirectory
from posttrain.runs.durable import write_json
from posttrain.runs.waiting import wait_until_free


def pipeline(run: Run, origin: Origin) -> float | tuple[float, ...] | None:
    """Run the stages in order, reusing finished ones; returns the metric named by `objective`."""
    stages = read(run.stages, run.common)
    directory = RunDirectory.of(run, origin)
    steps = list(Progress(stages, run).steps())
    console.print(_plan(steps, directory.name))
    if run.dry_run:
        _check_stages(steps)
        for step in steps:
            print_plain(f"# {step.stage.name}\n{step.command}")
        return None
    with process.StageSignals() as signals:
        job = PipelineRun(directory, Progress(stages, run), origin, signals)
        with wait_until_free(
            directory, f"{directory.name}: another process is running this very pipeline", job.stop_if_asked
        ):
            directory.write_config(run)
            job.run()
    return _objective(run, job.progress)


def _check_stages(steps: list[Step]) -> None:
    """Check data and model of the trainings that need no other stage; raises `PosttrainError` with all errors."""
    new = [(step, step.directory) for step in steps if step.state == "run" and step.directory]
    new = [(step, directory) for step, directory in new if step.run.job == "train"]
    if not new:
        return
    quiet_libraries()
    from posttrain.jobs import train_plan

    errors = []
    for step, directory in new:
        try:
            train_plan.prepare(step.run, directory.path)
        except PosttrainError as error:
            errors.append(f"stages.{step.stage.name}: {error}")
    if errors:
        raise PosttrainError("\n".join(errors))


def _plan(steps: list[Step], title: str) -> Table:
    """A row per stage: its recipe, its parents, what will be done, and why."""
    result = Table(title=f"{title}: plan", title_justify="left")
    gated = any(step.stage.gates for step in steps)
    for name in ("stage", "what", "from", "state", "why", *(["gate"] if gated else [])):
        result.add_column(name, overflow="fold")
    for step in steps:
        what = step.run.trainer.kind if step.run.job == "train" else step.run.job
        row = [step.stage.name, what, ", ".join(step.parents), step.state, step.why]
        result.add_row(*map(escape, row), *([" and ".join(map(str, step.stage.gates))] if gated else []))
    return result


class PipelineRun:
    """One execution of a pipeline, recorded in `pipeline.json`."""

    def __init__(self, directory: RunDirectory, progress: Progress, origin: Origin, signals: process.StageSignals):
        self.directory = directory
        self.progress = progress
        self.origin = origin
        self.signals = signals
        self.started = time.time()
        self.record: dict[str, Any] = {
            "status": "running",
            "name": directory.name,
            "command": origin.command,
            "recipe": origin.recipe,
            "versions": {"posttrain": __version__},
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "stages": {name: {"status": "waiting"} for name in progress.stages.stages},
        }

    @property
    def stages(self) -> Stages:
        return self.progress.stages

    def run(self) -> None:
        """Run all stages; raises `PosttrainError` at the first that fails or does not meet its gate."""
        self._write()
        try:
            for stage in self.stages.stages.values():
                self._stage(stage)
        except PosttrainError as error:
            self._write(status="failed", error=str(error))
            raise
        except SystemExit:  # a signal
            self._write(status="interrupted")
            raise
        rounds = {name: self.progress.ended(name) for name in self.stages.rounds}
        results = {
            name: {"result": self.progress.resolve(name), "ended": ended[1] if ended else None}
            for name, ended in rounds.items()
        }
        self._write(status="finished", rounds=results, finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
        self._show(results)

    def _stage(self, stage: Stage) -> None:
        step = self.progress.step_for(stage)
        entry = self.record["stages"][stage.name]
        if step.state == "skip":
            entry.update(status="skipped", why=step.why)
            console.print(f"[bold]{stage.name}[/] is left out: {escape(step.why)}", soft_wrap=True)
            return
        assert step.directory is not None, "its parents come before it"
        entry.update(command=step.command, run=str(step.directory.path))
        before = time.time()
        ran = False
        if step.state != "reuse":
            with wait_until_free(step.directory, f"{stage.name}: another process is running it", self.stop_if_asked):
                # Another process may have finished it during the wait.
                if ran := not step.directory.finished():
                    self._execute(step, entry)
        if not ran:
            console.print(f"[bold]{stage.name}[/] is finished: {escape(str(step.directory.path))}", soft_wrap=True)
        self.progress.finished[stage.name] = step.directory
        metrics = self.progress.metrics(stage.name) or {}
        gates = [{"gate": str(g), "value": metrics.get(g.metric), "met": g.met(metrics)} for g in stage.gates]
        status = "finished" if ran else "reused"
        entry.update(status=status, seconds=round(time.time() - before, 1), metrics=metrics, gates=gates)
        self._write()
        self._gates(stage, step, metrics)

    def _execute(self, step: Step, entry: dict[str, Any]) -> None:
        assert step.directory is not None
        self.stop_if_asked()
        entry["status"] = "running"
        self._write()
        console.print(f"\n[bold]{step.stage.name}[/] ({escape(step.why)})")
        print_plain(step.command)
        log = self.directory.path / "logs" / f"{step.stage.name}.log"
        command = [*(step.stage.launch or (sys.executable,)), "-m", "posttrain", *step.overrides]
        status = process.execute(command, log, self.signals)
        while self.signals.number and step.directory.claimed_elsewhere():  # a launcher can end before its processes
            time.sleep(0.1)
        self.stop_if_asked()
        if status == 0 and step.directory.finished():
            return
        entry["status"] = "failed"
        why = f"killed by {signal.Signals(-status).name}; " if status < 0 else ""
        if -status == signal.SIGKILL:
            why += "by the system because memory ran out, or by a person; its last output: "
        raise PosttrainError(
            f"stages.{step.stage.name}: {why}{process.last_error(log)}\n"
            f"command  {step.command}\nlog      {log}\n"
            f"Once it is fixed, the same command resumes from there: {self.origin.command}"
        )

    def _gates(self, stage: Stage, step: Step, metrics: dict[str, float]) -> None:
        unmet = [gate for gate in stage.gates if not gate.met(metrics)]
        for gate in unmet:
            if gate.metric not in metrics:
                known = ", ".join(sorted(metrics)) or "no metrics"
                raise PosttrainError(f"{stage.path}.gate={gate}: not measured; there are {known}")
        if unmet:
            values = ", ".join(f"{gate} (it is {metrics[gate.metric]:.4g})" for gate in unmet)
            assert step.directory is not None
            raise PosttrainError(
                f"{stage.path}.gate: not met: {values}; the run is {step.directory.path}. "
                "Change the stage, or the gate, and call the pipeline again"
            )

    def stop_if_asked(self) -> None:
        if not self.signals.number:
            return
        print_plain(f"Stopped by {self.signals.signal}. Continue with: {self.origin.command}")
        raise SystemExit(128 + self.signals.number)

    def _write(self, **more: Any) -> None:
        self.record.update(more, seconds=round(time.time() - self.started, 1))
        write_json(self.directory.path / "pipeline.json", self.record)

    def _show(self, results: dict[str, dict[str, Any]]) -> None:
        found = table.tables(self.progress.finished)
        if found:
            table.save(self.directory.path / "table.md", found)
        for part in found:
            console.print(table.rich(part))
        for name, result in results.items():
            because = f" ({result['ended']})" if result["ended"] else ""
            print_plain(f"{name}: {result['result']} is the result{because}")
        last = list(self.progress.finished.values())[-1]
        print_plain(f"last run {last.path}")
        print_plain(f"pipeline {self.directory.path}")


def _objective(run: Run, progress: Progress) -> float | tuple[float, ...] | None:
    """The value that a sweep optimises: `STAGE.METRIC`, or a metric of the last stage."""

    def find(one: objective.Objective) -> float:
        name, metric = of_stage(progress.stages, one.metric)
        stage = progress.resolve(name)
        if stage not in progress.finished:
            raise PosttrainError(f"objective={one.text}: {name} did not measure it; there are no metrics")
        return objective_value.of_run(replace(one, metric=metric), progress.finished[stage], name)

    return objective_value.from_metrics(run.objective, find)
