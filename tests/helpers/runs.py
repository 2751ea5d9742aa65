"""Small runs: their settings and data, and what they leave behind."""

import json
from functools import cache
from pathlib import Path
from typing import Any

# Before anything imports torch, W&B or the hub's client: no network, no telemetry, one thread a process.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "offline",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "CI": "true",
    "COLUMNS": "120",
}


# A run of seconds: a random model of 43k parameters, a few short rows, no samples unless a test asks for them.
SMALL = (
    *("model=tiny", "data.path=pairs.jsonl", "data.eval_split=null", "data.eval_size=8"),
    *(
        "data.max_train_rows=null",
        "probe.prompts=0",
        "probe.greedy_prompts=0",
        "tracking=none",
        "probe.shift_prompts=0",
    ),
    *("trainer.args.num_train_epochs=1", "trainer.args.logging_steps=1", "trainer.args.bf16=false"),
    "trainer.args.per_device_train_batch_size=8",
)


def write_pairs(path: Path, count: int = 40) -> None:
    """Preference pairs that a tiny model can learn: yes is preferred to no."""
    turns = [{"role": "system", "content": "s"}]
    with path.open("w") as file:
        for i in range(count):
            row = {
                "prompt": [*turns, {"role": "user", "content": f"{i}?"}],
                "chosen": [{"role": "assistant", "content": "yes"}],
                "rejected": [{"role": "assistant", "content": "no"}],
                "answers": ["yes"],
            }
            file.write(json.dumps(row) + "\n")


def compose(*overrides: str) -> tuple[Any, Any]:
    """The `Run` and `Origin` that the command line `overrides` would give."""
    from posttrain.config import data_override, parse, schema

    recipe = next((o.split("=")[1] for o in overrides if o.startswith("+recipe=")), None)
    run = parse.parse(composed(overrides))
    data_override.reset_settings(run, overrides)
    return run, schema.Origin(recipe, tuple(overrides), None)


def composed(overrides: tuple[str, ...]) -> Any:
    """What Hydra composes; the choices of groups among `overrides` once in a process, as they take Hydra longest."""
    from copy import deepcopy

    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.override_parser.overrides_parser import OverridesParser

    groups = tuple(o for o in overrides if _chooses(o))
    cfg = deepcopy(_of_groups(groups))
    # As `ConfigLoaderImpl._load_configuration_impl` does it after composing the groups.
    settings = OverridesParser.create().parse_overrides([o for o in overrides if o not in groups])
    ConfigLoaderImpl._apply_overrides_to_config(settings, cfg)
    return cfg


def _chooses(override: str) -> bool:
    from posttrain.config import recipes

    key = override.split("=")[0].lstrip("+~")
    return key in ("recipe", "schema") or key.startswith("hydra") or (recipes.ROOT / "conf" / key).is_dir()


@cache
def _of_groups(groups: tuple[str, ...]) -> Any:
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra

    from posttrain.config import recipes

    recipes.register()
    # Hydra copies the store, all recipes in it, each time; it copies what it takes from there, too.
    store: Any = ConfigStore.instance()
    store.__deepcopy__ = lambda _: store
    if GlobalHydra.instance().is_initialized():  # as it is where a pipeline composes a stage
        return compose("config", overrides=list(groups))
    with initialize_config_dir(str(recipes.ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=list(groups))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(next(folder.glob("*.safetensors")))
