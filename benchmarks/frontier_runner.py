"""The stages of a pipeline, several at a time: each a process of its own, on processor cores of its own.

A stage that nothing can run beside gets all cores. A stage's run directory says whether it is finished, so a study that
was stopped, however it was, goes on where it was: finished stages are used again, an interrupted one continues from its
checkpoint, one that still runs is waited for.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from posttrain.console import print_plain
from posttrain.pipeline.plan import Progress, Step
from posttrain.pipeline.process import last_error
from posttrain.pipeline.stages import Stage
from posttrain.runs.waiting import wait_until_free
from posttrain.training.signals import Signals


@dataclass
class Processes:
    """Starts a stage's command; `stop` passes a signal to all that run, which save and end."""

    logs: Path
    program: tuple[str, ...] = (sys.executable, "-m", "posttrain")
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __call__(self, step: Step, cores: tuple[int, ...]) -> int:
        """Exit status of the stage's command; its output goes to `logs`."""
        command = [*self.program, *step.overrides]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
        if cores:
            environment["OMP_NUM_THREADS"] = str(len(cores))
        self.logs.mkdir(parents=True, exist_ok=True)
        with log_of(self.logs, step.stage.name).open("ab") as sink:
            sink.write(f"$ {shlex.join(command)}\n".encode())
            sink.flush()
            # A session of its own, or Ctrl-C would reach it twice.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=environment, start_new_session=True
            )
            if cores:
                os.sched_setaffinity(process.pid, cores)
            self.running[step.stage.name] = process
            try:
                return process.wait()
            finally:
                del self.running[step.stage.name]

    def stop(self, number: int) -> None:
        for process in list(self.running.values()):
            if process.poll() is None:
                os.killpg(process.pid, number)


Execute = Callable[[Step, tuple[int, ...]], int]


class Stopped(Exception):
    """A stage was not started, because a signal came."""


@dataclass
class Ended:
    """What became of a stage: reused, finished, failed or left out; `seconds` it took this time."""

    state: str
    seconds: float = 0.0
    why: str = ""


class Forwarded(Signals):
    """SIGTERM and Ctrl-C, noted, and passed to `stop`."""

    def __init__(self, stop: Callable[[int], None]):
        super().__init__()
        self.stop = stop

    def _note(self, number: int, frame: FrameType | None) -> None:
        super()._note(number, frame)
        self.stop(number)


