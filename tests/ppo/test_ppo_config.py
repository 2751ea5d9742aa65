"""Options and inputs that are refused, each with a message that names option, value and fix."""

import dataclasses
import json

import pytest
from datasets import Dataset, IterableDataset
from transformers import AutoConfig, HfArgumentParser, LlamaConfig

from posttrain.ppo import PPOConfig, PPOTrainer, checks

from .tiny import PROMPTS, even_codes, lora


def config(tmp_path, **options):
    return PPOConfig(tmp_path, **{"use_cpu": True, "bf16": False, "report_to": [], **options})


def test_a_rollout_is_derived(tmp_path):
    args = config(
        tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=3, num_mini_batches=5, num_ppo_epochs=7
    )
    assert args.generation_batch_size == 30
    assert args.steps_per_generation == 15
    assert args.num_iterations == 7
    assert args.steps_per_rollout == 35
    assert args.pad_to_multiple_of is None


def test_derived_options_may_be_repeated(tmp_path):
    args = config(tmp_path, per_device_train_batch_size=2, num_mini_batches=3)
    again = dataclasses.replace(args, learning_rate=0.5)
    assert (again.generation_batch_size, again.steps_per_generation, again.learning_rate) == (6, 3, 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generation_batch_size": 12}, r"generation_batch_size=12 is not .* \(8\) .* = 8"),
        ({"steps_per_generation": 3}, "steps_per_generation=3"),
        ({"num_iterations": 3}, "num_iterations=3 contradicts num_ppo_epochs=4"),
        ({"num_generations": 3}, r"divisible by num_generations \(3\)"),
        ({"num_ppo_epochs": 0}, "num_ppo_epochs=0"),
        ({"num_mini_batches": 0}, "num_mini_batches=0"),
        ({"gamma": 0.0}, "gamma=0.0"),
        ({"lam": 1.5}, "lam=1.5"),
        ({"cliprange_value": 0.0}, "cliprange_value=0.0"),
        ({"missing_eos_penalty": -1.0}, "missing_eos_penalty=-1.0"),
        ({"value_mode": "heads"}, "value_mode='heads' must be one of adapter, head"),
        ({"value_init": "one"}, "value_init='one'"),
        ({"kl_estimator": "k4"}, "kl_estimator='k4'"),
        ({"kl_target": 6.0, "beta": 0.0}, "beta=0 would stay 0"),
        ({"value_init": "reward", "value_mode": "head"}, "value_mode='adapter'"),
        ({"normalize_advantages": True}, "whiten_advantages"),
        ({"min_completion_length": 65, "max_completion_length": 64}, "min_completion_length=65"),
        ({"target_kl": 0.1, "fp16": True, "bf16": False}, "use bf16"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
    ],
)
def test_options_that_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **options)


def test_all_problems_are_reported_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)num_ppo_epochs=0.*gamma=2.0.*kl_estimator='k9'"):
        config(tmp_path, num_ppo_epochs=0, gamma=2.0, kl_estimator="k9")


def test_every_option_is_documented_and_parses_from_the_command_line(tmp_path):
    own = {f.name: f for f in dataclasses.fields(PPOConfig)}
    assert all(f.metadata.get("help") for name, f in own.items() if name in PPOConfig.__annotations__)
    command = ["--output_dir", str(tmp_path), "--use_cpu", "--bf16", "False", "--value_mode", "head", "--gamma", "0.9"]
    (args,) = HfArgumentParser(PPOConfig).parse_args_into_dataclasses(command)
    assert (args.value_mode, args.gamma) == ("head", 0.9)
    HfArgumentParser(PPOConfig).format_help()


def test_minimum_length_reaches_the_engine(tmp_path):
    assert config(tmp_path, min_completion_length=4).generation_kwargs == {"min_new_tokens": 4}
    assert config(tmp_path, min_completion_length=4, use_vllm=True).generation_kwargs == {"min_tokens": 4}


@pytest.fixture
def refused(make_trainer, monkeypatch):
    """Building a trainer raises a ValueError before weights load."""

    def check(message, trainer=None, **options):
        monkeypatch.setattr("trl.trainer.rloo_trainer.create_model_from_path", lambda *a, **k: pytest.fail("loaded"))
        with pytest.raises(ValueError, match=message):
            make_trainer(trainer, **options)

    return check


def test_no_prompt_column(refused):
    refused("no column 'prompt' .*question", {"train_dataset": Dataset.from_dict({"question": ["a"] * 8})})
    refused("no column 'prompt'", {"eval_dataset": {"test": Dataset.from_dict({"question": ["a"] * 8})}})


def test_too_few_prompts_for_a_rollout(refused):
    refused(
        r"3 prompts, fewer than one rollout takes: 4 =", {"train_dataset": Dataset.from_dict({"prompt": ["a"] * 3})}
    )


def test_generation_longer_than_the_context(refused):
    refused(r"max_completion_length=120 after the longest prompt \(13 tokens\) .* 128 .*at most 115",
            max_completion_length=120)  # fmt: skip


def test_no_eos(refused, tokenizer, model_dir):
    other = type(tokenizer).from_pretrained(model_dir)
    other.eos_token = None
    refused("no EOS token", {"processing_class": other})


def test_no_reward(refused):
    refused("reward_funcs or reward_adapter", {"reward_funcs": None})


def test_roles_that_full_fine_tuning_cannot_play(refused, reward_dir):
    refused("value_mode='head'", {"peft_config": None})
    refused("full fine-tuning", {"peft_config": None, "reward_adapter": reward_dir}, value_mode="head")


