"""The errors that users see, and the exit after a signal."""

from hydra.errors import CompactHydraException


class PosttrainError(CompactHydraException):
    """A mistake in the input, with path, value and fix; Hydra shows it without a traceback."""


class RewardError(PosttrainError):
    """The user's reward or rollout failed; the state of the training before it can still be saved."""


class Stopped(SystemExit):
    """A signal has ended the process. This is no error of the work, and must not be caught as one."""


def first_line(error: object) -> str:
    """The first line of an error's message; the name of its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
