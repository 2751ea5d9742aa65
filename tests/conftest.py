"""Shared by all tests: the real command in a subprocess, and the same thing in this process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before anything imports torch, W&B or the hub's client: no network, no telemetry, one thread a process.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "offline",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "CI": "true",
    "COLUMNS": "120",
}
# Whether nothing may be skipped; kept apart, for the libraries are told CI everywhere, and xdist's workers inherit it.
os.environ.setdefault("POSTTRAIN_TESTS_CI", os.environ.get("CI", ""))
os.environ.update(ENVIRONMENT)

# A run of seconds: a random model of 43k parameters, a few short rows, no samples unless a test asks for them.
SMALL = (
    *("model=tiny", "data.path=pairs.jsonl", "data.eval_split=null", "data.eval_size=8"),
    *(
        "data.max_train_rows=null",
        "probe.prompts=0",
        "probe.greedy_prompts=0",
        "tracking=none",
        "probe.shift_prompts=0",
    ),
    *("trainer.args.num_train_epochs=1", "trainer.args.logging_steps=1", "trainer.args.bf16=false"),
    "trainer.args.per_device_train_batch_size=8",
)


def write_pairs(path: Path, count: int = 40) -> None:
    """Preference pairs that a tiny model can learn: yes is preferred to no."""
    turns = [{"role": "system", "content": "s"}]
    with path.open("w") as file:
        for i in range(count):
            row = {
                "prompt": [*turns, {"role": "user", "content": f"{i}?"}],
                "chosen": [{"role": "assistant", "content": "yes"}],
                "rejected": [{"role": "assistant", "content": "no"}],
                "answers": ["yes"],
            }
            file.write(json.dumps(row) + "\n")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in a folder of its own, outside the checkout."""
    monkeypatch.chdir(tmp_path)


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
def cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python -m posttrain ARGS` in an empty folder; returns the finished process with its text."""

    def run(*args: str, timeout: float = 240, env: dict[str, str] | None = None, cwd: Path | None = None) -> Any:
        return subprocess.run(
            [sys.executable, "-m", "posttrain", *args],
            cwd=cwd or tmp_path,
            env={**os.environ, **ENVIRONMENT, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


def compose(*overrides: str) -> tuple[Any, Any]:
    """The `Run` and `Origin` that the command line `overrides` would give."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from posttrain import config

    config.register()
    with initialize_config_dir(str(config.ROOT / "conf"), version_base="1.3"):
        cfg = hydra_compose("config", overrides=list(overrides))
    recipe = next((o.split("=")[1] for o in overrides if o.startswith("+recipe=")), None)
    return config.parse(cfg), config.Origin(recipe, tuple(overrides), None)


@pytest.fixture
def train(pairs: Path) -> Iterator[Callable[..., Any]]:
    """Run a job (training, unless `job` is set) in this process, as the command would; returns its directory."""

    def run(*overrides: str, small: bool = True) -> Any:
        import importlib

        from posttrain import preflight
        from posttrain.rundir import RunDirectory

        run, origin = compose(*overrides[:1], *(SMALL if small else ()), *overrides[1:])
        preflight.check(run)
        # As posttrain.__main__ does it.
        getattr(importlib.import_module(f"posttrain.jobs.{run.job}"), run.job)(run, origin)
        return RunDirectory.of(run, origin)

    return run


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(next(folder.glob("*.safetensors")))
