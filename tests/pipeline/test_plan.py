"""Pipelines without training: a stand-in for the stages' processes finishes each run, with metrics of a test's choice.

What takes real processes is in `test_pipeline_runs.py`.
"""

import json
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from posttrain.config import help_pages, recipes
from posttrain.config.flat_settings import flatten
from posttrain.config.schema import Origin
from posttrain.errors import PosttrainError
from posttrain.jobs import preflight
from posttrain.jobs.pipeline import pipeline
from posttrain.pipeline import overrides, process
from posttrain.pipeline.gates import Gate
from posttrain.pipeline.plan import Progress
from posttrain.pipeline.stages import read
from posttrain.runs import checkpoint
from posttrain.runs.directory import RunDirectory
from posttrain.runs.identity import digest
from tests.helpers.runs import compose, write_pairs

recipes.register()
SFT = {"recipe": "sft_smollm2"}
REWARD = {"recipe": "reward_smollm2"}
PPO = {"recipe": "ppo_smollm2", "reward": "rm", "from": {"reward.rm.model": "reward"}}
DPO = {"recipe": "dpo_smollm2", "from": {"data.path": "pairs"}}


def command(stages, *more):
    """`job=pipeline` with these stages, as the command line would give it, checked."""
    run, origin = compose("job=pipeline", f"stages={overrides.quote(stages)}", "tracking=none", *more)
    preflight.check(run)
    return run, origin


def test_null_takes_a_parent_away():
    stages = {"sft": SFT, "dpo": {"recipe": "dpo_smollm2", "from": {"model.init_from": "sft", "data.path": None}}}
    assert read(stages, {}).stages["dpo"].parents == {"model.init_from": "sft"}


def test_the_result_of_rounds_is_taken_after_the_last_is_measured():
    rounds = {"train": SFT, "check": {**SFT, "from": {"model.init_from": "train"}}}
    group = {"rounds": 2, "start": "sft", "stop": "check.score", "result": "train", "stages": rounds}
    after = {"recipe": "dpo_smollm2", "from": {"model.init_from": "group"}}
    assert list(read({"after": after, "sft": SFT, "group": group}, {}).stages)[-1] == "after"


def message(stages, *more):
    with pytest.raises(PosttrainError) as error:
        command(stages, *more)
    return str(error.value)


class Stand:
    """In place of `process.execute`: no process; the stage's run is finished with `metrics[STAGE]`."""

    def __init__(self):
        self.commands, self.metrics, self.status = [], {}, {}

    @property
    def stages(self):
        return [next(w.removeprefix("name=") for w in words if w.startswith("name=")) for words in self.commands]

    def __call__(self, words, log, signals):
        words = list(words)
        self.commands.append(words)
        start = words.index("posttrain") + 1
        name = self.stages[-1]
        args = tuple(words[start:])
        run = overrides.run_of(args)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("Traceback\nValueError: too long\n\nSet the environment variable HYDRA_FULL_ERROR=1 for more\n")
        directory = RunDirectory.of(run, Origin(None, args, None))
        directory.path.mkdir(parents=True, exist_ok=True)
        directory.write_config(run)
        status = self.status.get(name, 0)
        metrics = self.metrics.get(name, {})
        record = {"status": "running" if status else "finished", "job": run.job, "metrics": metrics}
        parents = [entry.model for entry in run.reward.values()] + [run.data.path, run.model.init_from]
        # What a run makes follows from its settings, as it does in training.
        record["content"] = json.dumps([name, run.trainer.args, [p for p in parents if p]])
        directory.write(record)
        return status


@pytest.fixture
def stand(monkeypatch):
    monkeypatch.setattr(process, "execute", made := Stand())
    return made


def states(run):
    steps = list(Progress(read(run.stages, run.common), run).steps())
    return {step.stage.name: (step.state, step.why) for step in steps}


def only(pattern):
    (found,) = Path("outputs").glob(pattern)
    return found


