"""Held-out metrics of a run, against numbers worked out by hand on the same weights."""

import json
import math
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch

from posttrain.errors import PosttrainError
from posttrain.runs.directory import RunDirectory
from tests.helpers.command import Popen
from tests.helpers.runs import ENVIRONMENT, SMALL, compose, rows

QUICK = ("job=evaluate", "evaluate.resamples=200")
# At the first learning rate that moves the tiny model.
LEARN = ("trainer.args.learning_rate=2e-2", "trainer.args.lr_scheduler_type=constant", "trainer.args.warmup_steps=0")
PROBE = (
    *("probe.prompts=4", "probe.greedy_prompts=3", "probe.max_new_tokens=6", "~probe.rewards.invented"),
    "+probe.rewards.letter.function=tests.helpers.rewards.letter",
)


def log_p(model, tokenizer, prompt, answer):
    """log p(answer | prompt) and the answer's tokens, one unpadded sequence at a time, from the definition."""
    start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = tokenizer.apply_chat_template(prompt + answer, return_dict=True)["input_ids"]
    assert whole[: len(start)] == start
    with torch.no_grad():
        logits = model(torch.tensor([whole])).logits[0].double()
    probabilities = logits.softmax(-1)
    each = [math.log(probabilities[n - 1, whole[n]].item()) for n in range(len(start), len(whole))]
    return sum(each), len(each)


def loaded(run):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    return AutoPeftModelForCausalLM.from_pretrained(run.model).eval(), AutoTokenizer.from_pretrained(run.model)


def held_out(run):
    """The rows that the run held out, and their prompts as they are in the data."""
    from posttrain.config.schema import DataConfig
    from posttrain.data.loading import load

    return list(load(DataConfig(path="pairs.jsonl", eval_size=8), run.record()["trainer"]).eval)


def test_a_turn_without_loss_is_not_measured():
    from transformers import AutoTokenizer

    from posttrain.data.embedded import tiny
    from posttrain.probe import heldout

    tokenizer = AutoTokenizer.from_pretrained(tiny.tiny_model())
    turns = [{"role": role, "content": role[0] * n} for n, role in enumerate(("user", "assistant") * 2, 1)]
    turns[-1]["weight"] = 0
    ((before, answer),) = heldout.encode(tokenizer, {"messages": turns}, None)
    assert tokenizer.decode(before).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(answer).startswith("aa<|im_end|>")
    turns[-1]["weight"] = 1
    ((_, answer),) = heldout.encode(tokenizer, {"messages": turns}, None)
    assert tokenizer.decode(answer).startswith("aaaa<|im_end|>")


