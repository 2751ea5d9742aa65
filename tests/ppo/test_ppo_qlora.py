"""A 4-bit base model, also on CPUs on which bitsandbytes repacks weights (AVX512-BF16)."""

import pytest
import torch
from transformers import BitsAndBytesConfig

from .tiny import logged, lora, weights

bitsandbytes = pytest.importorskip("bitsandbytes")

FOUR_BITS = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


@pytest.fixture
def make_quantized(make_trainer):
    def make(trainer=None, **options):
        arguments = {"quantization_config": FOUR_BITS, "peft_config": lora(), **(trainer or {})}
        return make_trainer(arguments, **{"max_steps": 6, "learning_rate": 0.05, **options})

    return make


@pytest.mark.parametrize("mode", ["adapter", "head"])
def test_training(make_quantized, mode):
    trainer = make_quantized(value_mode=mode)
    linear = [m for m in trainer.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert linear
    # A forward in evaluation mode without gradients is what triggers the repacking.
    trainer.model.eval()
    with torch.no_grad():
        trainer.model(input_ids=torch.tensor([[5, 6, 7]]))
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    assert logged(trainer, "approx_kl")[0] == 0
    assert logged(trainer, "ratio")[0] == 1
    assert logged(trainer, "objective/kl")[0] == 0
    assert logged(trainer, "objective/kl")[1] != 0
    assert min(logged(trainer, "grad_norm")) > 0
    for name, value in before.items():
        trained = "lora_" in name or "value_head" in name
        assert torch.equal(value, after[name]) != trained, name
    assert trainer.roles.value_head.weight.dtype == torch.float32


def test_starting_adapter_and_its_reference_are_rounded_alike(make_quantized, load_policy, tmp_path):
    """TRL copies the reference before it rounds the policy adapter to bfloat16: KL would not start at 0."""
    from peft import PeftModel, get_peft_model

    torch.manual_seed(3)
    get_peft_model(load_policy(), lora(init_lora_weights=False)).save_pretrained(tmp_path / "sft")
    policy = PeftModel.from_pretrained(load_policy(quantization_config=FOUR_BITS), tmp_path / "sft", is_trainable=True)
    trainer = make_quantized({"model": policy, "peft_config": None, "quantization_config": None}, max_steps=2)
    trainer.train()
    assert logged(trainer, "objective/kl")[0] == 0


def test_reward_adapter_and_checkpointing(make_quantized, reward_dir):
    trainer = make_quantized(
        {"reward_adapter": reward_dir, "reward_funcs": None}, value_init="reward", gradient_checkpointing=True
    )
    trainer.train()
    assert logged(trainer, "ratio")[0] == 1
    assert min(logged(trainer, "grad_norm")) > 0


def test_resume(make_quantized, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2}
    whole = make_quantized(**options)
    whole.train()
    resumed = make_quantized(output_dir=str(tmp_path / "resumed"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    expected, actual = weights(whole), weights(resumed)
    for name in expected:
        assert expected[name].dtype == actual[name].dtype, name
        assert torch.equal(expected[name], actual[name]), name
