"""The names of the trainers, and the message for an unknown one."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version

from posttrain.config import classes
from posttrain.config.suggestions import choose


@cache
def names() -> tuple[str, ...]:
    """All that have a short name: this project's, TRL's stable ones, then its experimental ones."""
    folder = classes.package_folder(classes.TRL[0])
    stable = sorted(f.name.removesuffix("_trainer.py") for f in folder.glob("*_trainer.py")) if folder else []
    folder = classes.package_folder(classes.TRL[1])
    experimental = sorted({f.parent.name for f in folder.glob("*/*_trainer.py")}) if folder else []
    of_trl = [name for name in [*stable, *experimental] if classes.in_trl(name)]
    return tuple(dict.fromkeys([*classes.OWN_TRAINERS, *of_trl]))


def unknown(name: str) -> str:
    """The message for a `trainer.kind` that names no trainer, or one without a config class."""
    if "." in name:
        source = classes.find(name)
        if source is None:
            called = name.rpartition(".")[2]
            moved = [one for one in names() if classes.trainer_path(one).endswith(f".{called}")]
            fix = f"; {called} is trainer={moved[0]} here, at {classes.trainer_path(moved[0])}" if moved else ""
            return f"trainer.kind={name}: no such class (package.module.Class, importable from here){fix}"
        return (
            f"trainer.kind={name}: no config class is found for it; name it in the signature, as in "
            f"args: {source.name.removesuffix('Trainer')}Config | None = None"
        )
    try:
        installed = version("trl")
    except PackageNotFoundError:
        return f"trainer.kind={name}: trl is not installed; run `make install`"
    return (
        f"trainer.kind={name}: TRL {installed} has no such trainer; {choose(name, names())}, or "
        "package.module.Class (where TRL has moved one, its path there)"
    )
