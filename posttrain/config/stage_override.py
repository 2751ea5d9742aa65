"""Settings of stages on a command line: they override the recipe's, in whichever form it has them."""

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.config import composition, parse
from posttrain.config.flat_settings import flatten, leaves
from posttrain.config.schema import Run

# Keys of a stage that hold dicts for the pipeline, not settings of the stage's run.
NOT_SETTINGS = ("from", "each")
MISSING = object()


def restore(run: Run, overrides: Sequence[str]) -> None:
    """Let the settings of stages in `overrides` win over the recipe's, in `run.stages` and `run.common`.

    A recipe may write `probe: default` and `probe.prompts: 256`. Given `stages.NAME.probe.prompts=24`, Hydra replaces
    the choice by `{prompts: 24}`, and leaves the flat key, which would win.
    """
    given = {word: path for word in overrides if (path := _path(word))}
    if not given:
        return
    before, _ = parse.read(
        composition.composed([w for w in overrides if w not in given and not w.startswith("hydra.")])
    )
    if before is None:
        return
    after = {"stages": run.stages, "common": run.common}
    changed: dict[tuple[str, ...], dict[str, Any]] = {}
    for entry, key in given.values():
        value = _value(after, (*entry, *key.split(".")))
        if value is MISSING:  # taken back by a later word
            continue
        written = _value({"stages": before.stages, "common": before.common}, entry)
        settings = changed.setdefault(entry, dict(written) if isinstance(written, Mapping) else {})
        for name, leaf in leaves({key: value}):
            settings.pop(name, None)
            settings[name] = leaf
    for entry, settings in changed.items():
        own = _value(after, entry)
        if flatten(own) != flatten(settings):
            own.clear()
            own.update(settings)


def _path(word: str) -> tuple[tuple[str, ...], str] | None:
    """The place of the stage and the setting that `word` sets; None where Hydra already handles it correctly."""
    key, _, value = word.lstrip("+").partition("=")
    parts = key.split(".")
    size = 1 if parts[0] == "common" else 4 if parts[2:3] == ["stages"] else 2
    entry, rest = tuple(parts[:size]), parts[size:]
    if parts[0] not in ("stages", "common") or not rest or rest[0] in NOT_SETTINGS:
        return None
    return (entry, ".".join(rest)) if len(rest) > 1 or value.startswith("{") else None


def _value(settings: Any, path: Sequence[str]) -> Any:
    for part in path:
        settings = settings.get(part, MISSING) if isinstance(settings, Mapping) else MISSING
    return settings
