"""A command line composed by Hydra, inside a job or outside."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from posttrain.config import recipes


def compose(overrides: Sequence[str]) -> Any:
    """The config that the command line `overrides` gives, as Hydra composes it; nothing is checked."""
    recipes.register()
    return composed(overrides)


def composed(overrides: Sequence[str]) -> Any:
    """As `compose`, with the recipes that are registered."""
    from hydra import compose

    with config_loader():
        return compose("config", overrides=list(overrides))


@contextmanager
def config_loader() -> Iterator[Any]:
    """Yield Hydra's config loader for the folder conf/: the running job's, or one that is started here."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    ready = GlobalHydra.instance().is_initialized()
    with nullcontext() if ready else initialize_config_dir(str(recipes.ROOT / "conf"), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()
