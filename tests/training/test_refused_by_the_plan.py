"""Settings that a library takes without a word, or refuses when weights are loaded: the plan says it before."""

import shutil
from pathlib import Path

import pytest

from posttrain.data.embedded.tiny import tiny_model
from posttrain.errors import PosttrainError
from posttrain.jobs import preflight, train_plan
from posttrain.training import online
from tests.helpers.runs import SMALL, compose

LORA = ("+recipe=sft_smollm2", "peft=lora")
VALUE = ("trainer=ppo", "reward=length", "peft=lora")
REFUSED = [
    (
        ("+recipe=sft_smollm2", "+trainer.args.gradient_checkpointing_kwargs={use_reentrnat: false}"),
        r"trainer\.args\.gradient_checkpointing_kwargs\.use_reentrnat=False: .*did you mean use_reentrant",
    ),
    (
        ("+recipe=sft_smollm2", "+trainer.args.torch_compile_backend=nope"),
        r"trainer\.args\.torch_compile_backend=.*choose from",
    ),
    (
        ("+recipe=sft_smollm2", "+trainer.args.optim_args=x"),
        r"^trainer\.args\.optim_args=x: optim=.* does not read 'x'",
    ),
    # The library names no option.
    (("+recipe=sft_smollm2", "+trainer.args.pad_to_multiple_of=''"), r"^trainer\.args\.pad_to_multiple_of=: "),
    (
        ("+recipe=sft_smollm2", "+trainer.args.activation_checkpointing_kwargs=x"),
        r"^trainer\.args\.activation_checkpointing_kwargs=x: expected settings",
    ),
    (("+recipe=sft_smollm2", "+trainer.args.ddp_backend=gloo"), r"^trainer\.args\.ddp_backend=gloo: .*process group"),
    (("+recipe=sft_smollm2", "+trainer.args.push_to_hub=true"), r"trainer\.args\.push_to_hub: .*posttrain export RUN"),
    (("+recipe=sft_smollm2", "+trainer.args.local_rank=5"), r"trainer\.args\.local_rank: .*torchrun"),
    (("+recipe=sft_smollm2", "model.attn_implementation=flash"), r"model\.attn_implementation=flash: "),
    (
        ("+recipe=sft_smollm2", "+model.kwargs.torch_dtyp=float32"),
        r"model\.kwargs\.torch_dtyp: neither .*; did you mean torch_dtype\?",
    ),
    (
        ("+recipe=sft_smollm2", "+model.kwargs.num_hidden_layers=1"),
        r"num_hidden_layers=1: .* have another shape \(model",
    ),
    (("+recipe=sft_smollm2", "+model.kwargs.rope_scaling=3"), r"^model\.kwargs\.rope_scaling=3: .*TypeError: "),
    ((*LORA, "+peft.lora.target_parameters=[nope]"), r"peft\.lora\.target_parameters=nope: no parameter"),
    ((*LORA, "+peft.lora.trainable_token_indices=[9999]"), r"trainable_token_indices=9999: the model has 259 tokens"),
    (("+recipe=sft_smollm2", "probe.prompts=8", "probe.max_new_tokens=999999"), r"probe\.max_new_tokens=999999: "),
    (("+recipe=sft_smollm2", "tracking=wandb", "tracking.project='a/b'"), r"tracking\.project=a/b: W&B takes no /"),
    ((*LORA, "+peft.lora.task_type=SEQ_CLS"), r"peft\.lora\.task_type: .*it follows the trainer"),
    ((*LORA, "+peft.lora.inference_mode=true"), r"peft\.lora\.inference_mode: .*it would train nothing"),
    ((*LORA, "+peft.lora.rank_pattern={nope: 4}"), r"peft\.lora\.rank_pattern\.nope: matches no module"),
    ((*LORA, "+peft.lora.alpha_pattern=null"), r"peft\.lora\.alpha_pattern=None: expected settings"),
    ((*LORA, "+peft.lora.velora_config=[1]"), r"peft\.lora\.velora_config=\[1\]: expected settings"),
    (
        (*LORA, "+peft.lora.runtime_config={}"),
        r"peft\.lora\.runtime_config: .*leave|peft\.lora\.runtime_config: .*no training",
    ),
    ((*LORA, "+trainer.args.optim=null"), r"trainer\.args\.optim=None: leave it out, or choose from"),
    (
        (*LORA, "trainer.args.lr_scheduler_type=warmup_stable_decay"),
        r"lr_scheduler_type=warmup_stable_decay: needs num_decay_steps; set trainer\.args\.lr_scheduler_kwargs",
    ),
    ((*LORA, "+trainer.args.gradient_checkpointing_kwargs=x"), r"gradient_checkpointing_kwargs=x: expected settings"),
    (
        ("trainer=grpo", "reward=length", "+trainer.args.generation_batch_size=auto"),
        r"generation_batch_size='auto': expected",
    ),
    # Incomplete batches are dropped.
    (
        ("trainer=sft", "trainer.args.per_device_train_batch_size=60", "+trainer.args.dataloader_drop_last=true"),
        r"^trainer\.args\.per_device_train_batch_size: a batch takes 60 rows and there are \d+; .*nothing would be",
    ),
    (
        ("trainer=grpo", "reward=length", "trainer.args.num_generations=2", "+trainer.args.steps_per_generation=50"),
        r"^trainer\.args\.per_device_train_batch_size: a batch takes 200 rows and there are",
    ),
    (
        ("trainer=rloo", "reward=length", "+trainer.args.generation_batch_size=800"),
        r"^trainer\.args\.generation_batch_size: a batch takes 200 rows",
    ),
    ((*VALUE, "+peft.value={target_modules: [nope_proj]}"), r"peft\.value\.target_modules=nope_proj: no such module"),
    ((*VALUE, "+peft.value={target_modules: nope_.*}"), r"peft\.value: .*nope_"),
]


