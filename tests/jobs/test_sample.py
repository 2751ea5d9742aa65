"""A data set of the model's own completions: drawn once whatever happens, and taken by every recipe."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from datasets import Dataset, load_dataset

from posttrain.config.schema import DataConfig, ModelConfig
from posttrain.data.loading import load
from posttrain.errors import PosttrainError
from posttrain.models import generate, tokenizers, weights
from posttrain.runs import lineage
from posttrain.runs.directory import RunDirectory
from posttrain.runs.pretrained import pretrained_path
from tests.helpers.command import Popen
from tests.helpers.runs import ENVIRONMENT, SMALL, compose, rows, write_pairs

# Two prompts a batch, so 16 batches of the 32 prompts for training; the random model seldom ends an answer.
SAMPLE = (
    *("+recipe=dpo_smollm2", "job=sample", "sample.n=3", "sample.batch_size=6", "sample.max_new_tokens=6"),
    *("sample.unfinished=true", "+reward.letter.function=tests.helpers.rewards.letter"),
)


def written(run):
    return load_dataset("parquet", data_files=str(run.data / "train.parquet"), split="train").to_list()


def letter(row, column="completion"):
    from tests.helpers.rewards import letter

    return letter([row[column]])[0]


def test_what_is_written(finished):
    run = finished(*SAMPLE)
    found, record = written(run), run.record()
    assert len(found) == 96
    assert set(found[0]) == {"prompt", "answers", "completion", "score", "rewards"}
    assert found[0]["prompt"][-1]["role"] == "user"
    assert found[0]["completion"][0]["role"] == "assistant"
    assert found[0]["answers"] == ["yes"], "columns for reward functions stay"
    assert all(row["score"] == row["rewards"]["letter"] == pytest.approx(letter(row)) for row in found)
    prompts = [json.dumps(row["prompt"]) for row in found]
    assert all(len(set(prompts[i : i + 3])) == 1 for i in range(0, 96, 3))
    assert len(set(prompts)) == 32, "the eight held-out prompts are not among them"
    scores = [row["score"] for row in found]
    metrics = record["metrics"]
    assert metrics["score"] == pytest.approx(sum(scores) / 96)
    assert metrics["best_of_n"] == pytest.approx(sum(max(scores[i : i + 3]) for i in range(0, 96, 3)) / 32)
    assert (metrics["kept"], metrics["prompts"], metrics["completions"]) == (96, 32, 96)
    assert metrics["tokens_per_second"] > 0
    assert (record["status"], record["job"]) == ("finished", "sample")
    assert [(parent["role"], parent["path"]) for parent in record["parents"]] == [("policy", "embedded:tiny")]
    card = (run.data / "README.md").read_text()
    for part in ("embedded:tiny", "pairs.jsonl", record["data"]["fingerprint"], "temperature 1", "seed 0", "median"):
        assert part in card
    assert f"`{record['command']}`" in card
    assert load_dataset(str(run.data), split="train").num_rows == 96, (
        "the card's header and the folder load as they are"
    )


def test_components_weights_and_what_does_not_apply(train, pairs):
    """The score is the weighted sum of the rewards that apply, as TRL adds them."""
    lines = [json.loads(line) for line in pairs.read_text().splitlines()]
    pairs.write_text(
        "".join(json.dumps({**row, "answers": [] if n % 2 else ["yes"]}) + "\n" for n, row in enumerate(lines))
    )
    run = train(*SAMPLE, "+reward.letter.weight=0.5", "+reward.invented.function=posttrain.rewards.abstain.invented")
    found = written(run)
    assert any(row["rewards"]["invented"] is None for row in found)
    assert any(row["rewards"]["invented"] is not None for row in found)
    for row in found:
        assert row["score"] == pytest.approx(0.5 * row["rewards"]["letter"] + (row["rewards"]["invented"] or 0))


def test_selections(train):
    some = (*SAMPLE, "sample.prompts=16", "sample.batch_size=48")
    everything = written(train(*some))
    groups = [everything[i : i + 3] for i in range(0, 48, 3)]
    best = written(train(*some, "sample.select=best"))
    assert [row["score"] for row in best] == [max(row["score"] for row in group) for group in groups]
    top = written(train(*some, "sample.select=top", "sample.fraction=0.1"))
    assert sorted(row["score"] for row in top) == sorted(row["score"] for row in everything)[-5:]
    least = sorted(row["score"] for row in everything)[24]
    above = written(train(*some, "sample.select=threshold", f"sample.threshold={least}"))
    assert above == [row for row in everything if row["score"] >= least]
    paired = written(train(*some, "sample.select=pairs", "sample.margin=0.2"))
    scores = [[row["score"] for row in group] for group in groups]
    assert len(paired) == sum(max(group) - min(group) >= 0.2 for group in scores) > 0
    for row in paired:
        assert letter(row, "chosen") == row["score_chosen"] == row["rewards_chosen"]["letter"]
        assert row["score_chosen"] - row["score_rejected"] >= 0.2


def test_stopped_after_some_batches_and_continued_equals_uninterrupted(train, monkeypatch):
    from posttrain.models import generate as module

    whole = train(*SAMPLE, "name=whole")
    real, calls = module.generate, []

    def dies(*args, **kwargs):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    parts = RunDirectory.of(*compose(*SAMPLE[:1], *SMALL, *SAMPLE[1:], "name=parts"))
    with monkeypatch.context() as patch:
        patch.setattr(module, "generate", dies)
        with pytest.raises(KeyboardInterrupt):
            train(*SAMPLE, "name=parts")
    assert len(rows(parts.path / "completions.jsonl")) == 5
    with (parts.path / "completions.jsonl").open("a") as file:
        file.write('{"batch": 5, "prompts": [3')  # what a kill in the middle of a write leaves
    assert not parts.finished()
    with monkeypatch.context() as patch:
        patch.setattr(module, "generate", lambda *a, **k: calls.append(2) or real(*a, **k))
        train(*SAMPLE, "name=parts")
    assert calls.count(2) == 11, "what was drawn is not drawn again"
    assert written(parts) == written(whole)
    assert (parts.data / "train.parquet").read_bytes() == (whole.data / "train.parquet").read_bytes()


def test_a_stop_signal_ends_after_the_batch_and_says_how_to_go_on(train, monkeypatch, capsys):
    from posttrain.models import generate as module

    real = module.generate

    def signalled(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "generate", signalled)
    with pytest.raises(SystemExit) as stopped:
        train(*SAMPLE, "name=stopped")
    assert stopped.value.code == 128 + signal.SIGTERM
    assert "Stopped by SIGTERM. Continue with: posttrain +recipe=dpo_smollm2" in capsys.readouterr().out


def test_killed_then_the_same_command(tmp_path):
    write_pairs(tmp_path / "pairs.jsonl", 100)
    args = [*SAMPLE[:1], *SMALL, *SAMPLE[1:], "sample.max_new_tokens=32"]
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    process = Popen(
        [sys.executable, "-m", "posttrain", *args],
        cwd=tmp_path,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = time.monotonic() + 120
    while not (found := list(tmp_path.glob("outputs/*/completions.jsonl"))):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.wait()
    killed = found[0].parent
    assert 0 < found[0].read_bytes().count(b"\n") < 46
    shutil.copytree(killed, tmp_path / "kept")
    from posttrain.jobs.sample import sample

    run, origin = compose(*args)
    assert RunDirectory.of(run, origin).path == killed
    sample(run, origin)
    begun = rows(tmp_path / "kept" / "completions.jsonl")
    assert rows(killed / "completions.jsonl")[: len(begun)] == begun
    run.name = "whole"
    sample(run, origin)
    assert written(RunDirectory(killed)) == written(RunDirectory.of(run, origin))


def test_a_finished_one_is_shown_again(train, capsys, monkeypatch):

    train(*SAMPLE, "sample.prompts=4")
    monkeypatch.setattr(weights, "load", lambda *_: pytest.fail("weights were loaded"))
    train(*SAMPLE, "sample.prompts=4")
    out = capsys.readouterr().out
    assert "is finished" in out
    assert "mean score of the best of n" in out
    assert "reward: " in out


def test_it_samples_from_a_finished_run_and_its_seed(train):
    run = train("+recipe=sft_smollm2", "trainer.args.learning_rate=5e-2", "trainer.args.num_train_epochs=6")
    other = train(*SAMPLE, "sample.prompts=8", f"model.init_from={run.path}")
    (parent,) = other.record()["parents"]
    assert (parent["path"], parent["content"]) == (str(run.path), run.record()["content"])
    first, second = written(train(*SAMPLE, "sample.prompts=8")), written(other)
    assert [r["prompt"] for r in first] == [r["prompt"] for r in second]
    assert sum(a["completion"] != b["completion"] for a, b in zip(first, second, strict=True)) > 12
    again = written(train(*SAMPLE, "sample.prompts=8", "sample.seed=1"))
    assert [r["completion"] for r in again] != [r["completion"] for r in first]


@pytest.mark.parametrize(
    ("recipe", "select", "columns"),
    [
        ("sft", "best", {"prompt", "completion"}),
        ("sft", "pairs", {"prompt", "completion"}),
        ("dpo", "pairs", {"prompt", "chosen", "rejected"}),
        ("reward", "pairs", {"prompt", "chosen", "rejected"}),
        ("kto", "pairs", {"prompt", "completion", "label"}),
        ("grpo", "all", {"prompt"}),
    ],
)
def test_recipes_take_it_as_their_data(train, recipe, select, columns):
    made = train(*SAMPLE, f"sample.select={select}", "sample.prompts=12")
    options = [f"data.path={made.path}", "trainer.args.max_steps=1", "data.eval_size=3"]
    if recipe == "grpo":
        options += ["trainer.args.num_generations=4", "trainer.args.max_completion_length=4"]
        options += ["trainer.args.eval_strategy=no"]
    trained = (recipe, select) in (("sft", "best"), ("dpo", "pairs"), ("grpo", "all"))
    run = train(f"+recipe={recipe}_smollm2", *options, f"dry_run={not trained}")
    assert run.finished() is trained
    if trained:
        (parent,) = run.record()["parents"]
        assert (parent["role"], parent["content"]) == ("data", made.record()["content"])
    data = load(DataConfig(path=str(made.path), eval_size=3), recipe)
    assert columns <= set(data.train.column_names)
    assert data.train["answers"][0] == ["yes"]
    # A recipe's own column names and splits are those of its own data.
    other = DataConfig(
        path=str(made.path), columns={"prompt": "question"}, conversational=True, split="t", eval_split="e"
    )
    assert load(other, recipe).train.num_rows > 0


def test_a_prompt_is_not_on_both_sides_of_the_split(finished):
    made = finished(*SAMPLE)
    for size in (0.1, 7):
        data = load(DataConfig(path=str(made.path), eval_size=size), "sft")
        trained, held_out = ({json.dumps(p) for p in part["prompt"]} for part in (data.train, data.eval))
        assert not trained & held_out
        assert len(data.train) + len(data.eval) == 96
        assert len(data.eval) == {0.1: 12, 7: 9}[size], "whole prompts of three, until there are enough"


def test_min_score_filters_a_grown_data_set(finished):
    made = finished(*SAMPLE)
    scores = sorted(row["score"] for row in written(made))

    def take(least):
        return load(DataConfig(path=str(made.path), eval_size=0.2, min_score=least), "sft")

    low, high = take(scores[20]), take(scores[70])
    assert min(low.train["score"]) >= scores[20]
    assert len(low.train) + len(low.eval) == sum(score >= scores[20] for score in scores)
    assert 0 < len(high.train) < len(low.train)
    held_out = {json.dumps(p) for p in low.eval["prompt"]}
    assert not held_out & {json.dumps(p) for p in high.train["prompt"]}, "the split does not move with the threshold"
    with pytest.raises(PosttrainError, match=r"data.min_score=2: none of the 75 rows for train is left, the highest"):
        take(2.0)


def test_min_score_needs_scores(pairs, tmp_path):
    with pytest.raises(PosttrainError, match=r"data.min_score=1: the data has no column score, but prompt, chosen"):
        load(DataConfig(path=str(pairs), min_score=1), "dpo")
    Dataset.from_list([{"text": "a", "score": "good"}] * 4).to_parquet(tmp_path / "d.parquet")
    with pytest.raises(PosttrainError, match="the column score holds other things than numbers"):
        load(DataConfig(path=str(tmp_path / "d.parquet"), min_score=1, eval_size=0), "sft")


def test_text_prompts_and_repeated_ones(train, tmp_path):
    """Plain text stays plain text; a prompt that is there twice is sampled once."""
    lines = [{"prompt": f"{n % 10}? ", "chosen": f"yes{n}", "rejected": "no"} for n in range(20)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = train(*SAMPLE, "data.path=text.jsonl", "data.eval_size=0")
    found = written(run)
    assert len(found) == 30
    assert isinstance(found[0]["completion"], str)
    assert train("+recipe=sft_smollm2", "probe=none", f"data.path={run.path}", "data.eval_size=0").finished()


def test_answers_that_were_cut_off_are_left_out(train, monkeypatch):
    from posttrain.jobs import sample as job

    ended = train(*SAMPLE, "sample.unfinished=false", "sample.max_new_tokens=60")
    metrics = ended.record()["metrics"]
    assert 0 < metrics["kept"] <= round(metrics["ended"] * 96) < 96
    monkeypatch.setattr(job, "CHECK_ENDED_AFTER", 12)
    few = ("sample.unfinished=false", "sample.max_new_tokens=2", "sample.seed=2")
    with pytest.raises(PosttrainError, match=r"sample.max_new_tokens=2: all of the first 12 completions are cut off"):
        train(*SAMPLE, *few)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("sample.select=threshold", "sample.threshold=7"), "no score reaches sample.threshold=7, the highest is"),
        (("sample.select=pairs", "sample.margin=3"), "no prompt has two different completions"),
        (("sample.select=pairs", "sample.temperature=1e-4"), "different scores; raise sample.n or sample.temperature$"),
    ],
)
def test_nothing_selected_is_an_error_and_keeps_what_was_drawn(train, options, said):
    with pytest.raises(PosttrainError, match=said):
        train(*SAMPLE, *options, "sample.prompts=4")
    run = RunDirectory.of(*compose(*SAMPLE[:1], *SMALL, *SAMPLE[1:], *options, "sample.prompts=4"))
    assert (run.path / "completions.jsonl").is_file()
    assert not run.finished()


def test_what_does_not_fit_is_said_before_weights_load(train, monkeypatch):

    reward = train("+recipe=reward_smollm2")
    made = train(*SAMPLE, "sample.prompts=4")
    monkeypatch.setattr(weights, "load", lambda *_: pytest.fail("weights were loaded"))
    for options, said in (
        ((f"model.init_from={reward.path}",), "a reward model, which generates no text; give it as reward.rm.model"),
        ((f"model.init_from={made.path}",), "a run of job=sample has no model"),
        ((f"data.path={reward.path}",), "this run has no data; data is made by runs of job=sample"),
        (("+reward.rm.model=embedded:tiny",), "reward.rm.model=embedded:tiny: not a reward model"),
        (("sample.max_new_tokens=4000",), "sample.max_new_tokens=4000: the longest prompt and its completion"),
        (("sample.split=eval", "data.eval_size=0"), "sample.split=eval: nothing is held out"),
        (("reward=token_f1", "reward.token_f1.args={column: gold}"), "reads the column 'gold'"),
    ):
        with pytest.raises(PosttrainError) as error:
            train(*SAMPLE, *options)
        assert said in str(error.value)


def test_dry_run_prints_the_plan_and_writes_nothing(train, capsys, tmp_path):
    train(*SAMPLE, "sample.split=eval", "dry_run=true")
    out = capsys.readouterr().out
    assert "3 completions of up to 6 tokens" in out
    assert "eval: 8 of about" in out
    assert not (tmp_path / "outputs").exists()


def test_a_repeated_prompt_is_read_once_and_answered_as_before(monkeypatch):
    """Keys and values of the prompt are computed once for all its completions; what is drawn is the same."""
    source = lineage.source("embedded:tiny")
    model, tok = weights.load(source), tokenizers.load_tokenizer(ModelConfig(path="embedded:tiny"))
    prompts = [[5, 9, 7], [4, 11, 12, 13, 14], [8, 6]]
    repeated = [prompt for prompt in prompts for _ in range(3)]
    read = []
    original = type(model.base_model).forward

    def forward(self, *args, **kwargs):
        read.append(kwargs["input_ids"].shape)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(model.base_model), "forward", forward)
    options = {"max_new_tokens": 6, "do_sample": False}
    once = generate.generate(model, tok, repeated, batch_size=9, **options)
    assert read[0] == (3, 5), "the three prompts"
    assert read[1] == (9, 1)
    alone = [generate.generate(model, tok, [prompt], batch_size=1, **options)[0] for prompt in repeated]
    assert [d.ids for d in once] == [d.ids for d in alone]


@pytest.mark.parametrize("setting", [{"use_cache": False}, {"repetition_penalty": 5.0}, {"min_p": 0.9}])
def test_what_is_drawn_is_the_models_own_whatever_its_generation_config_says(setting):
    """A cache that is switched off would have a prefilled prompt read twice; penalties draw from something else."""
    source = lineage.source("embedded:tiny")
    model, tok = weights.load(source), tokenizers.load_tokenizer(ModelConfig(path="embedded:tiny"))
    repeated = [[5, 9, 7]] * 3

    def drawn():
        torch.manual_seed(0)
        return [d.ids for d in generate.generate(model, tok, repeated, batch_size=3, max_new_tokens=12)]

    before = drawn()
    for name, value in setting.items():
        setattr(model.generation_config, name, value)
    assert drawn() == before


OWN_CONFIG = """
from transformers import LlamaConfig
class OwnConfig(LlamaConfig):
    model_type = "own"
