"""Checks of the entries of `reward` and `probe.rewards`: by config, by the data's columns, and by asking models."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from posttrain.config import code, trainers
from posttrain.config.schema import RewardConfig, Run
from posttrain.errors import PosttrainError
from posttrain.rewards import binding
from posttrain.rewards.binding import COLUMN_ARGS, GIVEN

if TYPE_CHECKING:
    from datasets import Dataset

# Functions that load nothing when they are called without rows.
CHECKED_BY_CALL = ("posttrain.rewards.text.", "posttrain.rewards.abstain.", "posttrain.rewards.gym.")
# Functions whose column holds text to compare with.
VERIFY = "posttrain.rewards.verify."
READ_TEXT = (*CHECKED_BY_CALL[:2], f"{VERIFY}math_equal")
LONGEST_TIMEOUT = 1e9  # seconds; threads take no longer one
MODEL_ARGS = ("batch_size", "max_length", "dtype", "scale", "length_penalty", "calibration")


def check(entries: dict[str, RewardConfig], path: str) -> list[str]:
    """Everything wrong with reward entries that can be known without loading a model."""
    errors = []
    for name, entry in entries.items():
        key = f"{path}.{name}"
        if sum(given is not None for given in (entry.function, entry.model, entry.grader)) != 1:
            errors.append(
                f"{key}: give one of function=package.module.function, model=RUN_OR_HUB_ID or grader=FILE.json"
            )
        elif entry.timeout is not None and (entry.function is None or not 0 < entry.timeout < LONGEST_TIMEOUT):
            errors.append(f"{key}.timeout={entry.timeout}: expected a positive number of seconds, for a function")
        elif entry.grader is not None:
            from posttrain.rewards import graders

            errors += graders.check(entry, key)
        elif entry.model is not None:
            errors += _check_model(entry, key)
        else:
            errors += _check_function(entry, key)
    return errors


def check_run(run: Run) -> list[str]:
    """`check` for the rewards of a run and of its probe, and judges that have nothing to compare with.

    The probe and PPO draw one completion of each prompt.
    """
    errors = [error for path, entries in run.rewards.items() for error in check(entries, path)]
    alone = {"probe.rewards": run.probe.rewards} if run.job == "train" else {}
    if run.job == "evaluate" and not run.evaluate.against:
        alone = {"reward": run.reward, "probe.rewards": run.probe.rewards}
    elif (run.job == "train" and trainers.is_ppo(run)) or (run.job == "sample" and run.sample.n == 1):
        alone["reward"] = run.reward
    return errors + [error for path, entries in alone.items() for error in _check_comparisons(entries, path)]


def _check_function(entry: RewardConfig, key: str) -> list[str]:
    path, args = str(entry.function), entry.args
    try:
        function = code.load(path)
        accepted = code.parameters(function)
        wrong = _uncallable(function, accepted, args)
    except ValueError as error:
        return [f"{key}.function={path}: {error}"]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    unknown = [
        f"{key}.args.{argument}: {path} takes {', '.join(n for n in accepted if n not in GIVEN) or 'none'}"
        for argument in args
        # A reward function takes **columns, so a misspelt option would vanish among them.
        if argument not in accepted and (not takes_any or path.startswith("posttrain."))
    ]
    if path.startswith("posttrain."):
        named = {name: args[name] for name in COLUMN_ARGS if args.get(name) is not None and name in accepted}
        if wrong_names := [name for name, column in named.items() if not isinstance(column, str)]:
            return [f"{key}.args.{name}={args[name]}: expected the name of a column" for name in wrong_names]
    if path.startswith(VERIFY):
        from posttrain.rewards import verify

        return unknown + verify.check(path.rpartition(".")[2], args, key)
    if unknown:
        return unknown
    if wrong:
        return [f"{key}.function={path}: {wrong}"]
    if (own_check := _class_check(function, "check")) is not None:
        return list(own_check(args, f"{key}.args"))
    return _try_without_rows(function, entry, f"{key}.args") if path.startswith(CHECKED_BY_CALL) else []


def _class_check(function: Any, name: str) -> Callable[..., list[str]] | None:
    """The class method `name(args, key)` of a class; another method by that name is the class's own affair."""
    if isinstance(function, type) and isinstance(inspect.getattr_static(function, name, None), classmethod):
        found: Callable[..., list[str]] = getattr(function, name)
        return found if code.misfit(found, {}, "") is None else None
    return None


