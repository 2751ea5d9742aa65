"""What is known of the reference is not computed again, and is what it would have been."""

import pytest

from posttrain.models.shared_prompt import SharedPrompts
from posttrain.training import reference
from tests.helpers.runs import rows

TIMES = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "probe/seconds", "probe/share")
DPO = ("trainer=dpo", "trainer.args.learning_rate=1e-2", "trainer.args.max_steps=2", "probe.shift_prompts=3")
DPO += ("probe.prompts=4", "probe.max_new_tokens=3")


@pytest.fixture
def passes(monkeypatch):
    """Backbone passes of evaluations, before the first step and after it."""
    seen = {True: 0, False: 0}
    step = [0]
    forward, loss = SharedPrompts.forward, reference.CachedReference.compute_loss

    def counted(self, *args, **kwargs):
        if step:
            seen[step[-1] == 0] += 1
        return forward(self, *args, **kwargs)

    def evaluated(self, model, inputs, *args, **kwargs):
        step[:] = [self.trainer.state.global_step] if not self.trainer.model.training else []
        try:
            return loss(self, model, inputs, *args, **kwargs)
        finally:
            step.clear()

    step.clear()
    monkeypatch.setattr(SharedPrompts, "forward", counted)
    monkeypatch.setattr(reference.CachedReference, "compute_loss", evaluated)
    monkeypatch.setattr("posttrain.runs.curves.draw_curves", lambda *args: None)
    return seen


@pytest.mark.parametrize("peft", ["lora", "none"])
def test_evaluations_compute_the_reference_once_and_before_the_first_step_not_at_all(train, passes, monkeypatch, peft):
    run = train(*DPO, f"peft={peft}", "name=known")
    assert passes == {True: 1, False: 1}, "one batch of 8 held-out pairs: the policy's pass alone, each time"
    monkeypatch.setattr("posttrain.training.reference.cache_reference", lambda trainer: None)
    monkeypatch.setattr(reference, "is_policy", lambda trainer: False)
    monkeypatch.setattr("posttrain.probe.distance.is_policy", lambda trainer: False)
    plain = train(*DPO, f"peft={peft}", "name=computed")

    def measured(run):
        return [
            {k: v for k, v in row.items() if k.startswith(("eval_", "probe/", "shift/")) and k not in TIMES}
            for row in rows(run.metrics)
        ]

    for found, wanted in zip(measured(run), measured(plain), strict=True):
        assert found == pytest.approx(wanted, abs=1e-6)
    first = next(row for row in measured(run) if "probe/kl" in row)
    assert first["probe/kl"] == 0


def test_a_reference_is_the_policy_only_where_no_weight_says_otherwise(train, monkeypatch):
    """An adapter may begin with weights that change the policy; DoRA rounds on the way."""
    known = []
    original = reference.is_policy
    monkeypatch.setattr("posttrain.probe.distance.is_policy", lambda trainer: known.append(original(trainer)) or False)
    monkeypatch.setattr("posttrain.runs.curves.draw_curves", lambda *args: None)
    options = (*DPO, "probe.shift_prompts=0", "peft=lora", "data.eval_size=4", "trainer.args.max_steps=1")
    train(*options, "name=zero")
    train(*options, "+peft.lora.init_lora_weights=false", "name=random")
    train(*options, "peft=dora", "name=dora")
    assert known == [True, False, False, False, False, False]


def test_a_moving_reference_takes_the_adapter_of_the_embeddings_along():
    """PEFT names its parameters `lora_embedding_A.default`, without an end behind the name."""
    from types import SimpleNamespace

    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from posttrain.data.embedded.tiny import tiny_model
    from posttrain.training.moving_reference import MovingReference

    base = AutoModelForCausalLM.from_pretrained(tiny_model())
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj", "embed_tokens"]))
    moves = MovingReference(model, 1.0, 1)
    parameters = dict(model.named_parameters())
    policy = {name: p for name, p in parameters.items() if ".default" in name}
    assert any("lora_embedding" in name for name in policy)
    for parameter in policy.values():
        parameter.data += 1
    moves.on_step_end(None, SimpleNamespace(global_step=1), None)
    for name, parameter in policy.items():
        assert torch.equal(parameters[name.replace(".default", ".ref")], parameter), name
