"""Pipelines with real stages: each its own process, reused, continued after a kill, and shared between pipelines."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers.command import Popen
from tests.helpers.runs import ENVIRONMENT, rows, write_pairs

SMALL = (
    *("job=pipeline", "common.model=tiny", "common.tracking=none", "common.data.path=pairs.jsonl"),
    *("common.data.eval_split=null", "common.data.eval_size=8", "common.data.max_train_rows=null"),
    *("common.probe.prompts=0", "common.probe.greedy_prompts=0", "common.trainer.args.bf16=false"),
    "common.trainer.args.per_device_train_batch_size=8",
)
SHORT = "max_steps: 2, max_completion_length: 8, learning_rate: 1e-2, eval_on_start: false"
RLHF = (
    *SMALL,
    "+stages.reward={recipe: reward_smollm2, gate: 'eval_accuracy >= 0'}",
    "+stages.ppo={recipe: ppo_smollm2, reward: rm, from: {reward.rm.model: reward}}",
    f"+stages.ppo.trainer.args={{{SHORT}}}",
    "+stages.ppo.probe={prompts: 2, max_new_tokens: 4}",
)


def start(folder, *args):
    return Popen(
        [sys.executable, "-m", "posttrain", *args],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def only(pattern):
    (found,) = Path("outputs").glob(pattern)
    return found


def test_the_plan_of_stages_that_do_not_train_imports_nothing_heavy():
    code = (
        "import sys, runpy\n"
        "sys.argv = ['posttrain', 'job=pipeline', '+stages.a={recipe: ppo_smollm2, job: evaluate}', 'dry_run=true']\n"
        "try: runpy.run_module('posttrain', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print('heavy:', sorted({'torch', 'transformers', 'trl', 'peft', 'datasets', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **ENVIRONMENT}
    )
    assert "# a\nposttrain +recipe=ppo_smollm2 " in done.stdout
    assert "heavy: []" in done.stdout


def test_reward_model_then_ppo_then_reused_then_only_what_changed(cli, pairs):
    first = cli(*RLHF)
    assert first.returncode == 0, first.stdout + first.stderr
    reward, ppo, whole = only("reward-*"), only("ppo-*"), only("pipeline-*")
    said = json.loads((whole / "pipeline.json").read_text())
    assert said["status"] == "finished"
    assert {name: (e["status"], Path(e["run"]).name) for name, e in said["stages"].items()} == {
        "reward": ("finished", reward.name),
        "ppo": ("finished", ppo.name),
    }
    metrics = json.loads((reward / "run.json").read_text())["metrics"]
    assert said["stages"]["reward"]["gates"] == [
        {"gate": "eval_accuracy >= 0", "value": metrics["eval_accuracy"], "met": True}
    ]
    command = said["stages"]["ppo"]["command"]
    assert f"reward.rm.model=outputs/{reward.name}" in command
    assert command in first.stdout
    assert "an adapter on the policy's base" in first.stdout, "what the stage says is shown"
    assert "an adapter on the policy's base" in (whole / "logs/ppo.log").read_text()
    assert "| held out | reward | ppo |" in (whole / "table.md").read_text().splitlines()

    before = {path: path.stat().st_mtime_ns for path in (reward / "run.json", ppo / "run.json")}
    second = cli(*RLHF)
    assert second.returncode == 0, second.stdout + second.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing is trained again"
    assert "reward is finished" in second.stdout
    assert "ppo is finished" in second.stdout

    third = cli(*RLHF, "stages.ppo.trainer.args.beta=0.07")
    assert third.returncode == 0, third.stdout + third.stderr
    assert "trainer.args.beta 0.02 -> 0.07" in " ".join(third.stdout.split())
    assert (reward / "run.json").stat().st_mtime_ns == before[reward / "run.json"]
    assert len(list(Path("outputs").glob("ppo-*"))) == 2


def test_killed_then_continued_by_one_of_two_pipelines_that_share_the_stage(tmp_path):
    """SIGKILL of pipeline and stage; then two pipelines at once: one trains the stage to its end, the other waits."""
    write_pairs(tmp_path / "pairs.jsonl", 72)
    steps = "trainer: {args: {num_train_epochs: 14, save_steps: 10}}"
    shared = (*SMALL, f"+stages.sft={{recipe: sft_smollm2, {steps}}}")
    process = start(tmp_path, *shared)
    end = time.monotonic() + 120
    while not list(tmp_path.glob("outputs/sft-*/checkpoints/checkpoint-*/trainer_state.json")):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.02)
    (stage,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    os.kill(int(stage), signal.SIGKILL)
    process.wait()
    process.stdout.close()

    both = [start(tmp_path, *shared), start(tmp_path, *shared, '+stages.sft.gate="eval_loss > 0"')]
    texts = [p.communicate(timeout=240)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0], texts
    trained, waited = sorted(texts, key=lambda text: "continued from checkpoint-" not in text)
    assert "of an interrupted run" in trained
    assert "continued from checkpoint-" in trained
    assert "continued from checkpoint-" not in waited
    assert "sft is finished" in waited
    assert sum("sft: another process is running it; waiting for it" in text for text in texts) == 1
    logged = [row["step"] for row in rows(only("sft-*") / "metrics.jsonl") if "loss" in row]
    assert logged == sorted(set(logged)), "no step is trained twice"
    assert len(list(Path("outputs").glob("pipeline-*/pipeline.json"))) == 2


def test_sigterm_reaches_the_stage_which_saves(tmp_path):
    write_pairs(tmp_path / "pairs.jsonl", 72)
    steps = "trainer: {args: {num_train_epochs: 200, save_steps: 5}}"
    process = start(tmp_path, *SMALL, f"+stages.sft={{recipe: sft_smollm2, {steps}}}")
    end = time.monotonic() + 120
    while not list(tmp_path.glob("outputs/sft-*/checkpoints/checkpoint-*")):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.02)
    process.terminate()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "Stopped by SIGTERM at step" in output, "the stage's own words"
    assert "Stopped by SIGTERM. Continue with: posttrain job=pipeline" in output
    assert "Traceback" not in output
