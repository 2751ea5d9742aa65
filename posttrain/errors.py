"""The one error a user is meant to see."""

from hydra.errors import CompactHydraException


class PosttrainError(CompactHydraException):
    """A mistake in the input, with path, value and fix; Hydra shows it without a traceback."""


class RewardError(PosttrainError):
    """A reward of the user's failed; the state of the work before it can be saved."""