def record():
    return json.loads(only("pipeline-*/pipeline.json").read_text())


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, -0.5, 1e-05, "plain", "embedded:tiny", "a,b", "{x}", "a=b", 'it\'s "so"', "", "null", "1e-3"),
        *("50", "<|im_end|>", "a\\", "a b", "$HOME", "two\nlines", "~/x", "(1)", ["a", 1.5, [None]]),
        *({"a": {"b": ["x,y"]}}, [{"x:y": 2, "a b": {"c,d": "e"}, "f=g": None, "h\\i": 1}]),
    ],
)
def test_a_value_is_read_back_from_its_override(value):
    """Through the shell and Hydra: same value, same type."""
    (word,) = shlex.split(shlex.join(overrides.to_overrides({"trainer.args.model_kwargs": value})))
    got = overrides.run_of(("+recipe=sft_smollm2", word)).trainer.args["model_kwargs"]
    assert (got, type(got)) == (value, type(value))


def test_settings_become_overrides_choices_first_later_layers_over_earlier():
    common = {"tracking": {"tags": ["a"]}, "model": "qwen", "peft": "lora", "trainer": {"args": {"seed": 1}}}
    stage = {"tracking": "none", "model.dtype": "float32", "trainer": {"args": {"seed": 2}}, "reward": None}
    assert overrides.to_overrides(flatten(common, stage)) == [
        *("model=qwen", "peft=lora", "tracking=none", "~reward"),
        *("model.dtype=float32", "trainer.args.seed=2"),
    ]


def test_a_reward_in_place_of_the_recipes():
    mine = {"reward": {"mine": {"function": "a.b"}}}
    beside = overrides.run_of(("+recipe=ppo_smollm2", *overrides.to_overrides(flatten(mine))))
    assert [*beside.reward] == ["abstention", "mine"]
    instead = overrides.to_overrides(flatten({"reward": None}, mine))
    assert [*overrides.run_of(("+recipe=ppo_smollm2", *instead)).reward] == ["mine"]


def test_stages_run_in_the_order_of_their_parents():
    written = {"ppo": PPO, "reward": {**REWARD, "from": {"model.path": "sft"}}, "sft": SFT}
    assert [*read(written).stages] == ["sft", "reward", "ppo"]
    assert [*read({"b": SFT, "a": REWARD}).stages] == ["b", "a"], "else as written"


@pytest.mark.parametrize(
    ("text", "value", "met"),
    [
        *(("acc >= 0.6", 0.6, True), ("acc > 0.6", 0.6, False), ("acc<=.5", 0.4, True), ("acc < 1e-1", 0.2, False)),
        *(("reward.acc == 1", 1.0, True), ("acc >= 0", float("nan"), False)),
    ],
)
def test_gates(text, value, met):
    assert Gate.parse(text, "reward").met({"acc": value}) is met


