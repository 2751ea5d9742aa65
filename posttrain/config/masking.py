"""Messages without the secrets that the config holds."""

import re
from collections.abc import Iterable
from typing import Any

from posttrain.config.paths_and_secrets import VALUE, leaves, secrets


def masked(lines: Iterable[str], settings: Any) -> str:
    """The lines as one text; the values that are secrets in `settings` are hidden."""
    found = (value for _, key, value in leaves(settings, "") if secrets({key: value}))
    values = {str(value) for value in found if value is not True}
    shown = sorted(values | {repr(value)[1:-1] for value in values}, key=len, reverse=True)
    # Behind a space stand the words of the messages.
    hidden = re.compile("|".join([*(rf"(?<![\w ]){re.escape(value)}(?!\w)" for value in shown), VALUE.pattern]))
    return "\n".join(hidden.sub("***", line) for line in lines)
