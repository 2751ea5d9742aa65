"""The probe: its KL against exact KL by enumeration, and that training is the same with it and without."""

import json
import math
import re

import pytest
import torch

from posttrain import models
from posttrain.models.generate import generate
from posttrain.probe import callback
from posttrain.probe.distance import entropy_and_kl
from tests.helpers.runs import rows, weights


def table_model(logits):
    """A first-order Markov model over `len(logits)` tokens, as a callable giving logits for the completion."""

    def forward(ids, mask, n=2):
        return logits[ids][:, -n - 1 : -1]

    return forward


def exact_kl(p, q, start, length):
    """KL of the two sequence distributions by enumeration of all sequences."""
    vocabulary = len(p)
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    total = 0.0
    for code in range(vocabulary**length):
        sequence = [code // vocabulary**i % vocabulary for i in range(length)]
        lp = lq = 0.0
        for before, now in zip([start, *sequence], sequence, strict=False):
            lp += log_p[before, now].item()
            lq += log_q[before, now].item()
        total += math.exp(lp) * (lp - lq)
    return total


def test_the_kl_of_a_sequence_estimates_the_exact_kl():
    torch.manual_seed(0)
    p, q = torch.randn(4, 4), torch.randn(4, 4)
    probabilities = p.softmax(-1)
    samples = torch.zeros(20_000, 3, dtype=torch.long)
    for t in (1, 2):
        samples[:, t] = torch.multinomial(probabilities[samples[:, t - 1]], 1)[:, 0]
    kl = entropy_and_kl(table_model(p), table_model(q), samples, torch.ones_like(samples), 2)[1]
    stderr = (kl.std() / len(kl) ** 0.5).item()
    assert abs(kl.mean().item() - exact_kl(p, q, 0, 2)) < 4 * stderr
    log_ratio = (p.log_softmax(-1) - q.log_softmax(-1))[samples[:, :-1], samples[:, 1:]].sum(-1)
    assert kl.std() < log_ratio.std(), "less variance than the sum of log-ratios"


def test_padding_does_not_count():
    p, q = torch.randn(4, 4), torch.randn(4, 4)
    ids = torch.tensor([[0, 1, 2]])
    whole = entropy_and_kl(table_model(p), table_model(q), ids, torch.tensor([[1, 1, 1]]), 2)[1]
    part = entropy_and_kl(table_model(p), table_model(q), ids, torch.tensor([[1, 1, 0]]), 2)[1]
    assert 0 < part.item() < whole.item()
    assert entropy_and_kl(table_model(p), table_model(p), ids, torch.ones_like(ids), 2)[1].item() == 0


def test_the_probe_leaves_training_untouched(train):
    kind = ("+recipe=dpo_smollm2", "trainer.args.learning_rate=1e-2", "peft.lora.lora_dropout=0.1")
    on = ("probe.prompts=3", "probe.greedy_prompts=3", "probe.max_new_tokens=6", "probe.during=true")
    steps = ("trainer.args.eval_strategy=steps", "trainer.args.eval_steps=2", "trainer.args.disable_dropout=false")
    plain, probed = train(*kind, *steps), train(*kind, *steps, *on)
    assert len([r for r in rows(probed.metrics) if "probe/kl" in r]) == 3
    first, second = weights(plain.model), weights(probed.model)
    assert all(torch.equal(first[n], second[n]) for n in first)


TEMPLATE = (
    "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}<|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}assistant ({{ mood }}): {% endif %}"
)


@pytest.mark.parametrize("job", ["train", "sample", "evaluate"])
def test_prompts_are_rendered_with_the_trainers_template_options(train, tmp_path, monkeypatch, job):
    """As in training: with `enable_thinking=false`, say."""
    (tmp_path / "mood.jinja").write_text(TEMPLATE)
    with (tmp_path / "prompts.jsonl").open("w") as file:
        for i in range(8):
            file.write(json.dumps({"prompt": [{"role": "user", "content": f"number {i}?"}]}) + "\n")
    drawn: list[str] = []

    def recorded(model, tokenizer, prompts, *args, **kwargs):
        drawn.extend(map(tokenizer.decode, prompts))
        return generate(model, tokenizer, prompts, *args, **kwargs)

    for module in (callback, models.generate):
        monkeypatch.setattr(module, "generate", recorded)
    train(
        *("trainer=grpo", "model=tiny", f"model.chat_template={tmp_path / 'mood.jinja'}", f"job={job}"),
        *(f"data.path={tmp_path / 'prompts.jsonl'}", "data.eval_size=4", "~reward", "tracking=none"),
        *("+reward.letter.function=tests.helpers.rewards.letter", "trainer.args.max_steps=1"),
        *("trainer.args.chat_template_kwargs={mood: calm}", "probe.prompts=2", "probe.max_new_tokens=4"),
        *("sample.max_new_tokens=4", "sample.n=2", "sample.unfinished=true", "sample.select=all"),
    )
    assert drawn
    assert all("assistant (calm): " in prompt for prompt in drawn)


def test_a_start_that_is_known_is_not_measured(train, tmp_path):
    """Forgetting and wins, which compare with the start, are left out; the rest is measured as with it."""
    (tmp_path / "texts.jsonl").write_text('{"text": "Some words.", "domain": "words"}\n')
    kind = ("+recipe=sft_smollm2", "probe.prompts=3", "probe.max_new_tokens=4", "~probe.rewards.invented")
    kind += ("+probe.rewards.length.function=posttrain.rewards.text.length", "probe.texts=texts.jsonl")
    kind += ("probe.every=1", "trainer.args.max_steps=3", "trainer.args.learning_rate=1e-2")
    whole, without = train(*kind), train(*kind, "probe.start=false")
    found, left = ([r for r in rows(run.metrics) if "probe/length" in r] for run in (whole, without))
    assert [r["step"] for r in found] == [0, 1, 2, 3]
    assert [r["step"] for r in left] == [1, 2, 3]
    compared = ("probe/seconds", "probe/share", "probe/forgetting/words", "probe/win_rate")
    for row, same in zip(left, found[1:], strict=True):
        assert all(any(key.startswith(name) for name in compared) for key in same.keys() - row.keys())
        assert all(row[key] == same[key] for key in row if key not in compared)
        assert "probe/forgetting/words" in same
    assert not [r for r in rows(without.metrics) if "alarm" in str(r)]


ONLINE = (
    *("~reward", "+reward.letter.function=tests.helpers.rewards.letter", "trainer.args.max_completion_length=6"),
    *("trainer.args.max_steps=3", "trainer.args.beta=0.1"),
)


@pytest.mark.parametrize("kind", ["sft", "kto", "grpo", "rloo", "ppo"])
def test_measuring_at_every_step_leaves_every_trainer_untouched(train, kind, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "Some words.", "domain": "words"}\n')
    options = (*ONLINE, "trainer.args.num_generations=4") if kind in ("grpo", "rloo") else ()
    options = ONLINE if kind == "ppo" else options
    options += ("trainer.args.learning_rate=1e-2", "trainer.args.eval_strategy=no", "trainer.args.eval_on_start=false")
    on = ("probe.prompts=2", "probe.greedy_prompts=2", "probe.max_new_tokens=4", "probe.every=1")
    on += ("probe.texts=texts.jsonl", "~probe.rewards.invented")
    plain = train(f"+recipe={kind}_smollm2", *options)
    probed = train(f"+recipe={kind}_smollm2", *options, *on)
    assert not [r for r in rows(plain.metrics) if any(k.startswith("eval_") for k in r)], "both are off: not at the end"
    found = [r for r in rows(probed.metrics) if "probe/kl" in r]
    assert [r["step"] for r in found] == list(range(len(found)))
    assert len(found) > 2
    assert ("probe/reward" in found[0]) == (kind in ("grpo", "rloo", "ppo"))
    first, second = weights(plain.model), weights(probed.model)
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_rewards_are_scored_on_the_samples_with_their_columns(train):
    run = train(
        *("+recipe=sft_smollm2", "probe.prompts=3", "probe.max_new_tokens=4", "~probe.rewards.invented"),
        *("+probe.rewards.length.function=posttrain.rewards.text.length",),
    )
    last = [r for r in rows(run.metrics) if "probe/length" in r][-1]
    assert last["probe/length"] != last["probe/rewards/length"], "a reward's name does not hide a metric"
    assert "probe/rewards/answer_f1" in last
    samples = rows(run.samples)
    assert {s["step"] for s in samples} == {0, max(s["step"] for s in samples)}
    assert {"prompt", "completion", "answer_f1", "length", "step"} == set(samples[0])


def test_kl_grows_with_training(train):
    run = train(
        *("+recipe=dpo_smollm2", "probe.prompts=8", "probe.max_new_tokens=6", "trainer.args.learning_rate=1e-2"),
        "trainer.args.num_train_epochs=4",
    )
    kl = [r["probe/kl"] for r in rows(run.metrics) if "probe/kl" in r]
    assert kl[0] == 0
    assert kl[-1] == pytest.approx(max(kl))
    assert kl[-1] > 0.01


@pytest.mark.parametrize("long", [True, False])
def test_a_probe_that_costs_much_says_so_in_a_long_run_early_and_at_the_end(train, capsys, monkeypatch, long):
    monkeypatch.setattr("posttrain.probe.callback.LONG_RUN_SECONDS", 0.0 if long else 600.0)
    train(
        *("+recipe=sft_smollm2", "probe.prompts=2", "probe.greedy_prompts=0", "probe.max_new_tokens=4"),
        *("probe.every=4", "~probe.rewards.invented", "trainer.args.max_steps=21", "trainer.args.eval_strategy=no"),
    )
    said = [line for line in capsys.readouterr().out.splitlines() if re.match("probe    7 measurements", line)]
    if not long:
        assert [re.sub(r"[\d.]+", "N", line) for line in said] == [
            "probe    N measurements took N s, N% of the training time"
        ]
        return
    early, end = said
    assert re.match(r"probe    7 measurements of \d+\.\d s will be about \d+% of the training time; ", early)
    assert re.match(r"probe    7 measurements took \d+(\.\d)? s, \d+\.\d% of the training time; ", end)