"""
OWN_MODEL = """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def own_code(folder):
    """A model that brings its own code."""
    shutil.copytree(pretrained_path("embedded:tiny"), folder)
    (folder / "configuration_own.py").write_text(OWN_CONFIG)
    (folder / "modeling_own.py").write_text(OWN_MODEL)
    known = json.loads((folder / "config.json").read_text())
    known |= {"model_type": "own", "architectures": ["OwnForCausalLM"]}
    known["auto_map"] = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
    }
    (folder / "config.json").write_text(json.dumps(known))


def test_a_model_with_code_of_its_own_is_asked_for(train, tmp_path, monkeypatch):
    own_code(tmp_path / "own")
    small = ("sample.prompts=2", "sample.n=1", "model.path=./own", "model.attn_implementation=eager")
    with pytest.raises(PosttrainError, match=r"model.path=./own: brings its own code.*model.trust_remote_code=true"):
        train(*SAMPLE, *small)
    loaded = []
    monkeypatch.setattr(weights, "load", lambda source, load=weights.load: loaded.append(load(source)) or loaded[-1])
    train(*SAMPLE, *small, "model.trust_remote_code=true")
    assert type(loaded[0]).__name__ == "OwnForCausalLM"
    assert loaded[0].config._attn_implementation == "eager"


def test_another_reward_function_under_the_same_name_is_another_run(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    overrides = ("+recipe=dpo_smollm2", "job=sample", "+reward.r.function=of_mine.reward")
    names = []
    for value in (1.0, 1.0, 2.0):
        (tmp_path / "of_mine.py").write_text(f"def reward(completions, **_): return [{value}] * len(completions)")
        names.append(RunDirectory.of(*compose(*overrides)).name)
    assert names[0] == names[1] != names[2]