@pytest.mark.parametrize("text", ["acc", "acc => 0.6", "acc >= high", "0.6", "acc >= 0.6 or True", 3])
def test_a_gate_is_no_code(text):
    assert "expected METRIC OP NUMBER" in message({"reward": {**REWARD, "gate": text}})


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ({}, "stages: a pipeline needs at least one"),
        ({"a": {"recipe": "sft_smolm2"}}, "stages.a.recipe=sft_smolm2: did you mean sft_smollm2?"),
        ({"a": {**SFT, "peft": "loora"}}, "stages.a.peft=loora: did you mean lora?"),
        ({"a": {**SFT, "trainer": {"args": {"betta": 1}}}}, "stages.a.trainer.args.betta: not an option of SFTConfig"),
        ({"a": {**SFT, "trainer": {"kidn": 1}}}, "stages.a.trainer.kidn: unknown key; did you mean kind?"),
        ({"a": {**SFT, "gaet": "x >= 1"}}, "stages.a.gaet: unknown key"),
        ({"a": {**SFT, "data": {"eval_size": "lots"}}}, "stages.a.data.eval_size=lots: expected a number"),
        ({"a": {**SFT, "from": {"model.init_form": "b"}}, "b": SFT}, "stages.a.model.init_form: unknown key; did you"),
        (
            {"a": {**SFT, "from": {"data.path": "sfd"}}, "sft": SFT},
            "stages.a.from.data.path=sfd: no such stage; did you",
        ),
        ({"a": {**SFT, "from": "b"}, "b": SFT}, "stages.a.from='b': expected config keys and stages"),
        (
            {"a": {**SFT, "from": {"data.path": "b"}}, "b": {**SFT, "from": {"data.path": "a"}}},
            "stages: a needs b needs a: a circle",
        ),
        ({"a b": SFT}, "stages.a b: a name begins with a letter"),
        ({"previous": SFT}, "stages.previous: the name is taken"),
        ({"a": {**SFT, "launch": ["acelerate", "launch"]}}, "no program acelerate here"),
        ({"a": {**SFT, "launch": {"x": 1}}}, "expected the words of a command"),
        ({"a": {"job": "pipeline"}}, "stages.a.job=pipeline: a stage is one run"),
        ({"a": {"recipe": "sft_dpo_smollm2"}}, "stages.a.recipe=sft_dpo_smollm2: a pipeline, and a stage is one run"),
        ({"a": "sft_smollm2"}, "stages.a='sft_smollm2': expected a recipe and settings"),
        ({"a": {**SFT, "model": {"kwargs": {"token": "hf_x"}}}}, "stages.a.model.kwargs.token: a secret does not"),
        ({"a": {}}, "stages.a.trainer.kind: required"),
        ({"reward": REWARD, "rewrad": {}}, "stages.rewrad: a stage without a recipe; did you mean reward?"),
        ({"a": {"rounds": 0, "stages": {"b": SFT}}}, "stages.a.rounds=0: expected a number of rounds"),
        ({"a": {"rounds": 2}}, "stages.a.stages: a group of rounds needs its own stages"),
        ({"a": {"rounds": 2, "stop": "x", "stage": {}, "stages": {"b": SFT}}}, "stages.a.stage: unknown key"),
        ({"a": {"rounds": 2, "result": "c", "stages": {"b": SFT}}}, "stages.a.result=c: no such stage; there are b"),
        ({"a": {"rounds": 2, "start": "c", "stages": {"b": SFT}}}, "stages.a.start=c: no such stage"),
        (
            {"a": {"rounds": 2, "stages": {"b": {**SFT, "from": {"data.path": "previous"}}}}},
            "stages.a.stages.b.from: previous is what the first round starts from; set stages.a.start=STAGE",
        ),
        (
            {"a": {"rounds": 3, "stages": {"b": {**SFT, "each": {"trainer.args.seed": [1, 2]}}}}},
            "stages.a.stages.b.each.trainer.args.seed=[1, 2]: expected a list of 3",
        ),
        (
            {"a": {"rounds": 2, "stop": "x", "stages": {"b": SFT}}, "c": {**SFT, "from": {"data.path": "b_2"}}},
            "stages.c.from.data.path=b_2: this round may not run; take a, the best round",
        ),
        (
            {"a": {"rounds": 2, "stages": {"b": {**SFT, "trainer": {"args": {"x": 1}}}}}},
            "stages.a.stages.b.trainer.args.x",
        ),
        ({"a": {"rounds": 2, "result": ["b"], "stages": {"b": SFT}}}, "stages.a.result=['b']: expected a stage"),
        ({"a": {"rounds": 2, "start": 3, "stages": {"b": SFT}}}, "stages.a.start=3: expected a stage"),
        ({"a": {"rounds": 2, "stop": 3, "stages": {"b": SFT}}}, "stages.a.stop=3: expected STAGE.METRIC"),
        ({"a": {"rounds": 2, "stages": {"b": SFT, "c": 3}}}, "stages.a.stages.c=3: expected a recipe and settings"),
        ({"a": {"rounds": 2, "stages": {"b": {**SFT, "each": [1]}}}}, "stages.a.stages.b.each=[1]: expected settings"),
        ({"a": {**SFT, "each": {"trainer.args.seed": [1]}}}, "stages.a.each: lists a value for every round"),
        ({"a": {**SFT, "gate": "eval_losss < 1"}}, "stages.a.gate=eval_losss < 1: sft logs no such metric; did you"),
        (
            {"a": {"rounds": 2, "stop": "eval_losss", "stages": {"b": SFT}}},
            "stages.a.stop=eval_losss: sft logs no such metric; did you mean eval_loss?",
        ),
        (
            {"a": {"rounds": 2, "stop": "b.probe/rewards/rm", "stages": {"b": SFT, "c": REWARD}}},
            "stages.a.stop=probe/rewards/rm: ",
        ),
        ({"a": {**SFT, "gate": "eval_loss < nan"}}, "stages.a.gate=eval_loss < nan: nan is not a number"),
    ],
)
def test_a_mistake_is_said_before_anything_runs(stages, said):
    text = message(stages)
    assert said in text
    lines = text.splitlines()
    assert len(set(lines)) == len(lines), "once"
    assert not Path("outputs").exists()


def test_a_pipeline_is_not_launched_as_many_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "job=pipeline: starts its own processes" in message({"a": SFT})


