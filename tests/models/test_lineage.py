"""Lineage: what a run that continues another begins with, is measured against, and refuses."""

import json
import shutil

import pytest
import torch
from trl.trainer.utils import use_adapter

from posttrain.errors import PosttrainError
from posttrain.jobs import preflight, train_plan
from posttrain.models import starting_point
from posttrain.models import weights as model_weights
from posttrain.runs import lineage
from tests.helpers.runs import compose, rows, weights

LORA = ("peft=lora", "peft.lora.r=4", "trainer.args.learning_rate=0.05")
PROMPT = torch.arange(3, 11).unsqueeze(0)


@pytest.fixture
def sft(finished):
    """A finished SFT run whose adapter has moved far from zero."""
    return finished("+recipe=sft_smollm2", *LORA)


def logits(path):
    with torch.no_grad():
        return model_weights.load(lineage.source(str(path)))(PROMPT).logits.float()


def begin(*overrides):
    run, _ = compose(*overrides)
    return starting_point.start(run)


def at_start(monkeypatch, look):
    """Call `look(trainer)` when training is about to begin."""
    from transformers import Trainer

    original = Trainer.train

    def train(trainer, *args, **kwargs):
        look(trainer)
        return original(trainer, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train", train)


@pytest.mark.parametrize("kind", ["dpo", "sft", "grpo", "kto", "ppo"])
def test_an_adapter_goes_on_from_its_parent_and_is_measured_against_it(kind, sft, train, monkeypatch):
    """The policy starts at a KL of exactly 0 from the parent, with no second base in memory."""
    seen = {}

    def look(trainer):
        model = trainer.accelerator.unwrap_model(trainer.model).eval()
        with torch.no_grad(), trainer.accelerator.autocast():
            for name, adapter in (("policy", "default"), ("reference", "ref"), ("base", None)):
                with use_adapter(model, adapter):
                    seen[name] = model(PROMPT).logits.float()
        seen["second model"] = getattr(trainer, "ref_model", None)
        model.train()

    at_start(monkeypatch, look)
    extra = {
        "grpo": (
            "+reward.letter.function=tests.helpers.rewards.letter",
            "trainer.args.max_completion_length=4",
            "trainer.args.num_generations=4",
        ),
        "ppo": (
            "+reward.letter.function=tests.helpers.rewards.letter",
            "trainer.args.max_completion_length=4",
            "trainer.args.value_mode=adapter",
        ),
    }.get(kind, ())
    child = train(
        f"+recipe={kind}_smollm2", *LORA, f"model.init_from={sft.path}", "trainer.args.max_steps=2", "probe.prompts=2",
        "probe.max_new_tokens=4", "probe=default", *extra,
    )  # fmt: skip
    assert torch.equal(seen["policy"], seen["reference"])
    assert seen["second model"] is None
    assert torch.allclose(seen["policy"], logits(sft.path), atol=1e-5)
    assert (seen["policy"] - seen["base"]).abs().max() > 1e-2
    assert next(row["probe/kl"] for row in rows(child.metrics) if "probe/kl" in row) == 0
    assert not torch.allclose(logits(child.path), logits(sft.path), atol=1e-4)
    record = child.record()
    assert [(p["role"], p["name"], p["content"]) for p in record["parents"]] == [
        ("policy", sft.name, sft.record()["content"])
    ]
    assert not (child.model / "ref").exists()


def test_a_quantized_adapter_goes_on_bit_for_bit(train, monkeypatch):
    """TRL rounds a quantized model's adapter to bfloat16; the parent's weights go in as they were saved."""
    four_bit = ("peft=qlora", "peft.lora.r=4", "trainer.args.learning_rate=0.05")
    parent = train("+recipe=sft_smollm2", *four_bit)
    seen = {}

    def look(trainer):
        for name, parameter in trainer.model.named_parameters():
            if ".default." in name or ".ref." in name:
                seen[name] = parameter.detach().clone()

    at_start(monkeypatch, look)
    train("+recipe=dpo_smollm2", *four_bit, f"model.init_from={parent.path}", "trainer.args.max_steps=1")
    for name, saved in weights(parent.model).items():
        for adapter in ("default", "ref"):
            assert torch.equal(seen[name.replace(".weight", f".{adapter}.weight")], saved)


def test_a_reward_model_goes_on_from_a_policy_and_ppo_shares_the_base(sft, train, monkeypatch):
    seen = {}
    at_start(monkeypatch, lambda trainer: seen.update({n: p.clone() for n, p in trainer.model.named_parameters()}))
    reward = train("+recipe=reward_smollm2", *LORA, f"model.init_from={sft.path}", "trainer.args.max_steps=1")
    for name, saved in weights(sft.model).items():
        assert torch.equal(seen[name.replace(".weight", ".default.weight")], saved)
    ppo = train(
        "+recipe=ppo_smollm2", *LORA, f"model.init_from={sft.path}", "reward=rm", f"reward.rm.model={reward.path}",
        "trainer.args.max_steps=1", "trainer.args.max_completion_length=4",
    )  # fmt: skip
    adapters = {name.split(".")[-2] for name in seen if "lora_A" in name}
    assert [p["role"] for p in ppo.record()["parents"]] == ["policy", "reward.rm"]
    assert {"default", "ref", "reward"} <= adapters


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_a_reward_model_on_the_same_base_shares_it(kind, train, monkeypatch):
    """It scores as it does alone, before training and after, and nothing of it moves or is saved with the policy."""
    from posttrain.rewards.model import RewardModel

    reward = train("+recipe=reward_smollm2", *LORA, "trainer.args.max_steps=2")
    prompts = [[{"role": "user", "content": "Hi?"}], [{"role": "user", "content": "And you?"}]]
    given = {"prompts": prompts, "completions": [[{"role": "assistant", "content": c}] for c in ("Yes.", "No, no.")]}
    alone = RewardModel(str(reward.path))(**given)
    seen, shared = [], []
    original = RewardModel.share

    def share(model, policy, autocast):
        original(model, policy, autocast)
        seen.append(model(**given))
        shared.append((model, policy))

    monkeypatch.setattr(RewardModel, "share", share)
    options = ("trainer.args.max_completion_length=4", "trainer.args.num_generations=2", "trainer.args.max_steps=2")
    model = ("reward=rm", f"reward.rm.model={reward.path}")
    run = train(f"+recipe={kind}_smollm2", *LORA, *model, *options)
    assert seen[0] == pytest.approx(alone, abs=1e-5)
    [(function, policy)] = shared
    assert function(**given) == pytest.approx(alone, abs=1e-5)
    assert not any(p.requires_grad for n, p in policy.named_parameters() if ".reward." in n)
    assert not (run.model / "reward").exists()
    assert any("rewards/rm/mean" in row for row in rows(run.metrics))
    train(f"+recipe={kind}_smollm2", *LORA, *model, *options, "reward.rm.shared=false")
    assert len(shared) == 1


def test_a_full_run_goes_on_with_its_own_weights(train, monkeypatch):
    parent = train("+recipe=sft_smollm2", "peft=none", "trainer.args.learning_rate=0.01")
    seen = {}

    def look(trainer):
        model = trainer.accelerator.unwrap_model(trainer.model).eval()
        with torch.no_grad():
            seen["policy"] = model(PROMPT).logits
            with use_adapter(model, None):
                seen["reference"] = model(PROMPT).logits

    at_start(monkeypatch, look)
    child = train("+recipe=dpo_smollm2", *LORA, f"model.init_from={parent.path}", "trainer.args.max_steps=1")
    assert torch.allclose(seen["policy"], logits(parent.path), atol=1e-5)
    assert torch.equal(seen["policy"], seen["reference"])
    assert child.record()["base"]["path"] == f"../{parent.name}/model"
    assert logits(child.path).shape == seen["policy"].shape
    again = train("+recipe=sft_smollm2", *LORA, f"model.init_from={child.path}", "trainer.args.max_steps=1")
    assert again.record()["base"]["path"] == f"../{parent.name}/model"


def test_a_moved_tree_still_loads_and_a_lost_base_is_named(train, tmp_path):
    parent = train("+recipe=sft_smollm2", "peft=none")
    child = train("+recipe=sft_smollm2", *LORA, f"model.init_from={parent.path}", "trainer.args.max_steps=1")
    before = logits(child.path)
    (tmp_path / "outputs").rename(tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere" / child.name
    assert torch.equal(logits(moved), before)
    shutil.rmtree(tmp_path / "elsewhere" / parent.name)
    with pytest.raises(PosttrainError, match=rf"was trained on .*{parent.name}/model, which is not there any more"):
        lineage.source(str(moved))


def test_what_does_not_fit_is_refused_before_weights_load(sft, train, tmp_path):
    child = ("+recipe=dpo_smollm2", "model=tiny", "peft=lora", "peft.lora.r=4", "data.path=pairs.jsonl")
    with pytest.raises(
        PosttrainError, match=r"model\.path=embedded:smollm2: .*another base; set model.path=embedded:tiny"
    ):
        begin(*child, "model=smollm2", f"model.init_from={sft.path}")
    with pytest.raises(PosttrainError, match="not the run directory of a training run"):
        begin(*child, "model.init_from=embedded:tiny")
    with pytest.raises(PosttrainError, match="no such run or folder"):
        begin(*child, "model.init_from=./nowhere")
    other = tmp_path / "other.jinja"
    other.write_text("{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}")
    run, _ = compose(*child, f"model.init_from={sft.path}", f"model.chat_template={other}", "data.eval_split=null")
    with pytest.raises(
        PosttrainError, match=r"model\.chat_template=.*trained with another; leave model.chat_template out"
    ):
        train_plan.prepare(run, tmp_path)
    with pytest.raises(PosttrainError, match=rf"an adapter, not a whole model; set model.init_from={sft.path}"):
        begin(*child, f"model.path={sft.path}")
    reward = train("+recipe=reward_smollm2", *LORA, "trainer.args.max_steps=1")
    with pytest.raises(PosttrainError, match="a reward model, which dpo cannot train further"):
        begin(*child, f"model.init_from={reward.path}")
    record = json.loads((sft.path / "run.json").read_text())
    (sft.path / "run.json").write_text(json.dumps({**record, "status": "running"}))
    with pytest.raises(PosttrainError, match="not finished; continue it with: posttrain"):
        begin(*child, f"model.init_from={sft.path}")
    (sft.path / "run.json").write_text(json.dumps(record))
    (sft.model / "adapter_model.safetensors").unlink()
    with pytest.raises(PosttrainError, match=r"adapter_model\.safetensors is missing"):
        begin(*child, f"model.init_from={sft.path}")


@pytest.mark.parametrize(
    ("child", "why"),
    [
        (("peft=lora", "peft.lora.r=2"), "a new adapter: r=2, was 4"),
        (("peft=none", "trainer.args.learning_rate=1e-3"), "full fine-tuning"),
        (("peft=qlora", "peft.lora.r=4"), "trained on unquantized weights, now 4-bit"),
    ],
)
def test_another_adapter_goes_on_top_of_the_merged_parent(child, why, sft, train, monkeypatch):
    """The parent is merged into the weights it was trained on, once; policy and reference begin as the parent ended."""
    seen = {}

    def look(trainer):
        model = trainer.accelerator.unwrap_model(trainer.model).eval()
        reference = getattr(trainer, "ref_model", None)
        with torch.no_grad(), trainer.accelerator.autocast():
            seen["policy"] = model(PROMPT).logits.float()
            if reference is not None:
                seen["reference"] = reference.eval()(PROMPT).logits.float()
            elif hasattr(model, "peft_config"):
                with use_adapter(model, None):
                    seen["reference"] = model(PROMPT).logits.float()
        model.train()

    at_start(monkeypatch, look)
    run = train("+recipe=dpo_smollm2", *child, f"model.init_from={sft.path}", "trainer.args.max_steps=1")
    assert torch.equal(seen["policy"], seen["reference"])
    if "peft=qlora" not in child:  # 4-bit weights are another model, whatever was merged
        assert torch.allclose(seen["policy"], logits(sft.path), atol=1e-4)
    record = run.record()
    assert record["base"]["path"] == f"../{sft.name}/base"
    assert record["merge"]["mean"] < 1e-4 < record["merge"]["effect"]
    assert starting_point.start(
        compose("+recipe=dpo_smollm2", "model=tiny", *child, f"model.init_from={sft.path}")[0]
    ).note == (f"{sft.name} merged into the weights it was trained on ({why})")
    again = train("+recipe=sft_smollm2", *child, f"model.init_from={run.path}", "trainer.args.max_steps=1")
    assert again.record()["parents"][0]["content"] == record["content"]


def test_a_quantized_parent_is_merged_as_it_was_trained(train):
    parent = train("+recipe=sft_smollm2", "peft=qlora", "peft.lora.r=4", "trainer.args.learning_rate=0.05")
    child = train("+recipe=dpo_smollm2", *LORA, f"model.init_from={parent.path}", "trainer.args.max_steps=1")
    merge = child.record()["merge"]
    # A merge into the unquantized weights is the wrong one; what rounding leaves is far below what it gets wrong.
    assert merge["mean"] < merge["original"] / 10


def test_adapters_that_change_their_base_are_refused_where_it_is_the_reference():
    child = ("model=tiny", "peft=lora", "peft.lora.init_lora_weights=pissa", "tracking=none")
    preflight.check(compose("+recipe=sft_smollm2", *child)[0])
    for options in (("+recipe=dpo_smollm2",), ("+recipe=sft_smollm2", "model.init_from=outputs/sft-1a2b3c4d")):
        with pytest.raises(PosttrainError, match=r"init_lora_weights=pissa: changes the base weights"):
            preflight.check(compose(*options, *child)[0])


def test_options_left_out_and_written_out_are_the_same_adapter(sft):
    same = ("model=tiny", "peft=lora", "peft.lora.r=4", "peft.lora.use_dora=false", "peft.lora.bias=none")
    assert begin("+recipe=dpo_smollm2", *same, f"model.init_from={sft.path}").adapter == str(sft.model)
    other = begin("+recipe=dpo_smollm2", *same, "peft.lora.use_dora=true", f"model.init_from={sft.path}")
    assert (other.adapter, other.base) == (None, str(sft.path / "base"))
