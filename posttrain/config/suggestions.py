"""What an error suggests: the nearest name, path or choice."""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path


def near_path(path: str) -> str:
    """The end of a message on a missing `path`: a similar name in its last folder that exists, or the missing name."""
    whole = Path(os.path.expanduser(path))
    folder = next((one for one in whole.parents if os.path.isdir(one)), None)  # False where it cannot be looked at
    if folder is None or os.path.exists(whole) or not os.access(folder, os.R_OK):
        return ""
    if whole.is_symlink():
        return f"; it is a link to {os.readlink(whole)}, which is missing"
    missing, *rest = whole.relative_to(folder).parts
    near = difflib.get_close_matches(missing, [one.name for one in folder.iterdir()], n=1)
    return f"; did you mean {folder.joinpath(near[0], *rest)}?" if near else f"; {folder.absolute()} has no {missing}"


def did_you_mean(given: object, known: Iterable[object], most: int = 1, otherwise: str = "") -> str:
    """`did you mean A or B?`, with at most `most` names of `known` that are like `given`; else `otherwise`."""
    near = difflib.get_close_matches(str(given), [str(one) for one in known], n=most)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def choose(given: object, allowed: Iterable[object]) -> str:
    """`did you mean A? choose from A, B`."""
    names = [str(one) for one in allowed]
    return f"{did_you_mean(given, names)} choose from {', '.join(names)}".lstrip()
