"""Messages for a command line that Hydra cannot compose: unknown keys, and Hydra's own errors in our words."""

import re
import shlex
from concurrent.futures import BrokenExecutor

from posttrain.config import recipes, schema_errors
from posttrain.config.suggestions import choose, did_you_mean
from posttrain.errors import first_line

LAUNCHERS = ("submitit", "ray", "joblib")  # launchers whose errors say why a job ended


def unknown_key(word: str) -> str:
    """The message for a word `KEY=VALUE` of the command line whose key no config has."""
    key, _, value = word.partition("=")
    if value in ("null", "") and key in (known := recipes.groups()):
        return f"{word}: a group is left out with '~{key}', and chosen with {key}=OPTION, of {', '.join(known[key])}"
    if key == "recipe":
        return f"recipe={value}: a recipe is added; write +recipe={value}"
    return schema_errors.unknown_key(key)


def explain_hydra_error(error: BaseException) -> str | None:
    """One message for an error of Hydra's composition; None for another error."""
    from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException

    if isinstance(error, OverrideParseException):
        return _quoting_hint(error.override)
    if isinstance(error, MissingConfigException) and (wanted := re.search(r"'(\w+)/([^']*)'", str(error))):
        group, option = wanted.groups()
        known = [file.stem for file in recipes.recipe_files()] if group == "recipe" else recipes.groups().get(group, [])
        if group in ("model", "data") and re.search(r"[/.:]", option):
            return f"{group}={option}: chooses one of {', '.join(known)}; a path or hub id is {group}.path={option}"
        if group == "recipe":
            return (
                f"recipe={option}: no such recipe; {did_you_mean(option, known, 1, '`posttrain recipes` lists them')}"
            )
        return f"{group}={option}: no such option; {choose(option, known)}"
    if isinstance(error, ConfigCompositionException):
        first = first_line(error)
        if several := re.match(r"Ambiguous value for argument '(.*)'", first):
            return f"{several[1]}: several values; add -m for a sweep, or write a list, KEY=[A,B]"
        if unknown := re.match(r"Could not override '([\w.]+)'\.$", first):
            return schema_errors.unknown_key(unknown[1])
        if there := re.match(r"Could not append to config. An item is already at '(.*)'", first):
            return f"{there[1]}: is there already; leave the + out"
        cause = f": {first_line(error.__cause__)}" if error.__cause__ else ""
        if "Got NoneType" in first or "Multiple values" in first:
            return f"{first}; a group is left out with '~GROUP', and chosen once with GROUP=OPTION"
        if "Cannot merge" in cause:
            expected = "a list" if "Cannot merge List" in cause else "settings, {KEY: VALUE}"
            return f"{first.removeprefix('Error merging override ')}: expected {expected}"
        return first.removeprefix("Error merging override ") + cause
    return first_line(error) if isinstance(error, HydraException) else _broken_launcher(error)


def _quoting_hint(word: str) -> str:
    """How to write an argument that Hydra cannot parse."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Quote, QuotedString
    from hydra.errors import HydraException

    key, equals, value = word.partition("=")
    if not equals:
        return f"{word}: cannot be read; expected KEY=VALUE"
    if not re.fullmatch(r"(?:[~]|[+]{0,2})[\w./@:$-]+", key):
        return f"{word}: cannot be read; {key!r} is no key, which has letters, digits, _ and dots"
    quoted = f"{key}={QuotedString(text=value.strip(chr(39) + chr(34)), quote=Quote.double).with_quotes()}"
    try:
        OverridesParser.create().parse_override(quoted)
    except HydraException:
        return f"{word}: cannot be read; check brackets, commas and quotes of the value"
    return (
        f"{word}: cannot be read; if the value is text, quote it for Hydra and for the shell: {shlex.quote(quoted)}; "
        "if it is a list or settings, check its brackets and commas"
    )


def _broken_launcher(error: BaseException) -> str | None:
    """The message for an error of the launcher itself, such as a killed job; `None` for an error inside a job."""
    if not isinstance(error, BrokenExecutor) and type(error).__module__.partition(".")[0] not in LAUNCHERS:
        return None
    why = "a job's process was killed (too little memory, most likely)" if isinstance(error, BrokenExecutor) else ""
    return f"hydra/launcher: {why or first_line(error)}; the launcher ended, and the jobs it ran with it"