@pytest.mark.parametrize(("overrides", "why"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_before_weights_load(overrides, why, tmp_path, pairs):
    run, _ = compose(*SMALL, *overrides)

    def plan():
        preflight.check(run)
        train_plan.prepare(run, tmp_path / "outputs")

    with pytest.raises(PosttrainError, match=why):
        plan()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.jsonl"]


def test_weights_that_are_cut_short(tmp_path, pairs):
    model = shutil.copytree(tiny_model(), tmp_path / "model")
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:200])
    run, _ = compose(*SMALL, "+recipe=sft_smollm2", f"model.path={model}")
    with pytest.raises(PosttrainError, match=r"model\.safetensors: is damaged \(.*copy the folder again"):
        train_plan.prepare(run, tmp_path / "outputs")


@pytest.mark.parametrize(
    "overrides",
    [
        (*LORA, "+peft.lora.rank_pattern={q_proj: 4}", "+trainer.args.gradient_checkpointing_kwargs={debug: true}"),
        (*LORA, "+model.kwargs={low_cpu_mem_usage: true, attention_dropout: 0.1}", "model.attn_implementation=eager"),
        (*VALUE, "+peft.value={target_modules: [q_proj]}"),
    ],
    ids=str,
)
def test_what_the_libraries_take_is_taken(overrides, tmp_path, pairs):
    run, _ = compose(*SMALL, *overrides)
    preflight.check(run)
    assert train_plan.prepare(run, tmp_path / "outputs").parameters[1] > 0


def test_a_training_without_a_step_saves_nothing(train, monkeypatch):
    """Where the plan cannot know it, as with a stream."""
    monkeypatch.setattr(online, "check_rows", lambda *args: None)
    dropped = (
        "trainer.args.per_device_train_batch_size=64",
        "trainer.args.dataloader_drop_last=true",
        "trainer.args.max_steps=2",
    )
    with pytest.raises(PosttrainError, match="no step was made"):
        train("+recipe=sft_smollm2", *dropped)
    assert not list(Path("outputs").glob("*/model"))
