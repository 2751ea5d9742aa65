"""Every recipe composes, is valid for the installed TRL, and says what it is for and how to run it."""

from dataclasses import asdict
from pathlib import Path

import pytest

from posttrain.config import recipes, trainers
from posttrain.jobs import preflight
from posttrain.pipeline.plan import run_of
from posttrain.pipeline.stages import read
from tests.helpers.runs import compose

RECIPES = recipes.recipe_files()
# Recipes named after a method that is a setting of a trainer.
KIND_OF = {
    **dict.fromkeys(("dapo", "gspo", "dr"), "grpo"),
    **dict.fromkeys(("simpo",), "cpo"),
    **dict.fromkeys(("distill",), "distillation"),
}
OTHER_PIPELINES = ("frontier", "sft_distill", "shift", "tools")
PIPELINES = ("rlhf", "sft_dpo", "online_dpo", "rest", "rft")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_passes_the_cheap_checks(path: Path):
    run = compose(f"+recipe={path.stem}")[0]
    preflight.check(run)
    if path.stem.startswith((*PIPELINES, *OTHER_PIPELINES)):
        assert run.job == "pipeline"
    else:
        method = path.stem.split("_")[0]
        assert run.trainer.kind == KIND_OF.get(method, method)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_says_what_for_and_how(path: Path):
    purpose, command, *_ = path.read_text(encoding="utf-8").splitlines()
    assert purpose.startswith("# ")
    assert len(purpose) > 20
    assert command.replace("python -m ", "") == f"# posttrain +recipe={path.stem}"


METHODS = ("sft", "reward", "dpo", "grpo", "rloo", "kto", "ppo", "simpo", "orpo", "dapo", "gspo", "dr_grpo")


@pytest.mark.parametrize("name", METHODS)
def test_llama_recipes_are_qlora_of_8b(name: str):
    run = compose(f"+recipe={name}_llama")[0]
    assert run.model.path == "meta-llama/Llama-3.1-8B-Instruct"
    assert (run.peft.method, run.peft.quantization["bnb_4bit_quant_type"]) == ("lora", "nf4")
    assert run.peft.lora["target_modules"] == "all-linear"


@pytest.mark.parametrize("name", METHODS)
def test_qwen_recipes_differ_from_the_llama_ones_in_the_model_alone(name: str):
    llama, qwen = (asdict(compose(f"+recipe={name}_{family}")[0]) for family in ("llama", "qwen"))
    assert qwen.pop("model")["path"] == "Qwen/Qwen3-8B"
    llama.pop("model")
    assert qwen == llama


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("model", ["llama", "smollm2"])
def test_an_adapter_goes_on_through_all_stages_of_a_pipeline(name: str, model: str):
    """One shape of adapter: a parent that had to be merged would be rounded, and quantized again."""
    pipeline = compose(f"+recipe={name}_{model}")[0]
    stages = read(pipeline.stages, pipeline.common).stages.values()
    trained = [run_of(stage, "outputs", {}, {}) for stage in stages]
    assert len({str(run.peft.lora) for run in trained if run.job == "train"}) == 1


@pytest.mark.parametrize("name", ["grpo", "rloo", "ppo"])
@pytest.mark.parametrize("model", ["llama", "smollm2"])
def test_nothing_of_a_recipe_stays_beside_a_reward_of_ones_own(name: str, model: str):
    own = compose(f"+recipe={name}_{model}", "~reward", "+reward.mine.function=my_rewards.brevity")[0]
    assert set(own.reward) == {"mine"}