class Study:
    """Runs the stages of `progress`, the ones that most others wait for first.

    `seconds` are what each stage is expected to take; `execute` runs one and returns its exit status.
    """

    def __init__(self, progress: Progress, seconds: Mapping[str, float], jobs: int, execute: Execute, logs: Path):
        self.progress = progress
        self.stages = progress.stages.stages
        self.seconds = seconds
        self.execute = execute
        self.logs = logs
        self.cores = divide(jobs)
        self.ended: dict[str, Ended] = {}
        self.order = by_rank(self.stages, seconds)
        self.signals = Forwarded(execute.stop if isinstance(execute, Processes) else lambda number: None)

    def run(self) -> dict[str, Ended]:
        """All stages; those after one that failed are left out. Raises `SystemExit` when a signal came."""
        running: dict[Future[int], tuple[Step, float, list[tuple[int, ...]]]] = {}
        free = list(self.cores)
        with self.signals, ThreadPoolExecutor(len(self.cores)) as pool:
            while True:
                while free and (step := self._next({step.stage.name for step, *_ in running.values()})):
                    taken = [free.pop(0)]
                    if not running and not self._next({step.stage.name}):  # nothing can run beside it
                        taken += free
                        free = []
                    print_plain(f"{time.strftime('%H:%M:%S')}  {step.stage.name} starts ({step.why})")
                    future = pool.submit(self._turn, step, tuple(core for share in taken for core in share))
                    running[future] = (step, time.monotonic(), taken)
                if not running:
                    break
                for future in wait(running, timeout=0.2, return_when=FIRST_COMPLETED).done:
                    step, began, taken = running.pop(future)
                    free += taken
                    self._end(step, future, time.monotonic() - began, [began for _, began, _ in running.values()])
        if self.signals.number:
            print_plain(f"Stopped by {self.signals.signal}; the same command goes on from here")
            raise SystemExit(128 + self.signals.number)
        return self.ended

    def _next(self, running: set[str]) -> Step | None:
        """The next stage whose parents are finished; what is finished already, or cannot be, is noted on the way."""
        if self.signals.number:
            return None
        first = None
        for name in self.order:  # parents stand before their children
            if name in self.ended or name in running:
                continue
            parents = set(self.stages[name].parents.values())
            if lost := [parent for parent in parents & self.ended.keys() if parent not in self.progress.finished]:
                self.ended[name] = Ended("left out", why=f"{lost[0]} is not there")
            elif parents <= self.progress.finished.keys():
                step = self.progress.step_for(self.stages[name])
                if step.state == "reuse":
                    assert step.directory is not None
                    self.progress.finished[name] = step.directory
                    self.ended[name] = Ended("reused")
                else:
                    first = first or step
        return first

    def _turn(self, step: Step, cores: tuple[int, ...]) -> int:
        """Run the stage, unless a process that a killed study left behind finishes it."""
        assert step.directory is not None
        message = f"{step.stage.name}: another process is running it"
        with wait_until_free(step.directory, message, self._stop_if_asked):
            self._stop_if_asked()
            return 0 if step.directory.finished() else self.execute(step, cores)

    def _stop_if_asked(self) -> None:
        if self.signals.number:
            raise Stopped

    def _end(self, step: Step, future: Future[int], seconds: float, began: list[float]) -> None:
        name, directory = step.stage.name, step.directory
        assert directory is not None
        if (error := future.exception()) is not None and not isinstance(error, Stopped):
            raise error
        if directory.finished():
            self.progress.finished[name] = directory
            self.ended[name] = Ended("finished", seconds)
        elif self.signals.number:
            self.ended[name] = Ended("stopped", seconds)
        else:
            self.ended[name] = Ended("failed", seconds, last_error(log_of(self.logs, name)))
            print_plain(f"{name} failed: {self.ended[name].why}\n  log {log_of(self.logs, name)}")
        print_plain(
            f"{time.strftime('%H:%M:%S')}  {name} {self.ended[name].state} after {clock(seconds)}; "
            f"{len(self.ended)} of {len(self.stages)} stages, about {clock(self.left(began))} left"
        )

    def left(self, began: list[float]) -> float:
        """Seconds to the end, by what the stages so far took against what was expected."""
        done = [name for name, ended in self.ended.items() if ended.state == "finished"]
        expected = sum(self.seconds[name] for name in done)
        pace = sum(self.ended[name].seconds for name in done) / expected if expected else 1.0
        waiting = {name: self.seconds[name] for name in self.stages if name not in self.ended}
        spent = sum(time.monotonic() - moment for moment in began)
        return max(pace * makespan(self.stages, waiting, len(self.cores)) - spent / len(self.cores), 0.0)


def log_of(logs: Path, name: str) -> Path:
    return logs / f"{name}.log"


def divide(jobs: int) -> list[tuple[int, ...]]:
    """The processor cores of each of `jobs` processes; none are assigned to one alone, or where they do not suffice."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if jobs == 1 or len(cores) < jobs:
        return [()] * jobs
    share = len(cores) // jobs
    return [tuple(cores[i * share : (i + 1) * share]) for i in range(jobs)]


def by_rank(stages: Mapping[str, Stage], seconds: Mapping[str, float]) -> list[str]:
    """Stage names, those first that the longest chain of others waits for (list scheduling by critical path)."""
    rank: dict[str, float] = {}
    for name in reversed(list(stages)):  # parents stand before their children
        after = [rank[child] for child, stage in stages.items() if name in stage.parents.values() and child in rank]
        rank[name] = seconds.get(name, 0.0) + max(after, default=0.0)
    return sorted(stages, key=lambda name: -rank[name])


def makespan(stages: Mapping[str, Stage], seconds: Mapping[str, float], jobs: int) -> float:
    """Seconds until all stages in `seconds` are done on `jobs` processes, in the order of `by_rank`.

    Parents that are not in `seconds` are there already.
    """
    order = [name for name in by_rank(stages, seconds) if name in seconds]
    done: dict[str, float] = {}
    running: list[tuple[float, str]] = []
    now = 0.0
    while order or running:
        ready = [n for n in order if all(p in done or p not in seconds for p in stages[n].parents.values())]
        for name in ready[: jobs - len(running)]:
            order.remove(name)
            running.append((now + seconds[name], name))
        running.sort()
        now, name = running.pop(0)
        done[name] = now
    return now


def clock(seconds: float) -> str:
    """`1 h 20 min`, `4 min 10 s`, `35 s`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
