"""Settings of odd types and in odd places: one message each, and nothing is dropped."""

import shlex

import pytest
from omegaconf import OmegaConf

from posttrain.config import combinations, parse, paths_and_secrets, recipe_list, recipes
from posttrain.errors import PosttrainError
from posttrain.jobs import help_page, preflight, sweep
from posttrain.runs.identity import digest
from tests.helpers.runs import compose

PLAIN = ("trainer=dpo", "model=tiny", "data.path=rows.jsonl", "tracking=none")


@pytest.mark.parametrize("value", [3, True, 0.5])
def test_a_loss_type_that_is_no_text_gets_a_message(value):
    assert not combinations.check_smoothing("dpo", ("DPOTrainer",), {"loss_type": value})


@pytest.mark.parametrize("value", ["abc", None])
def test_a_stream_with_odd_max_steps_gets_a_message(value):
    run, _ = compose(*PLAIN, "data.streaming=true")
    run.trainer.args["max_steps"] = value
    with pytest.raises(PosttrainError, match=r"set trainer\.args\.max_steps=N"):
        preflight.check(run)


@pytest.mark.parametrize("entry", [3, {}, None])
def test_odd_callbacks_have_a_digest(entry):
    run, _ = compose(*PLAIN, "job=sample")
    run.trainer.callbacks = [entry]
    assert digest(run)


def test_an_alarm_is_not_switched_off_by_null():
    _, errors = parse.read(OmegaConf.create({"alarms": {"kl": None}, "model": {"path": "x"}}))
    assert any(line.startswith("alarms.kl=null: an alarm is switched off with") for line in errors)


@pytest.mark.parametrize("key", ["api-key", "X-Api-Key", "private-key"])
def test_a_secret_may_be_in_a_header(key):
    assert paths_and_secrets.secrets({"headers": {key: "abc"}})


def test_the_help_of_an_unknown_trainer_is_an_error(capsys):
    assert help_page.show("train", ["trainer=nope"]) == 1
    assert "trainer=nope: no such option; choose from" in capsys.readouterr().err
    assert help_page.show("train", ["trainer.kind=${nope}"]) == 1
    assert "trainer.kind: Interpolation key 'nope' not found" in capsys.readouterr().err


def test_a_recipe_with_an_unknown_key_is_explained(capsys):
    assert recipe_list.main(["dpo_smollm2", "trainer=nope"]) == 1
    assert capsys.readouterr().err.startswith("trainer=nope: no such option")


@pytest.mark.parametrize("words", ["--config-dir mine", "--config-dir=mine", "-cd mine", "hydra.searchpath=[file://x]"])
def test_a_recipe_of_the_users_own_may_name_any_recipe(words):
    assert recipes._mentioned_recipes(f"{words} +recipe=my") is None
    assert sweep.of_grid([*words.split(), "+recipe=my", "trainer.args.beta=1,2"]) == []
    assert recipes._mentioned_recipes("+recipe=dpo_llama") == {"dpo_llama"}


def test_the_command_of_a_run_names_the_users_own_folders():
    sources = [
        {"provider": "main", "path": "/conf"},
        {"provider": "command-line", "path": "/my own"},
        {"provider": "hydra.searchpath in command-line", "path": "/more"},
    ]
    known = OmegaConf.create({"runtime": {"config_sources": sources}})
    assert parse.own_folders(known) == ['hydra.searchpath=["file:///my own", "file:///more"]']
    assert not parse.own_folders(OmegaConf.create({"runtime": {"config_sources": sources[:1]}}))
    assert shlex.split(shlex.join(parse.own_folders(known))) == parse.own_folders(known)
