"""The real command: help, errors and their exit codes, all before anything heavy is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.__main__ import main
from posttrain.config.recipes import recipe_files
from tests.helpers.runs import ENVIRONMENT


def test_help_names_every_recipe_within_80_columns(cli):
    done = cli("--help")
    assert done.returncode == 0
    words = done.stdout.replace(",", "").split()
    assert {recipe.stem for recipe in recipe_files()} <= set(words)
    assert "lora" in words
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_cfg_job_shows_the_composed_config(cli):
    done = cli("+recipe=dpo_smollm2", "trainer.args.beta=0.07", "--cfg", "job")
    assert done.returncode == 0
    assert "beta: 0.07" in done.stdout
    assert "kind: dpo" in done.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["+recipe=dpo_smolm2"], ["recipe=dpo_smolm2: no such recipe; did you mean dpo_smollm2?"]),
        (
            ["+recipe=dpo_smollm2", "peft=loora"],
            ["peft=loora: no such option; did you mean lora? choose from dora, lora, none, qlora"],
        ),
        (["+recipe=dpo_smollm2", "trainer.kidn=dpo"], ["trainer.kidn: unknown key; did you mean kind?"]),
        (
            [
                "+recipe=dpo_smollm2",
                "lr=1e-4",
                "probe.prompts=abc",
                "data.eval_size=x",
                "+data.pth=x",
                "trainer.args.beta=-1",
                "data.path=no.jsonl",
                "peft.lora.alpha=3",
                "reward.x.weight=heavy",
            ],
            [
                "lr: unknown key; set trainer.args.learning_rate",
                "probe.prompts=abc: expected a whole number",
                "data.eval_size=x: expected a number",
                "data.pth: unknown key; did you mean path?",
                "reward.x.weight=heavy: expected a number",
                "trainer.args.beta=-1: expected above 0",
                "data.path=no.jsonl: no such file",
                "peft.lora.alpha: not an option of LoraConfig; did you mean lora_alpha?",
            ],
        ),
        (["+recipe=dpo_smollm2", "learning_rate=1"], ["learning_rate: unknown key; set trainer.args.learning_rate"]),
        (["+recipe=dpo_smollm2", "lora_r=1"], ["lora_r: unknown key; set peft.lora.r"]),
        (["+recipe=dpo_smollm2", "trainer.args.epochs=1"], ["did you mean num_train_epochs?"]),
        (["+recipe=dpo_smollm2", "trainer.args.batch_size=1"], ["did you mean per_device_train_batch_size?"]),
        (["+recipe=ppo_smollm2", "trainer.args.kl_coef=1"], ["not an option of PPOConfig; did you mean beta?"]),
        (["+recipe=ppo_smollm2", "trainer.args.cliprange=1"], ["did you mean epsilon?"]),
        (["+recipe=ppo_smollm2", "trainer.args.response_length=1"], ["did you mean max_completion_length?"]),
        (["+recipe=ppo_smollm2", "trainer.args.total_episodes=9"], ["it is now max_steps, or num_train_epochs"]),
        (["+recipe=ppo_smollm2", "trainer.args.stop_token=eos"], ["stop_token: not an option of PPOConfig; set model"]),
        (["+recipe=ppo_smollm2", "trainer.args.reward_model_path=x"], ["set reward=rm reward.rm.model=RUN_OR_HUB_ID"]),
        (["+recipe=ppo_smollm2", "trainer.args.target=6"], ["it is now kl_target, in nats per completion"]),
        (["+recipe=dpo_smollm2", "name=a=(b"], ["name=a=(b: cannot be read; if the value is text", "'name=\"a=(b\"'"]),
        (["+recipe=dpo_smollm2", "trainer.args.loss_type=[a"], ["loss_type=[a: cannot be read", "check its brackets"]),
        (["recipe=dpo_smollm2"], ["recipe=dpo_smollm2: a recipe is added; write +recipe=dpo_smollm2"]),
        (["-m", "+recipe=dpo_smollm2", "trainer.args.beta=0,-1"], ["beta=0: expected above 0", "beta=-1: expected"]),
        (["+recipe=dpo_smollm2", "+trainer.kidn=dpo"], ["trainer.kidn: unknown key; did you mean kind?"]),
        (["+recipe=dpo_smollm2", "+datta.path=x"], ["datta: unknown key; did you mean data?"]),
        (["+recipe=dpo_smollm2", "doctr.near=1"], ["doctr.near: unknown key; did you mean doctor?"]),
        (["model=ORG/NAME"], ["model=ORG/NAME: chooses one of", "a path or hub id is model.path=ORG/NAME"]),
        (["+recipe=dpo_smollm2", "data.eval_size=lots"], ["data.eval_size"]),
        ([], ["data.path: required", "model.path: required", "trainer.kind: required"]),
        (["+recipe=dpo_smollm2", "trainer.args.betta=1"], ["trainer.args.betta: not an option of DPOConfig"]),
        (["+recipe=dpo_smollm2", "trainer.args.output_dir=x"], ["trainer.args.output_dir: set by posttrain"]),
        (["+recipe=dpo_smollm2", "trainer.args.loss_type=[x]", "peft.lora.rank=4"], ["loss_type", "peft.lora.rank"]),
        (["+recipe=dpo_smollm2", "data.path=missing.jsonl"], ["data.path=missing.jsonl: no such file"]),
        (["+recipe=dpo_smollm2", "model.path=./nowhere"], ["model.path=./nowhere: no such folder"]),
        (["+recipe=dpo_smollm2", "model.path=embedded:big"], ["choose from embedded:smollm2, embedded:tiny"]),
        (["+recipe=dpo_smollm2", "peft.method=qlora"], ["peft.method=qlora: did you mean lora?"]),
        (
            ["+recipe=dpo_smollm2", "tracking.backend=neptune"],
            ["choose from wandb, trackio, tensorboard, mlflow, comet, none"],
        ),
        (["+recipe=dpo_smollm2", "peft=null", "lr=1"], ["peft=null: a group is left out with '~peft'", "lr: unknown"]),
        (["+recipe="], ["recipe=: no such recipe; `posttrain recipes` lists"]),
        (["+recipe=dpo_smollm2", "trainer.args.beta=0,1"], ["beta=0,1: several values; add -m for a sweep"]),
        (["+recipe=dpo_smollm2", "peft.lora=[1]"], ["peft.lora=[1]: expected settings, {KEY: VALUE}"]),
        (["+recipe=dpo_smollm2", "name=${a}", "data.path=${b}"], ["name=${a}: Interp", "data.path=${b}: Interp"]),
        (["+recipe=sft_dpo_smollm2", "model=tiny"], ["model.path=embedded:tiny: no stage reads it here; set common."]),
        (["+recipe=sft_dpo_smollm2", "data.eval_size=4"], ["data.eval_size=4: no stage reads it here"]),
        (["+recipe=sft_dpo_smollm2", "objective=dpo.eval_acc"], ["objective=dpo.eval_acc: dpo logs no such metric"]),
        (["+recipe=sft_dpo_smollm2", "stages.dpo.output_dir=x"], ["stages.dpo.output_dir: set output_dir; the runs"]),
        (["+recipe=sft_dpo_smollm2", "+common.name=x"], ["common.name: a stage is named by its key"]),
        (
            ["+recipe=sft_dpo_smollm2", "+stages.dpo.sample.n=8", "+stages.sft.doctor.near=1"],
            ["stages.dpo.sample.n=8: job=train does not read it", "stages.sft.doctor.near=1: job=train does not read"],
        ),
        (["-m", "+recipe=dpo_smollm2", "sample.n=8,9"], ["sample.n=8: job=train does not", "sample.n=9: job=train"]),
        (["+recipe=dpo_smollm2", "sample.n=8"], ["sample.n=8: job=train does not read it; set job=sample"]),
        (["+recipe=dpo_smollm2", "job=sample", "doctor.near=1"], ["doctor.near=1: job=sample does not read it"]),
        (["+recipe=dpo_smollm2", "peft=none", "+peft.lora.r=8"], ["peft.lora.r=8: peft=none trains all weights"]),
        (
            ["+recipe=dpo_smollm2", "trainer.args.max_steps=9", "trainer.args.warmup_steps=10"],
            ["warmup_steps=10: max_steps=9 ends the run before the learning rate is reached"],
        ),
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
        (["+recipe=dpo_smollm2", "+trainer.args.beta=1"], ["trainer.args.beta: is there already; leave the + out\n"]),
        (["+recipe=dpo_smollm2", "-m", "trainer.args.beta=-1,-2"], ["trainer.args.beta=-1: expected above 0"]),
        (["+recipe=grpo_smollm2", "reward.abstention.args.colum=x"], ["reward.abstention.args.colum"]),
    ],
)
def test_a_mistake_gets_one_message_and_exit_code_1(args, said, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["posttrain"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    try:
        code = main(args)
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    for text in said:
        assert text in err
    # One line for each mistake, none of Hydra's around them.
    for text in ("Traceback", "Error executing job", "HYDRA_FULL_ERROR"):
        assert text not in err
    assert not list(Path.cwd().iterdir()), "a rejected config leaves nothing"


def test_a_home_folder_that_the_shell_leaves_as_it_is(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SystemExit):
        main(["+recipe=dpo_smollm2", "data.path=~/pairs.jsonl"])
    assert f"data.path={tmp_path}/pairs.jsonl: no such file" in capsys.readouterr().err


def test_the_real_command_says_the_mistake_and_nothing_else(cli):
    done = cli("+recipe=dpo_smollm2", "trainer.args.betta=1")
    assert done.returncode == 1
    assert done.stderr == "trainer.args.betta: not an option of DPOConfig; did you mean beta?\n"


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
