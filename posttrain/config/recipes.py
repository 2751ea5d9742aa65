"""The recipes and the schema in Hydra's ConfigStore."""

import re
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]

# A wheel carries conf/ and recipes/ inside the package, a checkout next to it.
ROOT = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent


@cache
def register(words: tuple[str, ...] | None = None) -> None:
    """Put the schema and every `recipes/*.yaml` into Hydra's ConfigStore, as groups `schema` and `recipe`.

    Given the `words` of a command line, it reads only the recipes that they name, and the recipes named in those. The
    others are stored empty, so that Hydra can list them.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from posttrain.config.schema import Run

    store = ConfigStore.instance()
    # Without types: Hydra would stop at the first wrong type, and `parse` checks all types and reports them at once.
    schema = OmegaConf.create(OmegaConf.to_container(OmegaConf.structured(Run)))
    for group in schema.values():
        if OmegaConf.is_config(group):
            OmegaConf.set_struct(group, False)
    store.store(name="schema", node=schema)
    wanted = None if words is None else _mentioned_recipes(" ".join(words))
    known = store.repo.get("recipe", {})
    for file in recipe_files():
        read = wanted is None or file.stem in wanted
        if read or f"{file.stem}.yaml" not in known:  # one that an earlier call has read stays
            node: Any = OmegaConf.load(file) if read else {}
            store.store(group="recipe", name=file.stem, node=node, package="_global_")


def _mentioned_recipes(text: str) -> set[str] | None:
    """The recipes that a command line names, and those named in them; None where any may be meant, or a user's own."""
    if re.search(r"recipe\S*(?:glob|\$)|(?:^|\s)(?:--config-|-cd|-cp|hydra\.searchpath)", text):
        return None
    files = {file.stem: file for file in recipe_files()}
    named: set[str] = set()
    queue = [text]
    while queue:
        new = {*re.findall(r"[\w-]+", queue.pop())} & {*files} - named
        named |= new
        queue += [files[name].read_text(encoding="utf-8") for name in new]
    return named


def recipe_files() -> list[Path]:
    return sorted((ROOT / "recipes").glob("*.yaml"))


def groups() -> dict[str, list[str]]:
    """Group -> the options to choose from: the folders of conf/ and the files in them."""
    folders = sorted(p for p in (ROOT / "conf").iterdir() if p.is_dir())
    return {folder.name: sorted(p.stem for p in folder.glob("*.yaml")) for folder in folders}
