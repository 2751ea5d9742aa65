"""Options of trainers that posttrain decides, and what to set instead."""

from posttrain.config.trainers import Kind

# Options of TRL's config classes that this layer decides.
RESERVED_OPTIONS = {
    "output_dir": "set output_dir (the run directory is made inside it)",
    "report_to": "choose tracking=wandb|trackio|tensorboard|mlflow|comet|none",
    "run_name": "set name",
    "project": "set tracking.project",
    "disable_tqdm": "posttrain draws the progress bar",
    "save_only_model": "a run could not resume",
    "resume_from_checkpoint": "the same command continues from the last checkpoint by itself",
    "model_init_kwargs": "set model.dtype, model.attn_implementation or model.kwargs",
    "trust_remote_code": "set model.trust_remote_code",
    "chat_template_path": "set model.chat_template",
    "eos_token": "set model.eos_token",
    "pad_token": "set model.pad_token",
    "do_eval": "set trainer.args.eval_strategy",
    "enable_jit_checkpoint": "posttrain saves at SIGTERM by itself",
    "parallelism_config": "give it to accelerate launch",
    **dict.fromkeys(
        ("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision"),
        "run `posttrain export RUN --push-to-hub ORG/NAME` when the run is finished",
    ),
    "dataset_text_field": "set data.columns={text: COLUMN}",
    **dict.fromkeys(("dataset_kwargs", "label_names"), "posttrain prepares the rows; leave it out"),
    "local_rank": "torchrun and accelerate launch set it",
    "hub_token": "run `hf auth login`; a token in a config would be stored in the run directory",
}
# Options of PPOConfig that follow from others.
DERIVED_OPTIONS = {
    "num_iterations": "it is num_ppo_epochs",
    "steps_per_generation": "it is gradient_accumulation_steps x num_mini_batches",
    "generation_batch_size": "it is per_device_train_batch_size x gradient_accumulation_steps x num_mini_batches x "
    "processes",
    "normalize_advantages": "PPO's is whiten_advantages",
}
# Options that name a teacher; the trainer is given the model itself.
TEACHER_OPTIONS = {
    "teacher_model_name_or_path": "set trainer.teacher.model",
    "teacher_model_revision": "set trainer.teacher.revision",
    "teacher_model_init_kwargs": "set trainer.teacher.model, and trainer.teacher.quantization",
}


def reserved_options(kind: Kind) -> dict[str, str]:
    """Option of the trainer's config class -> what to do instead of setting it."""
    return {**RESERVED_OPTIONS, **TEACHER_OPTIONS, **(DERIVED_OPTIONS if kind.is_a("PPOTrainer") else {})}