def test_help_names_pipelines():
    assert "job=pipeline" in help_pages.overview()


def test_mistakes_of_all_stages_come_together():
    text = message({"a": {"recipe": "nope"}, "b": {**SFT, "trainer": {"args": {"x": 1, "y": 2}}}})
    assert [line.split(":")[0] for line in text.splitlines()] == [
        *("stages.a.recipe=nope", "stages.b.trainer.args.x", "stages.b.trainer.args.y")
    ]


def test_mistakes_of_the_pipeline_itself_come_with_those_of_its_stages():
    stages = {"a": {**SFT, "trainer": {"args": {"betta": 1}}}}
    with pytest.raises(PosttrainError) as error:
        command(stages, "name=../x", "tracking.tags=[hf_abcdefghijklmnopqrstuvwxyz0123456789]")
    said = str(error.value).splitlines()
    assert said[0].startswith("name=../x: ")
    assert sum("../x" in line for line in said) == 1
    assert any(line.startswith("stages.a.trainer.args.betta: not an option") for line in said)


def test_a_parent_that_is_not_there_yet_passes_the_checks():
    """`value_init=reward` needs an adapter, and the reward model's recipe says that it will be one."""
    ppo = {**PPO, "trainer": {"args": {"value_mode": "adapter", "value_init": "reward"}}}
    command({"reward": REWARD, "ppo": ppo})
    assert "value_init=reward" in message({"reward": {**REWARD, "peft": "none"}, "ppo": ppo})


def test_common_settings_and_the_pipelines_own_tracking_and_output_dir_reach_every_stage(stand):
    more = ("common.model=tiny", "common.trainer.args.seed=7", "output_dir=elsewhere")
    pipeline(*command({"a": SFT, "b": {**REWARD, "model": "smollm2"}}, *more))
    first, second = (words[words.index("posttrain") + 1 :] for words in stand.commands)
    assert first == [
        *("+recipe=sft_smollm2", "model=tiny", "name=a", "output_dir=elsewhere", "tracking.backend=none"),
        "trainer.args.seed=7",
    ]
    assert "model=smollm2" in second
    assert "trainer.args.seed=7" in second
    assert "model=tiny" not in second


def test_every_stage_runs_once_and_then_only_what_changed(stand):
    stages = {"sft": SFT, "reward": REWARD, "ppo": PPO}
    stand.metrics = {"reward": {"eval_accuracy": 0.7}, "ppo": {"eval_reward": 0.5}}
    run, origin = command(stages, "objective=reward.eval_accuracy")
    assert {state for state, why in states(run).values()} == {"run"}
    assert pipeline(run, origin) == 0.7
    assert stand.stages == ["sft", "reward", "ppo"]
    assert f"reward.rm.model={only('reward-*')}" in stand.commands[2]
    said = record()
    assert (said["status"], {e["status"] for e in said["stages"].values()}) == ("finished", {"finished"})
    assert said["stages"]["ppo"]["metrics"] == {"eval_reward": 0.5}
    assert said["stages"]["ppo"]["run"] == str(only("ppo-*").absolute())

    assert states(run) == dict.fromkeys(stages, ("reuse", "finished"))
    pipeline(run, origin)
    assert len(stand.commands) == 3, "all were there"
    assert {e["status"] for e in record()["stages"].values()} == {"reused"}

    changed = command(stages, "stages.ppo.trainer.args.beta=0.05")
    assert states(changed[0])["ppo"] == ("run", "changed: trainer.args.beta 0.02 -> 0.05")
    pipeline(*changed)
    assert stand.stages[3:] == ["ppo"], "the shared stages are trained once"

    changed = command(stages, "stages.reward.trainer.args.learning_rate=1e-3")[0]
    assert states(changed) == {
        "sft": ("reuse", "finished"),
        "reward": ("run", "changed: trainer.args.learning_rate 0.0002 -> 0.001"),
        "ppo": ("run", "changed: trainer.args.beta 0.05 -> 0.02"),
    }


def test_a_parent_that_runs_again_and_a_parent_that_changed(stand):
    stages = {"reward": REWARD, "ppo": PPO}
    run, origin = command(stages)
    pipeline(run, origin)
    other = command(stages, "stages.reward.trainer.args.seed=1")
    assert states(other[0])["ppo"] == ("run", "its parent reward runs again")
    pipeline(*other)
    folder = RunDirectory(max(Path("outputs").glob("reward-*"), key=lambda p: (p / "run.json").stat().st_mtime))
    folder.write({**folder.record(), "content": "other"})
    assert states(other[0])["ppo"] == ("run", "its parent reward changed")
    before = len(stand.commands)
    pipeline(*other)
    folder.write({**folder.record(), "seconds": 100})
    pipeline(*other)
    assert len(stand.commands) == before + 1, "when it was made says nothing about what it is"


