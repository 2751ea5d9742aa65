"""Small runs: their settings and data, and what they leave behind."""

from __future__ import annotations

import json
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
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from posttrain.config import parse, recipes, schema

    recipes.register()
    with initialize_config_dir(str(recipes.ROOT / "conf"), version_base="1.3"):
        cfg = hydra_compose("config", overrides=list(overrides))
    recipe = next((o.split("=")[1] for o in overrides if o.startswith("+recipe=")), None)
    return parse.parse(cfg), schema.Origin(recipe, tuple(overrides), None)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(next(folder.glob("*.safetensors")))
