"""The errors that users see, what they suggest, and the exit after a signal."""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from hydra.errors import CompactHydraException


class PosttrainError(CompactHydraException):
    """A mistake in the input, with path, value and fix; Hydra shows it without a traceback."""


class RewardError(PosttrainError):
    """A reward or a rollout of the user's failed; the state of the work before it can be saved."""


class Stopped(SystemExit):
    """A signal has ended the process; not an error of what was being done, and not to be caught as one."""


def near_path(path: str) -> str:
    """What is near a `path` that is not there, in the folder where it ends; else what that folder has not, or ""."""
    whole = Path(os.path.expanduser(path))
    folder = next((one for one in whole.parents if one.is_dir()), None)
    if folder is None or whole.exists() or not os.access(folder, os.R_OK):
        return ""
    missing, *rest = whole.relative_to(folder).parts
    near = difflib.get_close_matches(missing, [one.name for one in folder.iterdir()], n=1)
    return f"; did you mean {folder.joinpath(near[0], *rest)}?" if near else f"; {folder.absolute()} has no {missing}"


def did_you_mean(given: object, known: Iterable[object], most: int = 1, otherwise: str = "") -> str:
    """`did you mean A or B?`, of what is `known` and like `given`; `otherwise` where nothing is."""
    near = difflib.get_close_matches(str(given), [str(one) for one in known], n=most)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def choose(given: object, allowed: Iterable[object]) -> str:
    """`did you mean A? choose from A, B`."""
    names = [str(one) for one in allowed]
    return f"{did_you_mean(given, names)} choose from {', '.join(names)}".lstrip()
