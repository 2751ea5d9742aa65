"""A job under Hydra: parse, check, start; it returns the number that a sweep optimises."""

import importlib
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from typing import Any

import hydra
from hydra._internal import utils as hydra_utils
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from posttrain.config import data_override, parse, recipes
from posttrain.config.schema import Run
from posttrain.console import print_error, print_plain, quiet_imports
from posttrain.errors import PosttrainError
from posttrain.jobs import preflight
from posttrain.training.signals import ExitOnSignal

FLAGS = ("-m", "--multirun", "--resolve")


def job(cfg: DictConfig, errors: tuple[str, ...] = ()) -> float | tuple[float, ...] | None:
    """One run; Hydra calls this once, or once per job of a sweep. `errors` are those of the command line."""
    quiet_imports()  # checks import some
    run, wrong = parse.read(cfg)
    origin = parse.origin(HydraConfig.get())
    found, dropped = [*errors, *wrong], {}
    if run is not None:
        dropped = data_override.reset_settings(run, origin.overrides)
        try:
            preflight.check(run)
        except PosttrainError as error:
            found += str(error).splitlines()
        found += parse.unread_settings(run, origin.overrides)
    if found or run is None:
        raise PosttrainError("\n".join(dict.fromkeys(found)))
    if dropped:
        settings = ", ".join(f"data.{name}={value}" for name, value in dropped.items())
        origin = replace(origin, left_out=f"not used, as it belongs to the recipe's own data set: {settings}")
        if run.job != "train":  # whose plan has it
            print_plain(f"data.path={run.data.path}: {origin.left_out}")
    # posttrain.jobs.train.train and so on: torch and trl load only after the cheap checks.
    start = getattr(importlib.import_module(f"posttrain.jobs.{run.job}"), run.job)
    return start(run, origin)


def run(argv: list[str]) -> int:
    """Compose `argv` and run it, or each job of a sweep; returns the exit code, unless Hydra exits with its own."""
    # A shell leaves the ~ of `data.path=~/rows.jsonl` as it is, and Hydra cannot read it.
    argv = [re.sub(r"^([\w.+/]+=)~(?=/|$)", lambda key: key[1] + os.path.expanduser("~"), word) for word in argv]
    if any(word.startswith("hydra/") for word in argv):
        from posttrain import extras

        if missing := extras.missing_plugin(argv):
            print_error(missing)
            return 1
    unknown: dict[str, str] = {}
    if stray := _unknown_words(argv):
        from posttrain.config import composition_errors

        unknown = {word: composition_errors.unknown_key(word) for word in stray}
        if recipe := [message for message in unknown.values() if message.startswith("recipe=")]:
            print_error(recipe[0])  # the other errors follow from the missing recipe
            return 1
    recipes.register(tuple(argv))
    # argparse takes overrides in one stretch, so what would part them comes first.
    words = sorted((word for word in argv if word not in unknown), key=lambda word: word not in FLAGS)
    errors = tuple(unknown.values())
    task = partial(job, errors=errors)
    entry = hydra.main(version_base="1.3", config_path=str(recipes.ROOT / "conf"), config_name="config")(task)
    # A console script, unlike `python -m`, does not find the user's own reward functions in the current folder.
    sys.path.append(os.getcwd())
    sys.argv[1:] = words  # Hydra reads its overrides there
    with ExitOnSignal(shlex.join(["posttrain", *argv])), plain_errors(errors):
        if {"-m", "--multirun"} & set(words):
            from posttrain.jobs import sweep

            return sweep.run(words, entry, errors)
        entry()
    return 0


def _unknown_words(words: list[str]) -> list[str]:
    """Messages for words with an unknown top-level key, or an empty group; Hydra would report only one of them."""
    empty = {f"{group}={nothing}" for group in recipes.groups() for nothing in ("null", "")}
    known = {field.name for field in fields(Run)} | {*recipes.groups(), "hydra"}
    keys = {word: key[1] for word in words if (key := re.match(r"([\w.]+)=", word))}
    return [word for word, key in keys.items() if key.partition(".")[0] not in known or word in empty]


@contextmanager
def plain_errors(errors: tuple[str, ...] = ()):
    """In the block, errors reach the terminal as one message, without Hydra's lines around them."""
    hydra_utils.run_and_report = partial(_report, errors)
    if not any("hydra.mode" in word for word in sys.argv):  # Hydra would compose everything again to read it
        Hydra.get_mode = lambda self, **_: None  # type: ignore[method-assign]
    frames = JobReturn.return_value
    JobReturn.return_value = property(_value, frames.fset)  # type: ignore[assignment, attr-defined]
    try:
        yield
    finally:
        hydra_utils.run_and_report = RUN_AND_REPORT
        Hydra.get_mode = GET_MODE  # type: ignore[method-assign]
        JobReturn.return_value = frames  # type: ignore[method-assign]


RUN_AND_REPORT, GET_MODE = hydra_utils.run_and_report, Hydra.get_mode


def _report(errors: tuple[str, ...], work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:
        from posttrain.config import composition_errors

        message = str(error) if isinstance(error, PosttrainError) else composition_errors.explain_hydra_error(error)
        if os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0") or message is None:
            traceback.print_exc()
        else:
            print_error("\n".join(dict.fromkeys([*errors, *message.splitlines()])))
        sys.exit(1)


def _value(self: JobReturn) -> Any:
    if self.status is JobStatus.COMPLETED:
        return self._return_value
    raise self._return_value
