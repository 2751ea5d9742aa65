"""FSDP and DeepSpeed, as far as they can be tested without GPUs: their configs, and what is said of them."""

from pathlib import Path

import pytest
import yaml

from posttrain.config import recipes
from posttrain.errors import PosttrainError
from posttrain.training import sharding
from tests.helpers.runs import SMALL, compose

CONFIGS = recipes.PACKAGE.parent / "accelerate"
ENGINES = {"fsdp2": ("ACCELERATE_USE_FSDP", "FSDP"), "zero3": ("ACCELERATE_USE_DEEPSPEED", "DEEPSPEED")}


@pytest.mark.parametrize("name", ENGINES)
def test_the_config_is_one_that_accelerate_reads_and_trl_ships(name):
    import trl
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    file = CONFIGS / f"{name}.yaml"
    read = load_config_from_file(str(file))
    assert read.distributed_type.value == ENGINES[name][1]
    # accelerate takes a key that it does not know without a word.
    inner = {**read.fsdp_config, **read.deepspeed_config}
    assert inner
    assert inner.keys() <= vars(launch_command_parser().parse_args(["script"])).keys()
    theirs = yaml.safe_load((Path(trl.__file__).parent / f"accelerate_configs/{name}.yaml").read_text())
    assert {**yaml.safe_load(file.read_text()), "num_processes": 8} == theirs


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    ("running", "said"), [("MULTI_CPU", "plain DDP on CPUs"), ("MULTI_GPU", "plain DDP"), ("NO", "one")]
)
def test_a_config_that_would_run_plain_ddp_is_named(name, running, said, monkeypatch):
    variable, engine = ENGINES[name]
    sharding.check_running({}, running)
    monkeypatch.setenv(variable, "true")
    with pytest.raises(PosttrainError, match=f"asked for {engine} and runs {said}.*, where each process holds all"):
        sharding.check_running({}, running)
    sharding.check_running({}, engine)


def test_it_is_said_before_the_first_step(train, monkeypatch):
    """Without a GPU accelerate takes a config of FSDP, and trains without it."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(PosttrainError, match="FSDP"):
        train("trainer=sft", "data=squad", "data.columns={}", "peft=lora", "trainer.args.max_steps=1")
    assert not list(Path("outputs").glob("*/model"))


def test_the_probe_is_off_where_weights_are_divided_and_says_why(monkeypatch, capsys):
    from posttrain.probe import measurements

    run, _ = compose("trainer=dpo", "data=squad", *SMALL, "probe.prompts=4", "probe.shift_prompts=4")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert measurements.callbacks(run, None, object(), None, None, None, {}, None) == []
    assert "probe    off: the weights are divided over 2 processes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("environment", "args", "parts"),
    [
        ({}, {}, (1, 1)),
        ({"ACCELERATE_USE_FSDP": "true"}, {}, (4, 4)),
        ({}, {"fsdp": "full_shard"}, (4, 4)),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, {}, (4, 4)),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, {}, (1, 4)),
    ],
)
def test_what_is_divided(environment, args, parts, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert sharding.parts(args) == parts