def _uncallable(function: Any, accepted: dict[str, inspect.Parameter], args: dict[str, Any]) -> str | None:
    """Why it cannot be called as a reward: with `completions` and all other columns as keywords."""
    if isinstance(function, type):
        if "__call__" not in {name for base in function.__mro__ for name in vars(base)}:
            return "is a class whose objects cannot be called; give it a method __call__(self, completions, **columns)"
        if missing := [n for n in _required(accepted) if n not in args]:
            return f"is built with {', '.join(missing)}; set args.{missing[0]}"
        accepted = dict(list(code.parameters(function.__call__).items())[1:])
    kinds = {parameter.kind for parameter in accepted.values()}
    completions = accepted.get("completions")
    named = completions is not None and completions.kind is not completions.POSITIONAL_ONLY
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        return "takes no **columns; a reward is called as f(completions=…, prompts=…, **columns of the data)"
    if not named and "completions" not in args and any(p.kind is p.POSITIONAL_ONLY for p in accepted.values()):
        return "takes completions by position; a reward is called as f(completions=…, **columns)"
    return None


def _required(accepted: dict[str, inspect.Parameter]) -> list[str]:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [n for n, p in accepted.items() if p.default is p.empty and p.kind not in variadic]


def _try_without_rows(function: Callable[..., Any], entry: RewardConfig, key: str) -> list[str]:
    """Errors that a function raises for its args, without a row to score."""
    column = entry.args.get("column") or default_column(entry)
    try:
        binding.bind(str(entry.function), function, entry.args)([], **({column: []} if column else {}))
    except (PosttrainError, TypeError) as error:
        return [f"{key}: {error}"]
    return []


def _check_model(entry: RewardConfig, key: str) -> list[str]:
    from posttrain.rewards import calibration

    errors = [
        f"{key}.args.{argument}: a reward model takes {', '.join(MODEL_ARGS)}"
        for argument in entry.args
        if argument not in MODEL_ARGS
    ]
    return errors + calibration.check(entry.args, f"{key}.args")


def _check_comparisons(entries: dict[str, RewardConfig], path: str) -> list[str]:
    """Errors for rewards that compare completions of one prompt, where each prompt has only one completion."""
    return [
        f"{path}.{name}.args.column: without it completions of one prompt are compared with each other, and here each "
        "prompt has one; name a column with answers to compare with"
        for name, entry in entries.items()
        if entry.function is not None and entry.args.get("column") is None and _is_comparison(entry.function)
    ]


def compares(function: Any) -> bool:
    """Whether it is a judge, which compares answers; a user's class may have a `compare` of another kind."""
    return hasattr(function, "compare") and hasattr(function, "take_counts")


def _is_comparison(path: str) -> bool:
    try:
        return compares(code.load(path))
    except ValueError:
        return False  # `check` says so


def check_reachable(entries: dict[str, RewardConfig], path: str) -> list[str]:
    """Errors in models and endpoints of rewards, known without loading weights."""
    from posttrain.models import weights
    from posttrain.rewards import calibration
    from posttrain.runs import lineage

    errors = []
    for name, entry in entries.items():
        key = f"{path}.{name}"
        try:
            if entry.model is not None:
                weights.check_model(lineage.source(entry.model, key=f"{key}.model"), f"{key}.model", scores=True)
                calibration.check_available(entry.args, f"{key}.args", entry.model)
            elif entry.grader is not None:
                from posttrain.rewards import graders

                graders.check_reachable(entry, key)
            elif entry.function is not None:
                reach = _class_check(code.load(entry.function), "check_reachable")
                errors += reach(entry.args, f"{key}.args") if reach else []
        except PosttrainError as error:
            errors.append(str(error))
    return errors


