"""The errors that users see, and the exit after a signal."""

from hydra.errors import CompactHydraException


class PosttrainError(CompactHydraException):
    """A mistake in the input, with path, value and fix; Hydra shows it without a traceback."""


class RewardError(PosttrainError):
    """A reward of the user's failed; the state of the work before it can be saved."""


class Stopped(SystemExit):
    """A signal has ended the process; not an error of what was being done, and not to be caught as one."""