def test_sft_loss_and_perplexity_by_hand(train):
    run = train("+recipe=sft_smollm2", *LEARN)
    found = train("+recipe=sft_smollm2", *QUICK, f"model.init_from={run.path}")
    model, tokenizer = loaded(run)
    by_hand = [log_p(model, tokenizer, row["prompt"], row["completion"]) for row in held_out(run)]
    loss = -sum(total for total, _ in by_hand) / sum(tokens for _, tokens in by_hand)
    record = found.record()
    assert record["metrics"]["loss_per_token"] == pytest.approx(loss, abs=1e-5)
    assert record["metrics"]["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert record["metrics"]["loss_per_token"] == pytest.approx(run.record()["metrics"]["eval_loss"], abs=1e-4)
    low, high = record["intervals"]["loss_per_token"]
    assert low <= loss <= high
    assert record["intervals"]["perplexity"] == pytest.approx([math.exp(low), math.exp(high)], rel=1e-4)
    assert (record["status"], record["job"]) == ("finished", "evaluate")
    assert [parent["content"] for parent in record["parents"]] == [run.record()["content"]]
    scores = rows(found.scores)
    assert [row["log_p"][0] for row in scores] == pytest.approx([total for total, _ in by_hand], abs=1e-4)


@pytest.mark.parametrize("method", ["lora", "none"])
def test_dpo_accuracy_and_margin_by_hand(train, method):
    """The reference is the base with the adapter off, or the weights that full training started from."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from posttrain.data.embedded import tiny

    options = (f"peft={method}", "trainer.args.beta=0.25", "probe=none")
    run = train("+recipe=dpo_smollm2", *LEARN, *options)
    record = train("+recipe=dpo_smollm2", *QUICK, *options, f"model.init_from={run.path}").record()
    base = AutoModelForCausalLM.from_pretrained(tiny.tiny_model()).eval()
    if method == "lora":
        model, tokenizer = loaded(run)
    else:
        model = AutoModelForCausalLM.from_pretrained(run.model).eval()
        tokenizer = AutoTokenizer.from_pretrained(run.model)
    implicit, likelihood = [], []
    for row in held_out(run):
        sides = [(row["prompt"], row[side]) for side in ("chosen", "rejected")]
        now, before = ([log_p(net, tokenizer, *side) for side in sides] for net in (model, base))
        implicit.append(0.25 * (now[0][0] - before[0][0] - now[1][0] + before[1][0]))
        likelihood.append(now[0][0] / now[0][1] - now[1][0] / now[1][1])
    metrics = record["metrics"]
    assert metrics["implicit_margin"] == pytest.approx(sum(implicit) / 8, abs=1e-5)
    assert metrics["implicit_accuracy"] == sum(margin > 0 for margin in implicit) / 8
    assert metrics["likelihood_margin"] == pytest.approx(sum(likelihood) / 8, abs=1e-5)
    assert metrics["likelihood_accuracy"] == sum(margin > 0 for margin in likelihood) / 8
    trained = run.record()["metrics"]
    assert metrics["implicit_margin"] == pytest.approx(trained["eval_rewards/margins"], abs=1e-4)
    assert metrics["implicit_accuracy"] == trained["eval_rewards/accuracies"]


def test_a_run_that_began_from_another_is_measured_against_that(train, tmp_path):
    from posttrain.jobs.evaluate_plan import reference
    from posttrain.runs import lineage

    run = train("+recipe=dpo_smollm2", *LEARN)
    first = RunDirectory(shutil.copytree(run.path, tmp_path / "first"))
    assert reference(lineage.source(str(run.path))) == ("adapter off", None)
    config = run.path / "config.yaml"
    config.write_text(config.read_text().replace("init_from: null", f"init_from: {first.path}"))
    assert reference(lineage.source(str(run.path)))[0].adapter == str(first.model)
    shutil.rmtree(first.path)
    found, why = reference(lineage.source(str(run.path)))
    assert found is None
    assert "no such run or folder" in why


def test_a_reward_model_by_hand(train, pairs):
    """Accuracy and margin as TRL's trainer measured them on the same held-out pairs."""
    run = train("+recipe=reward_smollm2", *LEARN)
    metrics = train("+recipe=reward_smollm2", *QUICK, f"model.init_from={run.path}").record()["metrics"]
    trained = run.record()["metrics"]
    assert metrics["accuracy"] == trained["eval_accuracy"]
    assert metrics["margin"] == pytest.approx(trained["eval_margin"], abs=1e-5)
    with pytest.raises(PosttrainError, match=r"model.path=embedded:tiny: not a reward model"):
        train("+recipe=reward_smollm2", *QUICK)


def test_completions_are_those_of_the_probe(train):
    """What the probe measured at the end of training is what the finished run says of itself."""
    run = train("+recipe=dpo_smollm2", *LEARN, *PROBE)
    found = train("+recipe=dpo_smollm2", *QUICK, *PROBE, f"model.init_from={run.path}")
    metrics, probed = found.record()["metrics"], run.record()["metrics"]
    assert metrics["sampled/length"] == probed["probe/length"]
    assert metrics["greedy/rewards/letter"] == pytest.approx(probed["probe/rewards/letter"])
    last = [row for row in rows(run.samples) if row["step"] > 0]
    greedy = [row for row in rows(found.scores) if row["set"] == "greedy"]
    assert [row["completion"] for row in greedy] == [row["completion"] for row in last]
    assert [row["rewards"]["letter"] for row in greedy] == [row["letter"] for row in last]


def test_against_another_run_on_the_same_prompts(train, capsys):
    online = (
        "+recipe=grpo_smollm2",
        "~reward.abstention",
        "+reward.letter.function=tests.helpers.rewards.letter",
        *PROBE,
    )
    run = train("+recipe=sft_smollm2", *LEARN, "trainer.args.num_train_epochs=6")
    options = (*QUICK, "probe.prompts=8", f"model.init_from={run.path}", "evaluate.against=embedded:tiny")
    found = train(*online, *options)
    record, sampled = found.record(), [row for row in rows(found.scores) if row["set"] == "sampled"]
    metrics = record["metrics"]
    pairs = [(row["score"], row["against"]["score"]) for row in sampled]
    assert len({a for a, _ in pairs} | {b for _, b in pairs}) > 2
    assert metrics["sampled/win_rate"] == sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / 8
    assert metrics["difference/sampled/score"] == pytest.approx(sum(a - b for a, b in pairs) / 8)
    assert metrics["against/sampled/score"] == pytest.approx(sum(b for _, b in pairs) / 8)
    low, high = record["intervals"]["difference/sampled/score"]
    assert low <= metrics["difference/sampled/score"] <= high
    assert [parent["path"] for parent in record["parents"]] == [str(run.path), "embedded:tiny"]
    # A reward of which less is better, by its weight.
    reversed_ = train(*online, *options, "probe.rewards.letter.weight=-1").record()["metrics"]
    assert reversed_["sampled/win_rates/letter"] == pytest.approx(1 - metrics["sampled/win_rates/letter"])
    capsys.readouterr()
    before = (found.path / "run.json").read_bytes()
    train(*online, *options)
    out = capsys.readouterr().out
    assert "is finished" in out
    assert "sampled: win rate by score" in out
    assert f"{metrics['sampled/win_rate']:.3f} [" in out
    assert (found.path / "run.json").read_bytes() == before


def test_a_model_alone_says_what_cannot_be_had(train, capsys):
    record = train("+recipe=dpo_smollm2", *QUICK).record()
    assert "implicit_accuracy" not in record["metrics"]
    assert 0 <= record["metrics"]["likelihood_accuracy"] <= 1
    assert "no implicit reward of embedded:tiny: embedded:tiny is no run and no adapter" in record["notes"][0]
    assert record["notes"][0] in capsys.readouterr().out


def test_labelled_rows_text_and_messages(train, tmp_path):
    """KTO's rows have margins; of messages the last turn counts, of text all but the first token."""
    user = [{"role": "user", "content": f"Q{n}"} for n in range(6)]
    forms = {
        "kto": [{"prompt": f"{n} ", "completion": "yes" if n % 2 else "no", "label": bool(n % 2)} for n in range(6)],
        "sft": [{"messages": [user[n], {"role": "assistant", "content": f"A{n}"}]} for n in range(6)],
    }
    found = {}
    for kind, lines in forms.items():
        (tmp_path / f"{kind}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        data = (f"data.path={kind}.jsonl", "data.eval_size=5", "probe=none")
        found[kind] = train(f"+recipe={kind}_smollm2", *QUICK, *data)
    assert found["kto"].record()["metrics"].keys() == {"likelihood_margin"}
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from posttrain.data.embedded import tiny

    model, tokenizer = (auto.from_pretrained(tiny.tiny_model()) for auto in (AutoModelForCausalLM, AutoTokenizer))
    by_hand = sorted(log_p(model, tokenizer, line["messages"][:1], line["messages"][1:])[0] for line in forms["sft"])
    measured = sorted(row["log_p"][0] for row in rows(found["sft"].scores))
    assert all(min(abs(value - hand) for hand in by_hand) < 1e-4 for value in measured)
    assert len(measured) == 5


def test_no_held_out_rows_is_an_error(train):
    with pytest.raises(PosttrainError, match=r"data.eval_size=0: nothing is held out"):
        train("+recipe=sft_smollm2", *QUICK, "data.eval_size=0")


def test_killed_then_the_same_command(pairs, tmp_path):
    from posttrain.jobs.evaluate import evaluate

    args = ["+recipe=ppo_smollm2", *SMALL, *QUICK, *PROBE, "probe.max_new_tokens=200", "reward=length"]
    process = Popen(
        [sys.executable, "-m", "posttrain", *args],
        cwd=tmp_path,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
    )
    end = time.monotonic() + 120
    while not (found := list(tmp_path.glob("outputs/*/run.json"))):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.wait()
    killed = RunDirectory(found[0].parent)
    assert not killed.finished()
    run, origin = compose(*args)
    assert RunDirectory.of(run, origin).path == killed.path
    evaluate(run, origin)
    assert killed.finished()
    run.name = "whole"
    evaluate(run, origin)
    assert killed.record()["metrics"] == RunDirectory.of(run, origin).record()["metrics"]


def test_a_column_that_a_reward_cannot_read_is_said_before_weights_load(train, tmp_path, monkeypatch):
    from posttrain.models import weights

    made = [{"prompt": [{"role": "user", "content": f"q{n}"}], "answers": {"value": "a"}} for n in range(40)]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    monkeypatch.setattr(weights, "load", lambda *_: pytest.fail("weights were loaded"))
    data = (f"data.path={tmp_path}/odd.jsonl", "reward=exact_match", *PROBE)
    for job in (("job=sample",), QUICK):
        with pytest.raises(PosttrainError, match=r"^reward\.exact_match: the column 'answers' holds objects"):
            train("+recipe=grpo_smollm2", *job, *data)


def test_a_reward_model_scores_with_the_rows_tools(monkeypatch):
    from types import SimpleNamespace

    from posttrain.jobs import evaluate
    from posttrain.rewards import model

    given = {}

    class Model:
        def __init__(self, path):
            pass

        def ids(self, prompt, completion, row):
            return [0] * len(completion)

        def length(self, prompt, ids, row):
            return len(ids)

        def __call__(self, **columns):
            given.update(columns)
            return [float(len(completion)) for completion in columns["completions"]]

    monkeypatch.setattr(model, "RewardModel", Model)
    candidate = SimpleNamespace(source=SimpleNamespace(name="rm"), max_length=3)
    rows = [{"prompt": "q", "chosen": "ab", "rejected": "a" * n, "tools": [n]} for n in (1, 4, 3)]
    assert evaluate._reward_scores(candidate, rows)[0] == [[2.0, 1.0], [None, None], [2.0, 3.0]]
    assert given["tools"] == [[1], [3]] * 2
