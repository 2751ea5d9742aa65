"""The one error a user is meant to see."""

from hydra.errors import CompactHydraException


class PosttrainError(CompactHydraException):
    """A mistake in the input, with path, value and mend; Hydra shows it without a traceback."""
