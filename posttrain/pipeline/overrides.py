"""A stage's settings as overrides of the command line, and the `Run` that these overrides give."""

import re
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from posttrain.config import composition, composition_errors, data_override, parse
from posttrain.config.flat_settings import groups
from posttrain.config.schema import Run
from posttrain.config.suggestions import choose
from posttrain.errors import PosttrainError, first_line

# Text that Hydra reads as a string even without quotes.
UNQUOTED = re.compile(r"(?!(?:null|true|false|nan|inf)$)(?:[A-Za-z_/]|\.{1,2}/)[\w./:-]*", re.IGNORECASE | re.ASCII)
# Characters that a key of a dict has with a backslash before them; it cannot be quoted.
IN_KEYS = re.compile(r"[\\()\[\]{}:=, \t]")
KEY = re.compile(r"[\w./-]+", re.ASCII)


def to_overrides(settings: Mapping[str, Any]) -> list[str]:
    """Flat settings in Hydra's override grammar, choices of groups first."""
    choices = {key: value for key, value in settings.items() if key in groups() and value != {}}
    lines = [f"~{key}" if value is None else f"{key}={quote(value)}" for key, value in choices.items()]
    return lines + [f"{key}={quote(value)}" for key, value in settings.items() if key not in groups()]


def quote(value: Any) -> str:
    """A value in Hydra's override grammar; it is read back as the same value of the same type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list):
        return f"[{','.join(map(quote, value))}]"
    if isinstance(value, dict):
        named = ((IN_KEYS.sub(r"\\\g<0>", str(key)), quote(inner)) for key, inner in value.items())
        return "{" + ",".join(f"{key}:{inner}" for key, inner in named) + "}"
    text = str(value)
    return text if UNQUOTED.fullmatch(text) else QuotedString(text=text, quote=Quote.double).with_quotes()


@lru_cache(maxsize=256)
def run_of(overrides: tuple[str, ...]) -> Run:
    """The `Run` of `posttrain OVERRIDES`; raises `PosttrainError` as that command would."""
    try:
        run = parse.parse(composition.composed(overrides))
        data_override.reset_settings(run, overrides)
        if unread := parse.unread_settings(run, overrides):
            raise PosttrainError("\n".join(unread))
        return run
    except PosttrainError:
        raise
    except (HydraException, ValueError) as error:
        raise PosttrainError(composition_errors.explain_hydra_error(error) or first_line(error)) from None


def check(settings: Mapping[str, Any], recipe: str | None) -> list[str]:
    """Errors for recipes and choices that do not exist, and for keys that an override cannot have."""
    errors = [_choice("recipe", recipe)] if recipe is not None else []
    errors += [_choice(key, value) for key, value in settings.items() if key in groups() and isinstance(value, str)]
    errors += [
        f"{key}: expected an option of conf/{key} or settings below it, not {value!r}"
        for key, value in settings.items()
        if key in groups() and value is not None and value != {} and not isinstance(value, str)
    ]
    errors += [f"{key}: letters, digits, _, - and / only in a key here" for key in settings if not KEY.fullmatch(key)]
    errors += [
        f"{key}: a stage cannot have the key {inner!r} in it; take another name, or a recipe of your own"
        for key, value in settings.items()
        for inner in _keys(value)
        if not _read_back(inner)
    ]
    return [error for error in errors if error]


def _keys(value: Any) -> Iterator[Any]:
    """The keys of all dicts in a value."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield key
        yield from _keys(inner)
    for inner in value if isinstance(value, list) else ():
        yield from _keys(inner)


def _read_back(key: Any) -> bool:
    """Whether Hydra reads a dict's key as it was; it has no quotes for keys."""
    try:
        return bool(OverridesParser.create().parse_override(f"key={quote({key: 0})}").value() == {key: 0})
    except HydraException:
        return False


@cache
def _options(group: str) -> tuple[str, ...]:
    """The options of a group, with registered recipes; cached, since Hydra copies all configs to list them."""
    with composition.config_loader() as loader:
        return tuple(loader.get_group_options(group))


def _choice(group: str, option: Any) -> str:
    if option in (known := _options(group)):
        return ""
    return f"{group}={option}: {choose(option, known)}"
