"""The user's own code, imported by its path; any error in it becomes one line."""

import importlib
import inspect
import traceback
from collections.abc import Callable
from typing import Any

from posttrain.config.suggestions import did_you_mean
from posttrain.errors import Stopped


def load(path: str) -> Callable[..., Any]:
    """The function or class at `package.module.name`; raises `ValueError` with one line that says what is wrong."""
    module, _, name = path.rpartition(".")
    if not module or not all(part.isidentifier() for part in path.split(".")):
        raise ValueError("expected package.module.name")
    try:
        found = importlib.import_module(module)
    except Stopped:
        raise
    except ModuleNotFoundError as error:
        raise ValueError(_missing(module, error)) from error
    except SyntaxError as error:
        raise ValueError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except ImportError as error:  # says itself what is missing
        raise ValueError(str(error).split("\n")[0] or error_line(error)) from error
    except (Exception, SystemExit) as error:  # the module's own code has run
        raise ValueError(f"{module} fails when it is imported: {error_line(error)}") from error
    if not hasattr(found, name):
        public = [known for known in vars(found) if not known.startswith("_")]
        raise ValueError(f"{module} has no {name}; {did_you_mean(name, public)}".rstrip("; "))
    if not callable(made := getattr(found, name)):
        raise ValueError(f"is a {type(made).__name__}, not a function or class")
    return made


def _missing(module: str, error: ModuleNotFoundError) -> str:
    if error.name and (module == error.name or module.startswith(f"{error.name}.")):
        return f"no module {error.name}, neither in this folder nor installed"
    return f"{module} needs {error.name}, which is not installed"


def error_line(error: BaseException) -> str:
    """An error of the user's code in one line: its type, its message, and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + lines[0] if lines else ''}{at}"


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a function, or of a class's constructor; raises `ValueError` where they cannot be read."""
    try:
        return dict(inspect.signature(function).parameters)
    except (ValueError, TypeError):
        raise ValueError("its parameters cannot be read; wrap it in a function of your own") from None


def misfit(function: Callable[..., Any], *positional: Any, **named: Any) -> str | None:
    """Why `function` cannot be called with these arguments, in a few words; `None` where it can."""
    try:
        parameters(function)
        inspect.signature(function).bind(*positional, **named)
    except (ValueError, TypeError) as error:
        return str(error)
    return None
