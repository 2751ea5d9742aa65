"""`posttrain recipes`: the list of recipes, or one recipe as Hydra composes it."""

import argparse
import shutil
import sys
import textwrap
from typing import Any

from posttrain.config.composition import compose
from posttrain.config.recipes import recipe_files
from posttrain.config.suggestions import did_you_mean


def purposes() -> dict[str, str]:
    """Recipe -> its purpose, from the first line of its file."""
    return {p.stem: p.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ") for p in recipe_files()}


def main(argv: list[str]) -> int:
    """`posttrain recipes [NAME [KEY=VALUE …]]`: the list, or one recipe as it is composed, ready to read."""
    parser = argparse.ArgumentParser(prog="posttrain recipes", description="List the recipes, or print one, composed.")
    parser.add_argument("name", metavar="NAME", nargs="?", help="a recipe of the list")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="settings that differ from the recipe's")
    args = parser.parse_args(argv)
    known = purposes()
    if args.name is None:
        width = max(map(len, known))
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
        for name, purpose in known.items():
            print(
                textwrap.fill(
                    f"{name:<{width}}  {purpose}", columns, subsequent_indent=" " * (width + 2), break_on_hyphens=False
                )
            )
        return 0
    if args.name not in known:
        fix = did_you_mean(args.name, known, 3, "`posttrain recipes` lists them")
        print(f"NAME={args.name}: no such recipe; {fix}", file=sys.stderr)
        return 1
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    from posttrain.config.composition_errors import explain_hydra_error
    from posttrain.config.schema import Run, used_settings

    try:
        config = compose([f"+recipe={args.name}", *args.overrides])
    except HydraException as error:
        print(explain_hydra_error(error), file=sys.stderr)
        return 1
    plain: Any = _differing(
        OmegaConf.to_container(config, resolve=False), OmegaConf.to_container(OmegaConf.structured(Run))
    )
    print(f"# {known[args.name]}")
    command = f"posttrain +recipe={args.name}{''.join(f' {word}' for word in args.overrides)}"
    print(f"# {command}")
    print(f"# What differs from the defaults; all settings: {command} --cfg job")
    print(OmegaConf.to_yaml(OmegaConf.create(used_settings(plain))), end="")
    return 0


def _differing(settings: Any, defaults: Any) -> Any:
    """Plain `settings` without what the schema has as default."""
    if not isinstance(settings, dict) or not isinstance(defaults, dict):
        return settings
    found = {key: _differing(value, defaults.get(key)) for key, value in settings.items() if value != defaults.get(key)}
    return {key: value for key, value in found.items() if value != {}}
