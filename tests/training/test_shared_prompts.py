"""Runs whose prompts are computed once take the same steps as runs that compute them for each answer."""

import json

import pytest
import torch

from posttrain.models.shared_prompt import SharedPrompts
from tests.helpers.runs import compose, rows, weights

# Every loss of TRL's that sees pairs one by one, in one sum.
LOSSES = "hinge,ipo,nca_pair,bco_pair,sppo_hard,apo_zero,apo_down,discopop,sft,sigmoid_norm,sigmoid"
GROUPS = ("+reward.short.function=posttrain.rewards.text.length", "reward.short.weight=-1")
ONLINE = (
    *("trainer.args.num_generations=4", "trainer.args.max_completion_length=5", "trainer.args.beta=0.1"),
    *("trainer.args.per_device_train_batch_size=4", "trainer.args.gradient_accumulation_steps=2"),
    "trainer.args.learning_rate=1e-3",
)
RUNS = {
    "dpo": (
        *("trainer=dpo", "peft=lora", f"trainer.args.loss_type=[{LOSSES}]", "trainer.args.learning_rate=1e-3"),
        "trainer.args.gradient_checkpointing=true",
    ),
    "dpo_full": ("trainer=dpo", "peft=none", "trainer.args.learning_rate=1e-4", "+weights=true"),
    "dpo_qlora": (
        *("trainer=dpo", "peft=qlora", "trainer.args.learning_rate=1e-3", "model.dtype=float32"),
        "peft.quantization.bnb_4bit_compute_dtype=float32",
    ),
    "reward": ("trainer=reward", "peft=lora", "trainer.args.learning_rate=1e-3"),
    "orpo": ("trainer=orpo", "peft=lora", "trainer.args.learning_rate=1e-3"),
    "simpo": ("trainer=simpo", "peft=lora", "trainer.args.learning_rate=1e-3"),
    "gmpo": ("trainer=gmpo", "peft=lora", *GROUPS, *ONLINE),
    "grpo": ("trainer=grpo", "peft=lora", *GROUPS, *ONLINE),
    "rloo": ("trainer=rloo", "peft=lora", *GROUPS, *ONLINE),
}


@pytest.fixture
def together(monkeypatch):
    """How many tokens each backbone pass computed, of how many in the rows it was called with."""
    seen = []
    original = SharedPrompts._forward_grid

    def spy(self, layout, kwargs):
        seen.append((layout.source.numel(), kwargs["input_ids"].numel()))
        return original(self, layout, kwargs)

    monkeypatch.setattr(SharedPrompts, "_forward_grid", spy)
    return seen


@pytest.mark.parametrize("name", RUNS)
def test_six_steps_are_those_of_the_unshared_path(train, together, pairs, name, monkeypatch):
    monkeypatch.setattr("posttrain.runs.curves.draw_curves", lambda *args: None)
    overrides = [o for o in RUNS[name] if not o.startswith("+weights")]
    if len(overrides) < len(RUNS[name]):
        given = [{**row, "weight": 1 + n % 3} for n, row in enumerate(rows(pairs))]
        pairs.write_text("\n".join(map(json.dumps, given)))
    found = {}
    for share in ("false", "true"):
        together.clear()
        run = train(
            *overrides,
            "trainer.args.max_steps=6",
            "data.eval_size=0",
            f"trainer.share_prompts={share}",
            f"name={share}",
        )
        found[share] = (rows(run.metrics), weights(run.model), list(together))
    (wanted, before, apart), (logged, after, shared) = found["false"], found["true"]
    assert not apart
    assert shared
    assert all(computed < 0.9 * given for computed, given in shared)
    losses = [[row["loss"] for row in log if "loss" in row] for log in (wanted, logged)]
    assert len(losses[0]) == 6
    assert losses[1] == pytest.approx(losses[0], rel=1e-5, abs=1e-5)
    for key, value in before.items():
        assert torch.allclose(after[key], value, atol=1e-5), key


def test_the_plan_says_whether_prompts_are_shared_and_why_not(train, capsys):
    def plan(*overrides):
        train(*overrides, "dry_run=true")
        return next((line for line in capsys.readouterr().out.splitlines() if line.startswith("prompts")), None)

    assert plan("trainer=dpo", "peft=lora") is None
    assert plan("trainer=grpo", "peft=lora", *GROUPS) is None
    assert "for each answer: trainer.share_prompts=false" in plan("trainer=dpo", "trainer.share_prompts=false")
    assert "lora_dropout=0.1" in plan("trainer=grpo", "peft=lora", "peft.lora.lora_dropout=0.1", *GROUPS)
    assert plan("trainer=sft") is None


def test_attention_that_takes_no_mask_computes_each_prompt_for_each_answer():
    from transformers import AutoConfig

    from posttrain.data.embedded import tiny
    from posttrain.training import shared_prompts

    run, _ = compose("trainer=reward", "model=tiny", "data=squad")
    said = shared_prompts.plan(run, AutoConfig.from_pretrained(tiny.tiny_model()), "flash_attention_2")
    assert "attention flash_attention_2 takes no mask" in said


def test_a_run_keeps_its_name_unless_sharing_is_switched_off(pairs):
    from posttrain.runs.identity import digest

    def name(*overrides):
        run, _ = compose("trainer=dpo", "model=tiny", "data.path=pairs.jsonl", *overrides)
        return digest(run)

    assert name() == name("trainer.share_prompts=true") != name("trainer.share_prompts=false")