def test_the_codes_version_is_part_of_the_identity(stand, monkeypatch):
    run, origin = command({"sft": SFT})
    pipeline(run, origin)
    folder = RunDirectory(only("sft-*"))
    folder.write({**folder.record(), "versions": {"posttrain": "0.0.1"}})
    monkeypatch.setattr("posttrain.runs.identity.__version__", "9")
    monkeypatch.setattr("posttrain.pipeline.plan.__version__", "9")
    assert states(run)["sft"] == ("run", "changed: posttrain 0.0.1 -> 9")


def test_changed_data_is_seen(stand, pairs):
    run, origin = command({"sft": {**SFT, "data": {"path": "pairs.jsonl"}}})
    pipeline(run, origin)
    assert states(run)["sft"] == ("reuse", "finished")
    write_pairs(pairs, 48)
    assert states(run)["sft"] == ("run", "changed: a file it reads")


def test_a_file_counts_by_its_content_wherever_it_lies_and_a_run_by_what_it_made(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_pairs(tmp_path / folder / "pairs.jsonl")
        record = {"status": "finished", "content": "c", "seconds": folder}
        RunDirectory(tmp_path / folder).write(record)

    def digest_of(*more):
        return digest(overrides.run_of(("+recipe=sft_smollm2", *more)))

    assert digest_of("data.path=a/pairs.jsonl") == digest_of("data.path=b/pairs.jsonl") != digest_of()
    assert digest_of("model.init_from=a") == digest_of("model.init_from=b") != digest_of()
    write_pairs(tmp_path / "b/pairs.jsonl", 8)
    assert digest_of("data.path=a/pairs.jsonl") != digest_of("data.path=b/pairs.jsonl")
    plain = overrides.run_of(("+recipe=sft_smollm2",))
    sampling = replace(plain, sample=replace(plain.sample, n=9))
    assert digest(sampling) == digest_of(), "settings of another job decide nothing here"


def test_an_interrupted_stage_is_named_with_its_checkpoint(stand):
    stand.status = {"sft": 1}
    run, origin = command({"sft": SFT})
    with pytest.raises(PosttrainError):
        pipeline(run, origin)
    assert states(run)["sft"] == ("continue", "the start of an interrupted run")
    whole = only("sft-*") / "checkpoints/checkpoint-40"
    whole.mkdir(parents=True)
    (whole / "trainer_state.json").write_text('{"global_step": 40, "log_history": []}')
    checkpoint.seal(whole)
    assert states(run)["sft"] == ("continue", "checkpoint-40 of an interrupted run")
    with FileLock(only("sft-*") / ".lock"):
        assert states(run)["sft"] == ("continue", "another process is running it")


def test_dry_run_shows_stages_reasons_and_commands_and_writes_nothing(stand, capsys):
    reward = {**REWARD, "model": "tiny", "gate": "eval_accuracy >= 0.6"}
    small = {"data.max_train_rows": 8, "data.max_eval_rows": 4, "trainer.args.max_length": 2048}
    pipeline(*command({"reward": {**reward, **small}, "ppo": PPO}, "dry_run=true"))
    out = capsys.readouterr().out
    assert "eval_accuracy >= 0.6" in out
    lines = out.splitlines()
    words = shlex.split(lines[lines.index("# ppo") + 1])
    assert words[:2] == ["posttrain", "+recipe=ppo_smollm2"]
    assert any(word.startswith("reward.rm.model=outputs/reward-") for word in words)
    assert not stand.commands
    assert not Path("outputs").exists()


def test_a_dry_run_has_the_errors_of_every_stage_that_waits_for_no_other(stand, tmp_path):
    small = {"model": "tiny", "data.max_train_rows": 8, "data.max_eval_rows": 4, "trainer.args.max_length": 2048}
    write_pairs(tmp_path / "pairs.jsonl", 8)
    few = {"model": "tiny", "data.path": str(tmp_path / "pairs.jsonl"), "data.eval_size": 0}
    stages = {
        "sft": {**SFT, **small, "trainer.args.max_length": 8},
        "dpo": {**DPO, "model": "tiny", "from": {"model.init_from": "sft"}},
        "fits": {**SFT, **small},
        "reward": {**REWARD, **few, "trainer.args.max_length": 2},
    }
    with pytest.raises(PosttrainError) as error:
        pipeline(*command(stages, "dry_run=true"))
    sft, reward = str(error.value).splitlines()
    assert sft.startswith("stages.sft: ")
    assert reward.startswith("stages.reward: ")
    assert "max_length" in sft
    assert "max_length" in reward
    assert not Path("outputs").exists()


def test_a_failed_stage_stops_the_pipeline_and_says_how_to_look(stand):
    stand.status = {"reward": 1}
    with pytest.raises(PosttrainError) as error:
        pipeline(*command({"reward": REWARD, "ppo": PPO}))
    lines = str(error.value).splitlines()
    assert lines[0] == "stages.reward: ValueError: too long"
    assert lines[1].startswith("command  posttrain +recipe=reward_smollm2 name=reward")
    assert lines[2].endswith("logs/reward.log")
    assert "same command resumes" in lines[3]
    assert stand.stages == ["reward"]
    said = record()
    assert said["status"] == "failed"
    assert [e["status"] for e in said["stages"].values()] == ["failed", "waiting"]
    stand.status = {"reward": -9}
    with pytest.raises(PosttrainError, match="killed by SIGKILL; by the system because memory ran out, or by a person"):
        pipeline(*command({"reward": REWARD, "ppo": PPO}))


def test_a_gate_that_is_not_met_stops_the_pipeline_also_when_the_run_is_reused(stand):
    stages = {"reward": {**REWARD, "gate": ["reward.eval_accuracy >= 0.6", "eval_loss < 1"]}, "ppo": PPO}
    stand.metrics = {"reward": {"eval_accuracy": 0.55, "eval_loss": 0.4}}
    for _ in range(2):
        with pytest.raises(PosttrainError, match=r"not met: eval_accuracy >= 0.6 \(it is 0.55\); the run is"):
            pipeline(*command(stages))
    assert stand.stages == ["reward"]
    assert record()["stages"]["reward"]["gates"] == [
        {"gate": "eval_accuracy >= 0.6", "value": 0.55, "met": False},
        {"gate": "eval_loss < 1", "value": 0.4, "met": True},
    ]
    pipeline(*command({**stages, "reward": {**REWARD, "gate": "eval_accuracy >= 0.5"}}))
    assert stand.stages == ["reward", "ppo"], "a gate is no part of the run"
    with pytest.raises(PosttrainError, match="train_loss >= 1: not measured; there are eval_accuracy, eval_loss"):
        pipeline(*command({"reward": {**REWARD, "gate": "train_loss >= 1"}}))


REST = {
    "sft": SFT,
    "rest": {
        "rounds": 3,
        "start": "sft",
        "stop": "eval_mean_token_accuracy",
        "stages": {
            "grow": {**SFT, "job": "sample", "from": {"model.init_from": "previous"}},
            "improve": {
                **SFT,
                "from": {"model.init_from": "sft", "data.path": "grow"},
                "each": {"trainer.args.learning_rate": [1e-4, 2e-4, 3e-4]},
            },
        },
    },
    "judge": {**SFT, "from": {"model.init_from": "rest"}},
}


def test_rounds_become_stages():
    stages = read(REST).stages
    assert [*stages] == ["sft", "grow_1", "improve_1", "grow_2", "improve_2", "grow_3", "improve_3", "judge"]
    assert stages["grow_1"].parents == {"model.init_from": "sft"}
    assert stages["grow_2"].parents == {"model.init_from": "improve_1"}
    assert stages["improve_2"].parents == {"model.init_from": "sft", "data.path": "grow_2"}
    rates = [stages[f"improve_{n}"].settings["trainer.args.learning_rate"] for n in (1, 2, 3)]
    assert rates == [1e-4, 2e-4, 3e-4]


@pytest.mark.parametrize(
    ("values", "ran", "best"),
    [
        ((0.1, 0.2, 0.3, 0.4), 3, "improve_3"),
        ((0.1, 0.2, 0.2, 0.9), 2, "improve_1"),  # equal is no rise
        ((0.5, 0.4, 0.9, 0.9), 1, "sft"),
        ((None, 0.4, float("nan"), 0.9), 2, "improve_1"),  # nothing to compare the first round with
    ],
)
def test_rounds_stop_when_the_metric_does_not_rise_and_the_best_is_the_result(stand, values, ran, best):
    names = ("sft", "improve_1", "improve_2", "improve_3")
    stand.metrics = {n: {"eval_mean_token_accuracy": v} for n, v in zip(names, values, strict=True) if v is not None}
    run, origin = command(REST)
    pipeline(run, origin)
    rounds = [f"{stage}_{n}" for n in range(1, ran + 1) for stage in ("grow", "improve")]
    assert stand.stages == ["sft", *rounds, "judge"]
    assert f"model.init_from={only(f'{best}-*')}" in stand.commands[-1]
    said = record()
    assert said["rounds"]["rest"]["result"] == best
    skipped = [name for name, entry in said["stages"].items() if entry["status"] == "skipped"]
    assert skipped == [f"{stage}_{n}" for n in range(ran + 1, 4) for stage in ("grow", "improve")]
    if ran < 3:
        assert f"improve_{ran} has eval_mean_token_accuracy" in said["rounds"]["rest"]["ended"]
        assert states(run)["grow_3"][0] == "skip"
    before = len(stand.commands)
    pipeline(run, origin)
    assert len(stand.commands) == before, "finished, and known to be"


def test_the_stop_metric_may_be_another_stages(stand):
    inner = {"improve": {**SFT, "from": {"model.init_from": "previous"}}}
    inner["judge"] = {**SFT, "from": {"model.init_from": "improve"}}
    group = {"rounds": 3, "start": "sft", "result": "improve", "stop": "judge.eval_entropy", "stages": inner}
    stand.metrics = {"judge_1": {"eval_entropy": 0.2}, "judge_2": {"eval_entropy": 0.1}}
    pipeline(*command({"sft": SFT, "rest": group}))
    assert stand.stages == ["sft", "improve_1", "judge_1", "improve_2", "judge_2"]
    assert f"model.init_from={only('improve_1-*')}" in stand.commands[3]
    assert record()["rounds"]["rest"]["result"] == "improve_1"


def test_a_stop_metric_that_nobody_measured_is_said(stand):
    stand.metrics = {"improve_1": {"eval_loss": 1.0}}
    with pytest.raises(
        PosttrainError, match=r"rest.stop=eval_mean_token_accuracy: improve_1 did not measure it; there are"
    ):
        pipeline(*command(REST))


def test_a_stage_can_be_taken_out_on_the_command_line(stand):
    pipeline(*command({"sft": SFT, "reward": REWARD}, "stages.reward=null"))
    assert stand.stages == ["sft"]


def test_an_unknown_objective_lists_what_was_measured(stand):
    stand.metrics = {"reward": {"eval_accuracy": 0.7}}
    with pytest.raises(
        PosttrainError, match=r"objective=reward.eval_margin: reward did not measure it; there are eval_accuracy"
    ):
        pipeline(*command({"reward": REWARD}, "objective=reward.eval_margin"))


def test_the_table_has_probe_main_metric_and_intervals(stand, capsys):
    both = ("greedy/rewards/f1", "greedy/score")
    stand.metrics = {"judge": {**dict.fromkeys(both, 0.62), **{f"difference/{name}": 0.1 for name in both}}}
    inner = {"sft": SFT, "reward": REWARD, "judge": SFT}
    run, origin = command(inner)
    pipeline(run, origin)
    log = [
        {"step": 0, "probe/kl": 0.0, "probe/rewards/f1": 0.25, "eval_loss": 2.0, "eval_mean_token_accuracy": 0.5},
        {"step": 4, "probe/kl": 1.5, "probe/rewards/f1": 0.5, "eval_loss": 1.0, "eval_mean_token_accuracy": 0.6},
        {"step": 4, "probe/gold/taste": 0.75, "probe/gold_stderr/taste": 0.1},
    ]
    (only("sft-*") / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    judge = RunDirectory(only("judge-*"))
    intervals = {name: [0.55, 0.69] for name in both} | {f"difference/{name}": [-0.05, 0.25] for name in both}
    settings = {"against": str(only("sft-*")), "confidence": 0.9}
    judge.write({**judge.record(), "intervals": intervals, "evaluate": settings})
    capsys.readouterr()
    pipeline(run, origin)
    assert only("pipeline-*/table.md").read_text().splitlines() == [
        "training: held out, start → end of each stage",
        "",
        "| held out | sft |",
        "| --- | ---: |",
        "| held-out loss | 2.000 → 1.000 |",
        "| KL to the reference (nats per sequence) | 0.000 → 1.500 |",
        "| reward: f1 | 0.250 → 0.500 |",
        "| gold reward: taste | 0.750 |",
        "",
        "evaluation: held out, with 90% intervals; change is paired, over the same prompts",
        "",
        "| held out | judge | judge: change from sft |",
        "| --- | ---: | ---: |",
        "| greedy: f1 | 0.620 [0.550, 0.690] | 0.100 [-0.050, 0.250] |",
    ]
    assert "0.620 [0.550, 0.690]" in capsys.readouterr().out


def test_a_launcher_stands_in_front(stand):
    pipeline(*command({"sft": {**SFT, "launch": ["accelerate", "launch", "--num_processes", 2]}}))
    assert stand.commands[0][:7] == [
        "accelerate",
        "launch",
        "--num_processes",
        "2",
        "-m",
        "posttrain",
        "+recipe=sft_smollm2",
    ]
    assert record()["stages"]["sft"]["command"].startswith("accelerate launch --num_processes 2 -m posttrain ")


def test_a_launcher_starts_the_processes_that_an_option_needs():
    own = {"recipe": "sft_smollm2", "trainer": {"args": {"ddp_backend": "gloo"}}}
    assert "one process has no process group" in message({"a": own})
    command({"a": {**own, "launch": ["accelerate", "launch"]}})


HOLD = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(99)
"""


def test_a_pipeline_waits_for_whoever_runs_its_stage_and_a_dead_one_is_no_hindrance(stand, capsys):
    run, origin = command({"sft": SFT})
    (step,) = Progress(read(run.stages), run).steps()
    step.directory.path.mkdir(parents=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(step.directory.path / ".lock")], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    threading.Timer(1, holder.kill).start()
    pipeline(run, origin)
    holder.wait()
    assert "sft: another process is running it; waiting for it" in capsys.readouterr().out
    assert stand.stages == ["sft"]


def test_a_process_streams_into_terminal_and_log_and_gets_the_signal(tmp_path, capsys):
    log = tmp_path / "logs/x.log"
    code = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(143))\nprint('grüß')\ntime.sleep(60)"
    with process.StageSignals() as signals:
        timer = threading.Timer(1.5, lambda: signal.raise_signal(signal.SIGTERM))
        timer.start()
        started = time.monotonic()
        assert process.execute([sys.executable, "-c", code], log, signals) == 143
    assert time.monotonic() - started < 30
    assert signals.number == signal.SIGTERM
    assert capsys.readouterr().out == "grüß\n"
    assert log.read_text().splitlines()[-1] == "grüß"


def test_a_signal_ends_the_pipeline_with_the_way_to_go_on(stand, monkeypatch, capsys):
    def interrupted(words, log, signals):
        signals.number = signal.SIGTERM
        return 143

    monkeypatch.setattr(process, "execute", interrupted)
    with pytest.raises(SystemExit) as stopped:
        pipeline(*command({"sft": SFT, "reward": REWARD}))
    assert stopped.value.code == 143
    assert "Stopped by SIGTERM. Continue with: posttrain job=pipeline" in capsys.readouterr().out
    assert record()["status"] == "interrupted"


@pytest.mark.parametrize("value", ["/data/jos\u00e9/pairs.jsonl", "\u65e5\u672c", "./Gr\u00f6\u00dfe", "$x"])
def test_a_value_beyond_ascii_is_read_back(value):
    (word,) = overrides.to_overrides({"data.path": value})
    assert overrides.run_of(("+recipe=dpo_smollm2", word)).data.path == value


def test_keys_that_hydra_cannot_read_back_are_refused():
    given = {"trainer.args.model_kwargs": {"a b": 1, "a.b": [{"\u00e9": 1, "1": 2, 3: 4, "null": 5, "": 6, 'a"b': 7}]}}
    errors = overrides.check(given, None)
    assert len(errors) == 5
    assert errors[0].startswith("trainer.args.model_kwargs: a stage cannot have the key '\u00e9' in it; ")
    assert overrides.check({"data.columns.\u00e9": "x"}, None) == [
        "data.columns.\u00e9: letters, digits, _, - and / only in a key here"
    ]
