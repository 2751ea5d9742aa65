"""Names from other libraries -> the keys of this config."""

from collections.abc import Iterable

from posttrain.config.suggestions import did_you_mean
from posttrain.ppo import names

# A name in other libraries, older releases or common use -> the option of `trainer.args`.
OPTIONS = {
    **dict.fromkeys(("lr", "learning-rate", "init_lr", "base_lr"), "learning_rate"),
    **dict.fromkeys(("batch_size", "train_batch_size", "bs", "micro_batch_size"), "per_device_train_batch_size"),
    **dict.fromkeys(("eval_batch_size", "per_gpu_eval_batch_size"), "per_device_eval_batch_size"),
    **dict.fromkeys(("epochs", "num_epochs", "n_epochs", "max_epochs", "num_train_epoch"), "num_train_epochs"),
    **dict.fromkeys(("steps", "num_steps", "total_steps", "max_train_steps", "iterations"), "max_steps"),
    **dict.fromkeys(("grad_accum", "grad_accumulation", "accumulation_steps", "ga"), "gradient_accumulation_steps"),
    **dict.fromkeys(("gradient_accumulation", "accumulate_grad_batches"), "gradient_accumulation_steps"),
    **dict.fromkeys(("warmup", "num_warmup_steps"), "warmup_steps"),
    "warmup_ratio": "warmup_steps, where a number below 1 is a share of the run",
    **dict.fromkeys(("scheduler", "lr_scheduler", "scheduler_type"), "lr_scheduler_type"),
    **dict.fromkeys(("optimizer", "optimiser"), "optim"),
    **dict.fromkeys(("wd", "decay"), "weight_decay"),
    **dict.fromkeys(("grad_clip", "clip_grad", "gradient_clipping", "gradient_clip_val", "max_norm"), "max_grad_norm"),
    "evaluation_strategy": "eval_strategy",
    **dict.fromkeys(("max_seq_length", "max_seq_len", "seq_length", "cutoff_len", "context_length"), "max_length"),
    "max_prompt_length": "max_length, which TRL cuts the whole row at; prompts have no limit of their own",
    **dict.fromkeys(("max_new_tokens", "max_response_length", "response_length"), "max_completion_length"),
    **dict.fromkeys(("group_size", "num_return_sequences", "num_samples", "k"), "num_generations"),
    **dict.fromkeys(("kl_coef", "kl_coeff", "kl_penalty_coef", "kl_beta"), "beta"),
    **dict.fromkeys(("clip_eps", "clip_range", "cliprange", "clip_ratio"), "epsilon"),
    **dict.fromkeys(("random_seed", "rng_seed"), "seed"),
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "dpo_beta": "beta",
    "loss": "loss_type",
    "log_every": "logging_steps",
    "save_every": "save_steps",
    "eval_every": "eval_steps",
    "num_workers": "dataloader_num_workers",
}
# A name in other libraries -> the key of this config.
KEYS = {
    **dict.fromkeys(("model_name_or_path", "model_name", "model_id", "base_model", "checkpoint"), "model.path"),
    **dict.fromkeys(("dataset", "dataset_name", "dataset_path", "train_file", "data_path"), "data.path"),
    **dict.fromkeys(("eval_dataset", "validation_file", "eval_file"), "data.eval_path"),
    **dict.fromkeys(("val_size", "test_size", "eval_split_size"), "data.eval_size"),
    **dict.fromkeys(("out", "output", "out_dir", "save_dir"), "output_dir"),
    **dict.fromkeys(("lora_r", "lora_rank", "rank"), "peft.lora.r"),
    **dict.fromkeys(("lora_alpha", "alpha"), "peft.lora.lora_alpha"),
    **dict.fromkeys(("lora_dropout", "dropout"), "peft.lora.lora_dropout"),
    **dict.fromkeys(("lora_target_modules", "target_modules"), "peft.lora.target_modules"),
    **dict.fromkeys(("use_peft", "use_lora", "lora"), "peft=lora"),
    **dict.fromkeys(("load_in_4bit", "use_4bit", "quantization", "qlora"), "peft=qlora"),
    "load_in_8bit": "peft=qlora peft.quantization={load_in_8bit:true}",
    **dict.fromkeys(("torch_dtype", "dtype"), "model.dtype"),
    "attn_implementation": "model.attn_implementation",
    "chat_template": "model.chat_template",
    **dict.fromkeys(("stop_token", "eos_token"), "model.eos_token"),
    "pad_token": "model.pad_token",
    **dict.fromkeys(("wandb_project", "project"), "tracking.project"),
    **dict.fromkeys(("report_to", "logger"), "tracking=wandb|trackio|tensorboard|mlflow|comet|none"),
    **dict.fromkeys(("run_name", "exp_name", "experiment_name"), "name"),
    **dict.fromkeys(("reward_model", "reward_model_path", "rm_path"), "reward=rm reward.rm.model=RUN_OR_HUB_ID"),
    "reward_funcs": "+reward.NAME.function=package.module.function",
    **dict.fromkeys(("sft_model_path", "sft_model"), "model.init_from=RUN, or model.path"),
    **dict.fromkeys(("ref_model", "reference_model"), "nothing to set: the reference is where training starts"),
    **dict.fromkeys(("num_sample_generations", "sample_generations"), "probe.every, with probe.prompts"),
    **dict.fromkeys(("method", "algorithm", "algo", "trainer_type"), "trainer=sft|reward|dpo|kto|grpo|rloo|ppo"),
    "peft_config": "peft=lora|qlora|dora, and peft.lora",
}
LORA = {"rank": "r", "lora_r": "r", "lora_rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}


def unknown_option(cls: str, name: str, known: Iterable[str]) -> str:
    """The message for an option that the class `cls` does not have."""
    fix = for_option(cls, name, known) or did_you_mean(name, known, 3)
    return f"not an option of {cls}{'; ' if fix else ''}{fix}"


def for_option(cls: str, name: str, known: Iterable[str]) -> str | None:
    """The end of a message: the right name for an unknown option of `trainer.args` or `peft.lora`, or None."""
    known = set(known)
    if cls == "LoraConfig":
        return f"did you mean {LORA[name]}?" if name in LORA else None
    if name in KEYS:
        return f"set {KEYS[name]}"
    own = names.OPTIONS if cls == "PPOConfig" else {}
    meant = own.get(name) or OPTIONS.get(name)
    # An option that only other trainers have is no hint.
    if meant is None or (meant.isidentifier() and meant not in known):
        return None
    return f"did you mean {meant}?" if meant.isidentifier() else f"it is now {meant}"


def for_key(name: str, options: dict[str, set[str]]) -> str | None:
    """As `for_option`, for an unknown key of the config; `options` maps a place to the options known there."""
    if name in KEYS:
        return f"set {KEYS[name]}"
    meant = OPTIONS.get(name) or names.OPTIONS.get(name) or name
    if not meant.isidentifier():
        return f"in trainer.args it is {meant}"
    return next((f"set {place}.{meant}" for place, known in options.items() if meant in known), None)


def nearest(name: str, known: Iterable[str], most: int = 2) -> str:
    """`did you mean A or B?`, or what there is."""
    known = list(known)
    return did_you_mean(name, known, most, f"known here: {', '.join(known)}")
