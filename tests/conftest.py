"""Shared by all tests: the command in a process of its own, and the same thing in this process.

Commands are forked from a process that has imported torch, transformers, trl and the rest (`tests.helpers.command`):
use `cli`, or `command.Popen` and `command.run` with `[sys.executable, "-m", ...]`, instead of `subprocess`. `train` and
`compose` are cheaper still: they start no process.
"""

import gc
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import command
from tests.helpers.runs import ENVIRONMENT, SMALL, compose, composed, write_pairs

# Whether nothing may be skipped; kept apart, for the libraries are told CI everywhere, and xdist's workers inherit it.
os.environ.setdefault("POSTTRAIN_TESTS_CI", os.environ.get("CI", ""))
os.environ.update(ENVIRONMENT)


_frozen = 0  # how many modules were imported when the garbage collector last put aside what there was


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """What is imported stays: the collections that every training asks for need not look at it each time."""
    global _frozen
    if len(sys.modules) > _frozen + 50:
        gc.collect()
        gc.freeze()
        _frozen = len(sys.modules)


@pytest.fixture(autouse=True)
def _no_curves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw no picture, which takes as long as a tiny run itself, but in tests marked `curves`."""
    if request.node.get_closest_marker("curves") is None:
        monkeypatch.setattr("posttrain.runs.curves.draw_curves", lambda *_: None)


@pytest.fixture(autouse=True)
def _composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages of pipelines, too, are composed by `tests.helpers.runs.composed`."""
    monkeypatch.setattr("posttrain.config.composition.composed", lambda overrides: composed(tuple(overrides)))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test works in a folder of its own, outside the checkout, and leaves the environment as it was."""
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium; without one the test is skipped, but in continuous integration it fails."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        (pytest.fail if os.environ["POSTTRAIN_TESTS_CI"] else pytest.skip)("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # No sandbox of its own: tests run as root in containers, and what is opened are pages under test.
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    write_pairs(tmp_path / "pairs.jsonl")
    return tmp_path / "pairs.jsonl"


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded data sets have 256 rows a split: a run reads, checks and renders all there are before it selects."""
    from datasets import DatasetDict

    from posttrain.rewards import reviews

    reviews.accuracy()  # trains the gold reward, which is kept in the cache, on all rows
    for name in ("squad", "imdb"):
        module = importlib.import_module(f"posttrain.data.embedded.{name}")

        def load(*args: Any, whole: Callable[..., Any] = module.load) -> Any:
            splits = whole(*args).items()
            return DatasetDict({name: split.select(range(min(256, len(split)))) for name, split in splits})

        monkeypatch.setattr(module, "load", load)


@pytest.fixture
def cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `posttrain ARGS` in an empty folder, forked; returns the finished process with its text."""

    def run(*args: str, timeout: float = 240, env: dict[str, str] | None = None, cwd: Path | None = None) -> Any:
        return command.run(
            [sys.executable, "-m", "posttrain", *args],
            cwd=cwd or tmp_path,
            env={**os.environ, **ENVIRONMENT, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def train(pairs: Path) -> Iterator[Callable[..., Any]]:
    """Run a job (training, unless `job` is set) in this process, as the command would; returns its directory."""

    def run(*overrides: str, small: bool = True) -> Any:
        from posttrain.jobs import preflight
        from posttrain.runs.directory import RunDirectory

        run, origin = compose(*overrides[:1], *(SMALL if small else ()), *overrides[1:])
        preflight.check(run)
        # As posttrain.__main__ does it.
        getattr(importlib.import_module(f"posttrain.jobs.{run.job}"), run.job)(run, origin)
        return RunDirectory.of(run, origin)

    return run


_finished: dict[tuple[str, ...], Path] = {}


@pytest.fixture
def finished(train: Callable[..., Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """As `train`, for a run that a test only begins from: trained once in this process, and copied for each test."""

    def run(*overrides: str) -> Any:
        from posttrain.runs.directory import RunDirectory

        if overrides not in _finished:
            made = train(*overrides)
            _finished[overrides] = tmp_path_factory.mktemp("finished") / made.name
            shutil.copytree(made.path, _finished[overrides])
            return made
        copy = tmp_path / "outputs" / _finished[overrides].name
        shutil.copytree(_finished[overrides], copy)
        return RunDirectory(copy)

    return run