def missing_columns(entries: Mapping[str, RewardConfig], path: str, columns: Mapping[str, Any]) -> list[str]:
    """Errors for rewards whose args name data columns that do not exist, and for columns in the way of what is given.

    `columns` are the data's with their features, as `datasets` has them.
    """
    errors = [
        f"{path}: the data has a column {name}, and rewards are given something else by that name; give it another: "
        f"'data.columns={{OTHER: {name}}}'"
        for name in GIVEN
        if entries and name in columns
    ]
    for name, entry in entries.items():
        if entry.grader is not None:
            from posttrain.rewards import graders

            errors += graders.missing_columns(entry, f"{path}.{name}", columns)
        elif absent := [column for column in _columns_of(entry) if column not in columns]:
            errors.append(
                f"{path}.{name}: reads the column {absent[0]!r}, and the data has {', '.join(sorted(columns))}"
            )
        elif entry.function is not None and (lacking := _lacking(entry, columns)):
            errors.append(
                f"{path}.{name}.function={entry.function}: needs {lacking[0]}, which is neither in its args nor a "
                f"column of the data, which has {', '.join(sorted(columns))}"
            )
    return errors


def _columns_of(entry: RewardConfig) -> list[str]:
    """The columns of the data that a reward's args name, or that it reads by default."""
    own = str(entry.function).startswith("posttrain.")  # what the args of a user's function mean, only they know
    named = [entry.args.get("column") or default_column(entry), entry.args.get("entry_point") if own else None]
    return [column for column in named if column]


def _lacking(entry: RewardConfig, columns: Mapping[str, Any]) -> list[str]:
    """Required parameters of a user's function that are neither in its args nor columns of the data."""
    function: Any = code.load(str(entry.function))
    accepted = code.parameters(function)
    if isinstance(function, type):
        accepted = dict(list(code.parameters(function.__call__).items())[1:])
    return [name for name in _required(accepted) if name not in {*GIVEN, *entry.args, *columns}]


def default_column(entry: RewardConfig) -> str | None:
    """The data column a reward function reads by default: the default of its `column` argument."""
    if entry.function is None:
        return None
    column = inspect.signature(code.load(entry.function)).parameters.get("column")
    return column.default if column is not None and isinstance(column.default, str) else None


def check_columns(run: Run, first: Dataset, prompts: Dataset | None) -> None:
    """Raise `PosttrainError` for rewards that read columns which the data lacks.

    `first` are rows of training, `prompts` the held-out ones that the probe samples on.
    """
    errors: list[str] = []
    for path, entries in run.rewards.items():
        errors += column_errors(entries, path, first if path == "reward" or not prompts else prompts)
    if errors:
        raise PosttrainError("\n".join(errors))


def column_errors(entries: Mapping[str, RewardConfig], path: str, rows: Dataset) -> list[str]:
    """Errors for rewards that read columns which the rows lack, or else which hold what is no reference."""
    return missing_columns(entries, path, rows.features) or _unreadable_columns(entries, path, rows)


def _unreadable_columns(entries: Mapping[str, RewardConfig], path: str, rows: Dataset) -> list[str]:
    """Errors for rewards of this package whose column holds what is no reference, in these rows."""
    from posttrain.rewards import verify
    from posttrain.rewards.text import references

    errors = []
    for name, entry in entries.items():
        column, function = entry.args.get("column") or default_column(entry), str(entry.function)
        if column and function.startswith((*READ_TEXT, VERIFY)):
            try:
                entry_point = entry.args.get("entry_point")
                columns = {name: rows[name] for name in (column, entry_point) if name}
                verify.check_column(function.removeprefix(VERIFY), columns, column, entry_point)
                if function.startswith(READ_TEXT):
                    references({column: rows[column]}, column)
            except PosttrainError as error:
                errors.append(f"{path}.{name}: {str(error).removeprefix('reward: ')}")
    return errors


def check_all_reachable(run: Run) -> None:
    """Raise `PosttrainError` for models and endpoints of rewards that do not answer."""
    errors = [error for path, entries in run.rewards.items() for error in check_reachable(entries, path)]
    if errors:
        raise PosttrainError("\n".join(errors))
