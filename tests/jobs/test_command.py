"""The real command: help, errors and their exit codes, all before anything heavy is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.config.recipes import recipe_files
from tests.helpers.runs import ENVIRONMENT


def test_help_lists_every_recipe_with_its_purpose(cli):
    done = cli("--help")
    assert done.returncode == 0
    for recipe in recipe_files():
        purpose = recipe.read_text().splitlines()[0].lstrip("# ")
        assert f"+recipe={recipe.stem} " in done.stdout
        assert purpose in done.stdout
    assert "lora" in done.stdout


def test_cfg_job_shows_the_composed_config(cli):
    done = cli("+recipe=dpo_smollm2", "trainer.args.beta=0.07", "--cfg", "job")
    assert done.returncode == 0
    assert "beta: 0.07" in done.stdout
    assert "kind: dpo" in done.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["+recipe=dpo_smolm2"], ["Could not find 'recipe/dpo_smolm2'", "dpo_smollm2"]),
        (["+recipe=dpo_smollm2", "peft=loora"], ["Could not find 'peft/loora'", "qlora"]),
        (["+recipe=dpo_smollm2", "trainer.kidn=dpo"], ["trainer.kidn"]),
        (["+recipe=dpo_smollm2", "+trainer.kidn=dpo"], ["trainer.kidn: unknown key; did you mean kind?"]),
        (["+recipe=dpo_smollm2", "+datta.path=x"], ["datta: unknown key; did you mean data?"]),
        (["+recipe=dpo_smollm2", "data.eval_size=lots"], ["data.eval_size"]),
        ([], ["data.path: required", "model.path: required", "trainer.kind: required"]),
        (["+recipe=dpo_smollm2", "trainer.args.betta=1"], ["trainer.args.betta: not an option of DPOConfig"]),
        (["+recipe=dpo_smollm2", "trainer.args.output_dir=x"], ["trainer.args.output_dir: set by posttrain"]),
        (["+recipe=dpo_smollm2", "trainer.args.loss_type=[x]", "peft.lora.rank=4"], ["loss_type", "peft.lora.rank"]),
        (["+recipe=dpo_smollm2", "data.path=missing.jsonl"], ["data.path=missing.jsonl: no such file"]),
        (["+recipe=dpo_smollm2", "model.path=./nowhere"], ["model.path=./nowhere: no such folder"]),
        (["+recipe=dpo_smollm2", "model.path=embedded:big"], ["choose from embedded:smollm2, embedded:tiny"]),
        (["+recipe=dpo_smollm2", "peft.method=qlora"], ["peft.method=qlora: did you mean lora?"]),
        (["+recipe=dpo_smollm2", "tracking.backend=mlflow"], ["choose from wandb, trackio, tensorboard, none"]),
        (["+recipe=dpo_smollm2", "model.kwargs.token=hf_x"], ["model.kwargs.token: a secret does not belong"]),
        (["+recipe=kto_smollm2", "trainer.args.per_device_train_batch_size=1"], ["set at least 2"]),
        (["+recipe=grpo_smollm2", "~reward"], ["reward: grpo needs one"]),
        (["+recipe=grpo_smollm2", "trainer.args.num_generations=7"], ["num_generations=7: does not divide"]),
        (["+recipe=ppo_smollm2", "~reward"], ["reward: ppo needs one"]),
        (["+recipe=ppo_smollm2", "trainer.args.num_generations=3"], ["num_generations=3: does not divide the 16"]),
        (["+recipe=ppo_smollm2", "trainer.args.num_iterations=2"], ["set by posttrain; it is num_ppo_epochs"]),
        (["+recipe=ppo_smollm2", "trainer.args.value_mode=adaptor"], ["did you mean adapter?"]),
        (["+recipe=ppo_smollm2", "trainer.args.value_mode=adapter", "peft=none"], ["value_mode=adapter", "peft=lora"]),
        (["+recipe=ppo_smollm2", "trainer.args.value_init=reward"], ["value_init=reward: copies a reward model"]),
        (["+recipe=ppo_smollm2", "peft.value.r=8"], ["peft.value: options of PPO's value adapter"]),
        (["+recipe=grpo_smollm2", "reward.mine.function=os.nothing"], ["reward.mine.function=os.nothing"]),
        (["+recipe=grpo_smollm2", "reward.mine.weight=2"], ["reward.mine: give one of function"]),
        (
            ["+recipe=grpo_smollm2", "reward.mine.functon=x"],
            ["reward.mine.functon: unknown key; did you mean function?"],
        ),
        (["+recipe=grpo_smollm2", "reward.abstention.args.colum=x"], ["reward.abstention.args.colum"]),
    ],
)
def test_a_mistake_gets_one_message_and_exit_code_1(cli, args, said):
    done = cli(*args)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for text in said:
        assert text in done.stderr
    assert not list(Path.cwd().iterdir()), "a rejected config leaves nothing"


def test_full_error_gives_the_traceback(cli):
    done = cli("+recipe=dpo_smollm2", "trainer.args.betta=1", env={"HYDRA_FULL_ERROR": "1"})
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_config_error_imports_nothing_heavy():
    code = (
        "import sys, runpy; sys.argv = ['posttrain', '+recipe=dpo_smollm2', 'trainer.args.betta=1']\n"
        "try: runpy.run_module('posttrain', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'datasets', 'wandb', 'matplotlib'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **ENVIRONMENT}
    )
    assert "betta" in done.stderr
    assert "heavy: []" in done.stdout
