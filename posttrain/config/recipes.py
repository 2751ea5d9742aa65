"""The recipes and the schema in Hydra's ConfigStore, and the `--help` page."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from posttrain.config.schema import Run

# Options of a library are open-ended: `trainer.args.beta=0.1` needs no `+`. They are checked in preflight.
OPEN = (
    *("trainer.args", "model.kwargs", "peft.lora", "peft.quantization", "peft.value", "data.columns", "data.args"),
    *("data.mix", "reward", "probe.rewards", "probe.gold", "stages", "common"),
)

PACKAGE = Path(__file__).parents[1]

# A wheel carries conf/ and recipes/ inside the package, a checkout beside it.
ROOT = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent


@cache
def register() -> None:
    """Put the schema and every `recipes/*.yaml` into Hydra's ConfigStore, as groups `schema` and `recipe`; once."""
    store = ConfigStore.instance()
    schema = OmegaConf.structured(Run)
    for path in OPEN:
        OmegaConf.set_struct(OmegaConf.select(schema, path), False)
    store.store(name="schema", node=schema)
    for file in recipe_files():
        store.store(group="recipe", name=file.stem, node=OmegaConf.load(file), package="_global_")


def recipe_files() -> list[Path]:
    return sorted((ROOT / "recipes").glob("*.yaml"))


def help_text() -> str:
    """The `--help` page: how to call, the groups, and each recipe with the purpose on its first line."""
    purposes = {p.stem: p.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ") for p in recipe_files()}
    width = max(map(len, purposes))
    recipes = "\n".join(f"  +recipe={name:<{width}}  {purpose}" for name, purpose in purposes.items())
    groups = sorted(p.name for p in (ROOT / "conf").iterdir() if p.is_dir())
    options = "\n".join(
        f"  {g + '=':<11}{', '.join(sorted(p.stem for p in (ROOT / 'conf' / g).glob('*.yaml')))}" for g in groups
    )
    return f"""posttrain: post-training of language models on one GPU, from recipes over TRL.

  python -m posttrain +recipe=dpo_smollm2                               one run
  python -m posttrain +recipe=dpo_llama trainer.args.beta=0.05          any TRL option, under its own name
  python -m posttrain +recipe=dpo_llama model.path=ORG/NAME data.path=pairs.jsonl
  python -m posttrain -m +recipe=dpo_smollm2 trainer.args.beta=0.05,0.1 a sweep
  python -m posttrain +recipe=dpo_llama dry_run=true                    the plan; loads no weights
  python -m posttrain +recipe=dpo_smollm2 job=sample reward=abstention  its own completions as data (docs/sample.md)
  python -m posttrain +recipe=dpo_smollm2 job=evaluate model.init_from=RUN
  python -m posttrain.doctor +recipe=dpo_smollm2                        what is wrong with the data (docs/doctor.md)
  python -m posttrain job=pipeline 'stages={{...}}'                       recipes one after another (docs/pipelines.md)

Recipes
{recipes}

Groups
{options}

--cfg job shows the composed config; a run goes to output_dir/NAME-HASH and continues there when called again."""