@pytest.mark.parametrize("name", ["online_dpo_smollm2", "rest_smollm2", "rft_smollm2"])
def test_stages_on_sampled_data_are_measured_on_the_held_out_rows_of_their_recipe(name: str):
    """Or a round would be compared with its start on other questions."""
    pipeline = compose(f"+recipe={name}")[0]
    found = [
        (stage, run_of(stage, "outputs", {}, {}).data)
        for stage in read(pipeline.stages, pipeline.common).stages.values()
        if "data.path" in stage.parents
    ]
    assert found
    for stage, data in found:
        own = compose(f"+recipe={stage.recipe}")[0].data
        assert (data.eval_path, data.eval_split, data.args) == (own.path, own.eval_split, own.args)


def test_the_settings_of_built_in_held_out_data_are_kept_and_those_of_other_data_are_not():
    mine = ("+recipe=dpo_smollm2", "data.path=mine.jsonl")
    assert compose(*mine)[0].data.eval_split is None
    assert compose(*mine, "data.eval_path=test.jsonl")[0].data.args == {}
    kept = compose(*mine, "data.eval_path=embedded:squad")[0].data
    assert (kept.eval_split, kept.args["words"]) == ("test", [15, 35])


OWN = [
    path.stem
    for path in RECIPES
    if path.stem.endswith("_smollm2") and not path.stem.startswith(("ppo", *PIPELINES, *OTHER_PIPELINES))
]


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize("name", OWN)
def test_recipe_trains_on_its_own_data(train, name: str):
    options = ["model=tiny", "data.max_train_rows=8", "data.max_eval_rows=2", "tracking=none", "probe.prompts=1"]
    options += ["probe.greedy_prompts=1", "probe.shift_prompts=1", "probe.max_new_tokens=4", "trainer.args.max_steps=2"]
    recipe = compose(f"+recipe={name}")[0]
    if recipe.trainer.teacher.model:
        options.append("trainer.teacher.model=embedded:tiny")  # a teacher must know the tokens of its student
    if trainers.of(recipe.trainer.kind).samples_completions:
        options += ["trainer.args.max_completion_length=4", "trainer.args.eval_strategy=no"]
    else:
        # The tiny model's tokens are bytes: rows are long.
        options += ["trainer.args.max_length=2048", "trainer.args.per_device_train_batch_size=2"]
        options.append("trainer.args.gradient_accumulation_steps=1")
    assert train(f"+recipe={name}", *options, small=False).finished()


GROUPS = sorted((recipes.ROOT / "conf").glob("*/*.yaml"))


# What some rewards cannot do without.
REQUIRED = {
    "rm": "reward.rm.model=acme/reward",
    "ensemble": "reward.ensemble.args.models=[acme/one,acme/two]",
    "judge": "reward.judge.args.model=acme/judge",
    "grader": "reward.grader.grader=grader.json",
    "json_schema": "reward.json_schema.args.schema=schema.json",
    "unit_tests": "reward.unit_tests.args.execute=true",
}


@pytest.mark.parametrize("path", GROUPS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_group_option_composes(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("posttrain.extras.missing_modules", lambda *modules: [])  # not every tracker is installed here
    (tmp_path / "grader.json").write_text(
        '{"type": "string_check", "operation": "like", "input": "{{ sample.output_text }}", "reference": "yes"}'
    )
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    choices = {"trainer": "sft", "model": "tiny", "data": "squad", path.parent.name: path.stem}
    overrides = [f"{group}={choice}" for group, choice in choices.items()]
    kind = trainers.of({"simpo": "cpo"}.get(choices["trainer"], choices["trainer"]))
    if kind.takes_rewards:
        overrides.append("reward=length")
    if kind.has_teacher:
        overrides.append("trainer.teacher.model=embedded:tiny")
    if choices["trainer"] == "ppo":
        overrides.append("peft=lora")
    if path.stem in REQUIRED:
        overrides.append(REQUIRED[path.stem])
    preflight.check(compose(*overrides)[0])


def test_a_command_in_this_process_leaves_the_recipes_that_were_read():
    recipes.register()
    recipes.register(("trainer=dpo",))
    run, _ = compose("+recipe=dpo_smollm2")
    assert run.trainer.kind == "dpo"
