"""What the command line says of a stage holds, in whichever form the recipe writes it."""

import pytest

from posttrain.config import recipes
from posttrain.config.flat_settings import flatten
from posttrain.pipeline.stages import read
from tests.helpers.runs import compose

recipes.register()


def settings(name, *overrides, recipe="rlhf_smollm2"):
    run, _ = compose(f"+recipe={recipe}", *overrides)
    return read(run.stages, run.common).stages[name].settings


@pytest.mark.parametrize(
    ("word", "changed"),
    [
        ("stages.after_ppo.probe.prompts=24", {"probe.prompts": 24}),
        ("+stages.after_ppo.probe={prompts:24,max_new_tokens:8}", {"probe.prompts": 24, "probe.max_new_tokens": 8}),
        ("stages.after_ppo.reward.rm.weight=2", {"reward.rm.weight": 2}),
        ("+stages.after_ppo.data={max_eval_rows:7}", {"data.max_eval_rows": 7}),
        ("stages.after_ppo.probe.prompts=null", {"probe.prompts": None}),
    ],
)
def test_a_setting_below_a_choice_of_the_recipe_leaves_the_choice(word, changed):
    assert settings("after_ppo", word) == {**settings("after_ppo"), **changed}


def test_a_choice_and_a_setting_below_it_hold_together():
    given = settings("ppo", "stages.ppo.probe=default", "stages.ppo.probe.prompts=9")
    assert (given["probe"], given["probe.prompts"]) == ("default", 9)


def test_a_flat_key_of_the_recipe_gives_way():
    given = settings("sft", "stages.sft.data.max_train_rows=3", recipe="rest_smollm2")
    assert given == {**settings("sft", recipe="rest_smollm2"), "data.max_train_rows": 3}


def test_a_setting_for_all_stages_leaves_the_choice_for_all_stages():
    words = ("common.data.max_eval_rows=100", "common.probe.every=5")
    given = settings("dpo", *words, recipe="frontier_smollm2")
    assert (given["data"], given["data.max_eval_rows"]) == ("imdb", 100)
    assert (given["probe"], given["probe.every"]) == ("imdb", 5)


def test_a_stage_inside_rounds_and_a_new_stage():
    run, _ = compose(
        *("+recipe=rest_smollm2", "stages.rest.stages.grow.sample.n=3", "stages.rest.rounds=1"),
        *("+stages.more.recipe=sft_smollm2", "+stages.more.trainer.args.max_steps=2"),
    )
    stages = read(run.stages, run.common).stages
    assert stages["grow_1"].settings["sample.n"] == 3
    assert stages["more"].settings["trainer.args.max_steps"] == 2


def test_null_takes_away_a_parent_that_the_recipe_writes_flat():
    run, _ = compose("+recipe=rlhf_smollm2", "stages.after_ppo.from.evaluate.against=null")
    parents = read(run.stages, run.common).stages["after_ppo"].parents
    assert parents == {"model.init_from": "ppo", "reward.rm.model": "reward"}


def test_a_recipe_without_other_forms_is_left_as_hydra_composes_it():
    """The folder of a pipeline is named by its settings, so the same command finds it again."""
    run, _ = compose("+recipe=rlhf_smollm2", "stages.ppo.trainer.args.beta=0.1")
    assert run.stages["ppo"]["trainer"]["args"]["beta"] == 0.1
    assert flatten(run.stages)["ppo.trainer.args.beta"] == 0.1


def test_a_setting_that_a_later_word_takes_back():
    given = settings("ppo", "stages.ppo.probe.prompts=9", "stages.ppo.probe=none")
    assert given["probe"] == "none"
    assert "probe.prompts" not in given