def test_value_adapter_of_two_shapes(refused, reward_dir):
    arguments = {"reward_adapter": reward_dir, "value_peft_config": lora()}
    refused("leave value_peft_config out", arguments, value_init="reward")


def test_value_from_a_reward_model_that_is_not_there(refused):
    refused("value_init='zero'", value_init="reward")


def test_reward_weights_that_do_not_match(refused, reward_dir):
    refused("3 weights for 2 rewards", {"reward_adapter": reward_dir}, reward_weights=[1.0, 1.0, 1.0])


def test_no_dataset_and_no_tokenizer(refused):
    refused("train_dataset is missing", {"train_dataset": None})
    refused("not a tokenizer", {"processing_class": object()})


def test_arguments_of_another_trainer(make_trainer, tmp_path, monkeypatch):
    from trl import RLOOConfig

    with pytest.raises(TypeError, match="must be a PPOConfig, not a RLOOConfig"):
        PPOTrainer(model="m", args=RLOOConfig(tmp_path, use_cpu=True, bf16=False))


def test_value_learning_rate_with_an_optimizer_of_ones_own(refused):
    refused("value_learning_rate", {"optimizers": (object(), None)}, value_learning_rate=0.1)


def test_adapter_under_another_name(make_trainer, load_policy):
    from peft import get_peft_model

    policy = get_peft_model(load_policy(), lora(), adapter_name="sft")
    with pytest.raises(ValueError, match=r"\['sft'\].*'default'"):
        make_trainer({"model": policy, "peft_config": None})


def test_adapter_that_was_loaded_frozen(make_trainer, load_policy, tmp_path):
    from peft import PeftModel, get_peft_model

    get_peft_model(load_policy(), lora()).save_pretrained(tmp_path / "sft")
    policy = PeftModel.from_pretrained(load_policy(), tmp_path / "sft")
    with pytest.raises(ValueError, match="is_trainable=True"):
        make_trainer({"model": policy, "peft_config": None})


def test_positions(tmp_path):
    checks.check_positions(LlamaConfig())
    checks.check_positions(AutoConfig.for_model("gpt2"))
    checks.check_positions(AutoConfig.for_model("bloom"))
    with pytest.raises(ValueError, match="takes no position_ids"):
        checks.check_positions(AutoConfig.for_model("mamba"))


def test_checks_speak_the_callers_names(tmp_path):
    args = config(tmp_path, reward_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"trainer\.args\.value_mode.*\n.*no column") as error:
        checks.check_all(args, peft=False, columns=["text"], num_reward_funcs=2, name="trainer.args.{}".format)
    assert len(str(error.value).splitlines()) == 2


def test_engines_that_are_not_supported(tmp_path):
    args = config(tmp_path)
    args.fsdp = "full_shard"
    with pytest.raises(ValueError, match="fsdp='full_shard'"):
        checks.check_engine(args)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("org/model", "org/model", True),
        ("/cache/models--org--Model/snapshots/abc", "org/model", True),
        ("/disk/model", "org/model", True),
        ("org/model", "org/model-instruct", False),
        ("/runs/1/model", "/runs/2/model", False),
        (None, "org/model", True),
    ],
)
def test_same_base(one, other, same):
    assert checks.same_base(one, other) == same


def test_longest_prompt(tokenizer):
    assert checks.longest_prompt_length(["a", "abcd", "ab"], tokenizer) == 4
    chats = [[{"role": "user", "content": text}] for text in ("a", "abc")]
    assert checks.longest_prompt_length(chats, tokenizer) == len("u:abc a:")
    assert checks.longest_prompt_length([], tokenizer) == 0


def test_longest_prompt_counts_the_tools_of_its_row(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ tools | tojson if tools else '' }}" + tokenizer.chat_template)
    chats = [[{"role": "user", "content": text}] for text in ("abcd", "a")]
    tools = [{"type": "function", "function": {"name": "add"}}]
    for given in (tools, json.dumps(tools)):
        longest = checks.longest_prompt_length(chats, tokenizer, tools=[None, given])
        assert longest == len(json.dumps(tools)) + len("u:a a:")


def test_default_arguments(model_dir, tokenizer, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    class OnThisMachine(PPOConfig):
        def __init__(self, folder):
            super().__init__(folder, use_cpu=True, bf16=False, report_to=[], max_completion_length=8)

    monkeypatch.setattr("posttrain.ppo.trainer.PPOConfig", OnThisMachine)
    trainer = PPOTrainer(
        model=str(model_dir),
        reward_funcs=even_codes,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        peft_config=lora(),
        args=None,
    )
    assert trainer.args.output_dir == f"{model_dir.name}-PPO"
    assert trainer._tokenizer.get_vocab() == tokenizer.get_vocab()


def test_streams_are_not_counted(make_trainer):
    stream = IterableDataset.from_generator(lambda: ({"prompt": p} for p in PROMPTS))
    assert make_trainer({"train_dataset": stream}) is not None


def test_config_is_serializable(tmp_path):
    assert json.loads(json.dumps(config(tmp_path).to_dict(), default=str))["num_ppo_epochs"] == 4


def test_a_horizon_that_would_turn_the_kl_coefficient_negative(tmp_path):
    options = {"kl_target": 1.0, "per_device_train_batch_size": 50}
    with pytest.raises(ValueError, match=r"kl_horizon=10 would let .* 50 completions .*: set it to 50 or more\."):
        config(tmp_path, kl_horizon=10, **options)
    assert config(tmp_path, kl_horizon=11, **options).kl_horizon == 11
