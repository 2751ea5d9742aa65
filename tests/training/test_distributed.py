"""More than one process by `accelerate launch`: the run of one process with the same batch."""

import os
import sys

import torch

from tests.helpers import command
from tests.helpers.runs import ENVIRONMENT, SMALL, rows, weights, write_pairs


def test_two_processes_agree_with_one(cli, tmp_path):
    write_pairs(tmp_path / "pairs.jsonl")
    options = ("+recipe=dpo_smollm2", *SMALL, "trainer.args.learning_rate=1e-2", "trainer.args.max_grad_norm=0")
    probe = ("probe.prompts=2", "probe.max_new_tokens=4")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "posttrain"]
    two = command.run(
        [*launch, *options, *probe, "name=two", "trainer.args.per_device_train_batch_size=4"],
        cwd=tmp_path,
        env={**os.environ, **ENVIRONMENT, "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("directory") == 1, "one process speaks"
    one = cli(*options, *probe, "name=one", "trainer.args.per_device_train_batch_size=8")
    assert one.returncode == 0, one.stderr
    (first,), (second,) = ((tmp_path / "outputs").glob(f"{name}-*") for name in ("one", "two"))
    a, b = weights(first / "model"), weights(second / "model")
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=2e-5, rtol=1e-4)
    losses = [[r["loss"] for r in rows(run / "metrics.jsonl") if "loss" in r] for run in (first, second)]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), atol=1e-4, rtol=0)
