"""FSDP and DeepSpeed on two CPU processes, their configs, and what is said of them."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from posttrain.config import recipes
from posttrain.errors import PosttrainError
from posttrain.training import sharding
from tests.helpers import command, sharded_on_cpu
from tests.helpers.runs import ENVIRONMENT, SMALL, rows, weights, write_pairs

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


@pytest.mark.parametrize("engine", ["fsdp2", pytest.param("zero3", marks=pytest.mark.slow)])
def test_two_processes_that_share_the_weights_train_measure_and_resume_as_one(engine, cli, tmp_path):
    """The engines themselves, with gloo; the probe and the check of the pairs included."""
    if engine == "zero3":
        pytest.importorskip("deepspeed")
    write_pairs(tmp_path / "pairs.jsonl")
    options = ("+recipe=dpo_smollm2", *SMALL, "trainer.args.learning_rate=1e-2", "trainer.args.max_grad_norm=0")
    probe = ("probe.prompts=4", "probe.greedy_prompts=2", "probe.max_new_tokens=6", "probe.shift_prompts=4")
    probe += ("trainer.args.gradient_checkpointing=true",)
    saves = ("model.dtype=float32", "trainer.args.save_strategy=steps", "trainer.args.save_steps=2")
    two = (*options, *probe, *saves, f"name={engine}", "trainer.args.per_device_train_batch_size=4")
    output = _run_together(engine, two, tmp_path)
    assert output[0].count("directory") == 1
    others = [line for line in output[1].splitlines() if not re.search("DeepSpeed|real_accelerator", line)]
    assert not others, "one process speaks"
    (run,) = (tmp_path / "outputs").glob(f"{engine}-*")
    whole, log = weights(run / "model"), _comparable(run)

    one = cli(*options, *probe, *saves, "name=one", "trainer.args.per_device_train_batch_size=8")
    assert one.returncode == 0, one.stderr
    (alone,) = (tmp_path / "outputs").glob("one-*")
    expected = weights(alone / "model")
    for name in expected:
        torch.testing.assert_close(whole[name], expected[name], atol=2e-5, rtol=1e-4)
    measured, alone_measured = (
        [r for r in of if "probe/kl" in r or "shift/own" in r] for of in (log, _comparable(alone))
    )
    assert len(measured) == 3
    for row, other in zip(measured, alone_measured, strict=True):
        assert row == pytest.approx(other, abs=2e-3)
    assert rows(run / "samples.jsonl") == rows(alone / "samples.jsonl")

    # From the checkpoint in the middle, as after a crash.
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "running"}))
    shutil.rmtree(run / "model")
    steps = sorted(int(path.name.split("-")[1]) for path in (run / "checkpoints").glob("checkpoint-*"))
    shutil.rmtree(run / "checkpoints" / f"checkpoint-{steps[-1]}")
    again = _run_together(engine, two, tmp_path)[0]
    assert [int(step) for step in re.findall(rf"{run.name} (\d+)/", again)] == [*range(steps[-2] + 1, steps[-1] + 1)]
    resumed = weights(run / "model")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert _comparable(run) == log


def _run_together(engine, options, folder):
    """Start two processes, and return what each has printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        command.Popen(
            [sys.executable, str(Path(sharded_on_cpu.__file__)), *options],
            cwd=folder,
            env={**os.environ, **ENVIRONMENT, **sharded_on_cpu.environment(engine, rank, 2, port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0, 0], printed
    return [out for out, _ in printed]


def _comparable(run):
    """The log without what depends on the clock."""
    return [
        {k: v for k, v in row.items() if not re.search("seconds|runtime|per_second|share|tokens_per|num_tokens", k)}
        for row in rows(run / "metrics.jsonl")
    ]


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
