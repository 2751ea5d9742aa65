"""Every recipe composes, is valid for the installed TRL, and says what it is for and how to run it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from posttrain import config, preflight

RECIPES = config.recipe_files()


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    config.register()
    with initialize_config_dir(str(config.ROOT / "conf"), version_base="1.3"):
        yield


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_passes_the_cheap_checks(path: Path):
    run = config.parse(compose("config", overrides=[f"+recipe={path.stem}"]))
    preflight.check(run)
    assert run.trainer.kind == path.stem.split("_")[0]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_says_what_for_and_how(path: Path):
    purpose, command, *_ = path.read_text(encoding="utf-8").splitlines()
    assert purpose.startswith("# ")
    assert len(purpose) > 20
    assert command == f"# python -m posttrain +recipe={path.stem}"


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "grpo", "rloo", "kto"])
def test_llama_recipes_are_qlora_of_8b(name: str):
    run = config.parse(compose("config", overrides=[f"+recipe={name}_llama"]))
    assert run.model.path == "meta-llama/Llama-3.1-8B-Instruct"
    assert (run.peft.method, run.peft.quantization["bnb_4bit_quant_type"]) == ("lora", "nf4")
    assert run.peft.lora["target_modules"] == "all-linear"


GROUPS = sorted((config.ROOT / "conf").glob("*/*.yaml"))


@pytest.mark.parametrize("path", GROUPS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_group_option_composes(path: Path):
    choices = {"trainer": "sft", "model": "tiny", "data": "squad", path.parent.name: path.stem}
    overrides = [f"{group}={choice}" for group, choice in choices.items()]
    if choices["trainer"] in ("grpo", "rloo"):
        overrides.append("reward=length")
    if path.stem == "rm":
        overrides.append("reward.rm.model=acme/reward")
    preflight.check(config.parse(compose("config", overrides=overrides)))
