"""The estimate of a training's memory: its parts follow the options, and a small training takes what it says."""

from dataclasses import replace

import pytest

from posttrain.models.hardware import Precision
from posttrain.training import footprint, frozen_weights
from posttrain.training.sizes import Sizes
from tests.helpers.runs import compose

LLAMA_8B = Sizes(
    layers=32, hidden=4096, intermediate=14336,
    heads=32, queries=4096, keys=1024, vocabulary=128256,
    total=8_030_000_000, trained=8_030_000_000, tied=False,
)  # fmt: skip
ADAPTER = 20_000_000


def estimate(*overrides, adapter=False, row=1024, prompt=256):
    run, _ = compose(*overrides, "model.path=m", "data.path=d")
    precision = Precision("GPU", "bfloat16", True, False, "sdpa")
    sizes = replace(LLAMA_8B, trained=ADAPTER) if adapter else LLAMA_8B
    return footprint.estimate(run, precision, sizes, row, prompt)


def parts(*overrides, moment="the backward pass", **given):
    return estimate(*overrides, **given).moments[moment]


def test_weights_optimizer_and_reference_follow_the_options(monkeypatch):
    plain = parts("trainer=dpo", "peft=none", moment="the end of the backward pass")
    assert plain["reference"] == plain["weights"] == plain["gradients"] == pytest.approx(2 * 8.03e9)
    assert plain["optimizer"] == pytest.approx(2 * 2 * 8.03e9)
    assert parts("trainer=dpo", "peft=none", "+trainer.args.precompute_ref_log_probs=true")["reference"] == 0
    assert parts("trainer=sft", "peft=none")["reference"] == 0
    assert parts("trainer=sft", "peft=none", "+trainer.args.optim=adamw_8bit")["optimizer"] == pytest.approx(2 * 8.03e9)
    assert parts("trainer=sft", "peft=none", "+trainer.args.optim=sgd")["optimizer"] == 0
    assert parts("trainer=sft", "peft=lora", adapter=True)["optimizer"] == 8 * ADAPTER, "adapters are float32"
    double = parts("trainer=ppo", "peft=lora", "reward=length", adapter=True)["optimizer"]
    assert double == 2 * 8 * ADAPTER, "the value adapter is trained, too"
    quantized = parts("trainer=sft", "peft=qlora", adapter=True)["weights"]
    linear = 8.03e9 - 2 * 128256 * 4096 - ADAPTER
    assert quantized == pytest.approx(linear * (0.5 + 1 / 64 + 1 / 4096) + 2 * 128256 * 4096 * 2 + ADAPTER * 4)
    monkeypatch.setenv("WORLD_SIZE", "4")
    sharded = parts("trainer=sft", "peft=none", "+trainer.args.fsdp=full_shard")
    assert sharded["weights"] == pytest.approx(2 * 8.03e9 / 4)


def test_every_reward_model_with_files_here_is_counted(tmp_path):
    for name, size in (("a/model", 100), ("b", 50)):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "model.safetensors").write_bytes(b"x" * size)
    given = [f"+reward.{name}.model={tmp_path / name}" for name in "ab"]
    run, _ = compose("+recipe=grpo_smollm2", "~reward", *given)
    assert frozen_weights.reward_models(run) == 150


def test_a_teacher_takes_its_weights_in_4_bits_if_asked():
    import json

    from posttrain.data.embedded.tiny import tiny_model

    folder = tiny_model()
    known = json.loads((folder / "config.json").read_text())
    whole = sum(t.numel() for t in _tensors(folder))
    words = ("trainer=distillation", "peft=lora", f"trainer.teacher.model={folder}")
    assert parts(*words, adapter=True)["teacher"] == 2 * whole
    ends = known["vocab_size"] * known["hidden_size"] * (1 if known["tie_word_embeddings"] else 2)
    four = parts(*words, "+trainer.teacher.quantization.load_in_4bit=true", adapter=True)["teacher"]
    assert four == pytest.approx((whole - ends) * (0.5 + 4 / 64) + 2 * ends)
    assert parts("trainer=sft", "peft=lora", adapter=True)["teacher"] == 0


def _tensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors").values()


def test_activations_follow_batch_length_and_checkpointing():
    few = parts("trainer=sft", "peft=lora", "trainer.args.per_device_train_batch_size=1", adapter=True)
    many = parts("trainer=sft", "peft=lora", "trainer.args.per_device_train_batch_size=4", adapter=True)
    assert many["activations"] == 4 * few["activations"]
    kept = parts(
        "trainer=sft", "peft=lora", "trainer.args.per_device_train_batch_size=1",
        "trainer.args.gradient_checkpointing=false", adapter=True,
    )  # fmt: skip
    # By hand, for a token of a layer, in bfloat16: 4 x 4096 of attention, 3 x 14336 of the feed-forward, what seven
    # adapters read (5 x 4096 + 4096 + 14336), a mask of 1024; two inputs of norms in float32.
    token = 2 * (4 * 4096 + 3 * 14336 + 6 * 4096 + 14336 + 1024) + 4 * 2 * 4096
    assert kept["activations"] == 1024 * (32 * token + 4 * 4 * 4096)
    assert few["activations"] == 1024 * (32 * 4096 * 2 + 4 * 4 * 4096), "with checkpoints, the inputs of layers alone"


def test_gradients_are_there_in_the_backward_pass_where_steps_are_accumulated():
    assert "gradients" not in parts("trainer=sft", "peft=none", "+trainer.args.gradient_accumulation_steps=1")
    assert parts("trainer=sft", "peft=none", "+trainer.args.gradient_accumulation_steps=2")["gradients"] > 0


def test_pairs_take_both_answers_and_a_shared_prompt_once():
    args = ("trainer=dpo", "peft=lora", "trainer.args.per_device_train_batch_size=1")
    apart = parts(*args, "trainer.share_prompts=false", adapter=True, prompt=768)["activations"]
    together = parts(*args, adapter=True, prompt=768)["activations"]
    assert together / apart == (768 + 2 * 256) / (2 * 1024)


def test_sampling_keeps_keys_and_values_of_every_answer():
    args = ("trainer=grpo", "peft=lora", "reward=length", "trainer.args.per_device_train_batch_size=8")
    cache = parts(*args, "+trainer.args.gradient_accumulation_steps=2", moment="sampling", adapter=True)["cache"]
    assert cache == 16 * 1024 * (32 + 1) * 2 * 1024 * 2


@pytest.mark.slow
@pytest.mark.parametrize("way", ["sft none", "dpo lora", "reward lora", "ppo lora"])
def test_a_measured_peak_is_within_a_fifth_of_the_estimate(way):
    from benchmarks import memory

    kind, peft = way.split()
    found = memory.measured(memory.Case(kind, peft, memory.SIZES[1]))
    assert found.estimate == pytest.approx(found.peak, rel=0.2)
