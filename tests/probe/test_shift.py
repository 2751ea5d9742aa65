"""Are DPO's pairs what the policy would say? The measurement by hand, the warning, and that training is the same."""

import json
from pathlib import Path

import pytest
import torch

from posttrain.probe.shift import THRESHOLD, Shift, measure
from tests.helpers.runs import rows, weights

USER = [{"role": "user", "content": "Q?"}]


def turn(text):
    return [{"role": "assistant", "content": text}]


def tiny():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from posttrain.data.embedded import tiny

    folder = tiny.tiny_model()
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def per_token(model, ids, start):
    with torch.no_grad():
        log_p = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(log_p[n - 1, ids[n]].item() for n in range(start, len(ids))) / (len(ids) - start)


def test_the_measurement_by_hand():
    model, tokenizer = tiny()
    answers = {"chosen": "yes", "rejected": "no, never at all"}
    data = [{"prompt": USER, **{side: turn(text) for side, text in answers.items()}}] * 2
    torch.manual_seed(0)
    shift = measure(model, tokenizer, data, max_new_tokens=8)
    start = tokenizer.apply_chat_template(USER, add_generation_prompt=True, return_dict=True)["input_ids"]
    for side, text in answers.items():
        whole = tokenizer.apply_chat_template(USER + turn(text), return_dict=True)["input_ids"]
        by_hand = per_token(model, whole[: len(start) + 8], len(start))  # the first eight tokens of each answer
        assert getattr(shift, side) == pytest.approx(by_hand, abs=1e-5)
    assert shift.gap == pytest.approx(shift.own - shift.chosen)
    assert -6.5 < shift.own < -4.5, "a random model finds its 259 tokens about equally likely: log(1/259) is -5.6"


@pytest.mark.parametrize(
    ("gap", "stderr", "far"), [(0.5, 0.0, False), (THRESHOLD, 0.0, False), (1.5, 0.1, True), (1.5, 0.3, False)]
)
def test_a_gap_must_be_large_and_certain(gap, stderr, far):
    assert Shift(-2.0, -2.0, -2.0 + gap, gap, stderr).is_far is far


def test_a_policy_that_never_says_such_things_is_warned_of(train, capsys):
    """A model that has learnt to say yes, asked to learn from pairs in which it says something else."""
    sft = train(
        *("+recipe=sft_smollm2", "peft=none", "trainer.args.learning_rate=1e-2", "trainer.args.num_train_epochs=12"),
        "trainer.args.lr_scheduler_type=constant",
    )
    capsys.readouterr()
    with Path("others.jsonl").open("w") as others:
        for row in rows(Path("pairs.jsonl")):
            others.write(json.dumps({**row, "chosen": row["rejected"], "rejected": row["chosen"]}) + "\n")
    options = ("+recipe=dpo_smollm2", f"model.path={sft.path}", "probe.shift_prompts=8")
    near = train(*options, "probe.max_new_tokens=8")
    assert "warning" not in capsys.readouterr().out
    swapped = ("data.columns={prompt: prompt, chosen: rejected, rejected: chosen}", "probe.max_new_tokens=8")
    far = train(*options, *swapped)
    out = capsys.readouterr().out
    assert "log-probability per token under the policy: chosen -" in out
    assert "Sample on-policy pairs (recipes online_dpo_*, or job=sample sample.select=pairs)" in out
    elsewhere = train(*options, "probe.max_new_tokens=8", "data.path=others.jsonl", "data.eval_path=pairs.jsonl")
    assert "Sample on-policy pairs" in capsys.readouterr().out, "the pairs that are learnt from count"
    for run, warned in ((near, False), (far, True), (elsewhere, True)):
        (point,) = [row for row in rows(run.metrics) if "shift/own" in row]
        assert point["step"] == 0
        assert (point["shift/own"] - point["shift/chosen"] > THRESHOLD) is warned
        assert run.record()["metrics"]["shift/own"] == point["shift/own"]


def test_it_leaves_training_untouched_and_can_be_switched_off(train):
    options = ("+recipe=dpo_smollm2", "trainer.args.learning_rate=1e-2", "peft.lora.lora_dropout=0.1")
    options += ("trainer.args.disable_dropout=false", "probe.max_new_tokens=4", "data.eval_size=4")
    off, on = train(*options, "name=off"), train(*options, "probe.shift_prompts=4", "name=on")
    first, second = weights(off.model), weights(on.model)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not [row for row in rows(off.metrics) if "shift/own" in row]
    assert len([row for row in rows(on.metrics) if "shift/own" in row]) == 1
