"""The next training command: from a finished run, with it as a reward, or on data that was sampled from a model."""

from __future__ import annotations

import shlex
from pathlib import Path

from posttrain.runs.directory import RunDirectory

# End of the names of recipes -> the model that they train.
FAMILIES = {
    "smollm2": "embedded:smollm2",
    "llama": "meta-llama/Llama-3.1-8B-Instruct",
    "qwen": "Qwen/Qwen3-8B",
}


def training_command(
    kind: str, model: str, recipe: str | None, data: str, recipe_data: bool = False, as_reward: bool = False
) -> str:
    """`posttrain …` that trains by `kind` from `model`: a run's folder, a hub id or path, or "" where it is not known.

    It takes the recipe of the family of `recipe` where that trains the same base, else the trainer's defaults. The rows
    are `data`; with `recipe_data`, the recipe's own where there is a recipe. With `as_reward` the run `model` is the
    reward, and training starts from its base.
    """
    record = (RunDirectory(Path(model).expanduser()).record() if model else None) or {}
    base = record["model"]["path"] if record else model
    family = (recipe or "").rpartition("_")[2]
    if base and FAMILIES.get(family) == base:
        words = [f"+recipe={kind}_{family}"]
        # The recipe's own probe asks for columns of the recipe's data.
        words += [] if recipe_data else ["probe=default", f"data.path={data}"]
    else:
        adapter = "qlora" if record.get("quantization") else "lora"
        words = [f"trainer={kind}", f"peft={adapter}", f"model.path={base or 'MODEL'}", f"data.path={data}"]
    if as_reward:
        words += ["reward=rm", f"reward.rm.model={model}"]
    elif record:
        words.append(f"model.init_from={model}")
    return shlex.join(["posttrain", *words])
