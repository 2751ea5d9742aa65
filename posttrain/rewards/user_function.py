"""Reward functions of users, with errors that name the reward, the batch and the fix.

Every function named by `reward.NAME.function` (and `probe.rewards`, `probe.gold`) is guarded: one that raises, hangs
beyond `timeout`, or returns something else than a number or None for each completion ends in a `RewardError`.
"""

import asyncio
import contextvars
import inspect
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from posttrain.errors import PosttrainError, RewardError


def wrap(name: str, path: str, function: Callable[..., Any], timeout: float | None = None) -> Any:
    """`function` as the reward `name`, whose source is `path`; at most `timeout` seconds a call."""
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        return _wrap_async(name, path, function, timeout)
    return UserFunction(name, path, function, timeout)


class UserFunction:
    """A reward function whose errors name the reward and the batch; other attributes are those of the function."""

    def __init__(self, name: str, path: str, function: Callable[..., Any], timeout: float | None):
        self.__name__ = name
        self.name, self.path, self.function, self.timeout = name, path, function, timeout

    def __getattr__(self, attribute: str) -> Any:
        if attribute == "function":  # while it is being copied
            raise AttributeError(attribute)
        return getattr(self.function, attribute)

    def __call__(self, /, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        where, count = _where(self.name, self.path, completions, columns.get("trainer_state")), len(completions)
        try:
            if self.timeout is None:
                result = self.function(completions=completions, **columns)
            else:
                result = _call_with_timeout(
                    lambda: self.function(completions=completions, **columns), self.timeout, where
                )
        except PosttrainError:
            raise
        except (Exception, SystemExit) as error:  # sys.exit(0) would end the run as if it had succeeded
            raise RewardError(_exception_message(where, error)) from error
        return _check_result(where, result, count)


def _wrap_async(name: str, path: str, function: Callable[..., Any], timeout: float | None) -> Callable[..., Any]:
    async def guarded(completions: Sequence[Any], **columns: Any) -> list[float | None]:
        where, count = _where(name, path, completions, columns.get("trainer_state")), len(completions)
        try:
            result = await asyncio.wait_for(function(completions=completions, **columns), timeout)
        except PosttrainError:
            raise
        except (TimeoutError, asyncio.TimeoutError) as error:  # one class from Python 3.11 on
            raise RewardError(
                _timeout_message(where, timeout) if timeout else _exception_message(where, error)
            ) from error
        except (Exception, SystemExit) as error:
            raise RewardError(_exception_message(where, error)) from error
        return _check_result(where, result, count)

    guarded.__name__ = name
    return guarded


def _where(name: str, path: str, completions: Sequence[Any], state: Any) -> str:
    step = "" if state is None else f" after step {state.global_step}"
    return f"reward {name} ({path}){step}, on {len(completions)} completions"


def _exception_message(where: str, error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    at = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{where}: raised {what}{at}"


def _timeout_message(where: str, timeout: float) -> str:
    return f"{where}: did not answer within its timeout of {timeout:g} s; raise it, or see what the function waits for"


def _call_with_timeout(work: Callable[[], Any], timeout: float, where: str) -> Any:
    """Run `work` in a daemon thread; after `timeout` it is abandoned, since Python cannot end a thread."""
    import torch

    outcome: dict[str, Any] = {}
    context = contextvars.copy_context()

    def run() -> None:
        try:
            with torch.no_grad():  # the grad mode is per thread
                outcome["result"] = context.run(work)
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise RewardError(_timeout_message(where, timeout))
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]


def _check_result(where: str, result: Any, count: int) -> list[float | None]:
    """A list with a float or None for each completion; raises `RewardError` for any other result."""
    wanted = f"return a list with a number, or None where it does not apply, for each of the {count} completions"
    scalar = getattr(result, "ndim", 1) == 0  # a tensor or an array without dimensions
    unordered = isinstance(result, (dict, set, frozenset))
    if scalar or unordered or isinstance(result, (str, bytes)) or not hasattr(result, "__iter__"):
        raise RewardError(f"{where}: returned {_shortened(result)}; {wanted}")
    try:
        values = list(result)
    except PosttrainError:
        raise
    except Exception as error:  # of a generator, which runs only now
        raise RewardError(_exception_message(where, error)) from error
    if len(values) != count:
        raise RewardError(f"{where}: returned {len(values)} values; {wanted}")
    numbers: list[float | None] = []
    for i, value in enumerate(values):
        try:
            if isinstance(value, (str, bytes)):
                raise TypeError
            numbers.append(None if value is None else float(value))
        except (TypeError, ValueError, OverflowError):
            raise RewardError(f"{where}: returned {_shortened(value)} for completion {i}; {wanted}") from None
    return numbers


def _shortened(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) < 80 else text[:77] + '...'}"
