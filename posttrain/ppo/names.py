"""Options and arguments of older PPO trainers (TRL up to 1.12, and 0.11) -> their present names.

`posttrain.ppo` raises a TypeError with these hints; the command line shows the same hints.
"""

from collections.abc import Iterable

OPTIONS = {
    "kl_coef": "beta",
    "init_kl_coef": "beta, which kl_target adapts",
    "adap_kl_ctrl": "kl_target: a number adapts beta, null keeps it",
    "target": "kl_target, in nats per completion",
    "horizon": "kl_horizon, in completions",
    "kl_penalty": "kl_estimator: k1, k2 or k3",
    "cliprange": "epsilon",
    "clip_range": "epsilon",
    "response_length": "max_completion_length",
    "total_episodes": "max_steps, or num_train_epochs: an episode is a prompt of the data",
    "ppo_epochs": "num_ppo_epochs",
    "batch_size": "per_device_train_batch_size x gradient_accumulation_steps x num_mini_batches: a rollout",
    "mini_batch_size": "per_device_train_batch_size, with gradient_accumulation_steps",
    "local_batch_size": "per_device_train_batch_size",
    "local_rollout_forward_batch_size": "per_device_train_batch_size, which forward passes follow",
    "backward_batch_size": "per_device_train_batch_size",
    "num_total_batches": "max_steps",
    "stop_token": "missing_eos_penalty: a completion ends with the tokenizer's EOS token",
    "stop_token_id": "missing_eos_penalty: a completion ends with the tokenizer's EOS token",
    "penalty_reward_value": "missing_eos_penalty",
    "non_eos_penalty": "missing_eos_penalty",
    "reward_model_path": "reward_adapter of PPOTrainer, or a model among its reward_funcs",
    "sft_model_path": "model of PPOTrainer: the policy starts there, and the reference is the same",
    "num_sample_generations": "log_completions",
    "sample_generations": "log_completions",
    "whiten_advantage": "whiten_advantages",
    "use_score_scaling": "whiten_rewards",
    "score_clip": "reward_clip_range",
    "early_stopping": "target_kl",
    "exp_name": "run_name",
    "log_with": "report_to",
    "tracker_project_name": "project",
    "tracker_kwargs": "report_to and project",
    "accelerator_kwargs": "accelerator_config",
    "project_kwargs": "output_dir",
    "push_to_hub_if_best_kwargs": "push_to_hub, and hub_strategy says when",
    "steps": "max_steps, in optimizer steps",
    "optimize_cuda_cache": "torch_empty_cache_steps",
    "optimize_device_cache": "torch_empty_cache_steps",
    "ratio_threshold": "target_kl: a batch that is far off is skipped",
    "use_score_norm": "whiten_rewards",
    "model_name": "model of PPOTrainer",
    "query_dataset": "train_dataset of PPOTrainer",
    "reward_model": "reward_funcs of PPOTrainer",
    "model_adapter_name": "nothing: the policy's adapter is 'default'",
    "ref_adapter_name": "nothing: the reference's adapter is 'ref', and is made here",
    "dataset_num_proc": "nothing: rows are not tokenized beforehand",
    **dict.fromkeys(("task_name", "compare_steps"), "nothing: it had no effect on training"),
    **dict.fromkeys(("is_encoder_decoder", "is_peft_model"), "nothing: it is seen from the model"),
    "world_size": "nothing: it follows from the launcher",
    **dict.fromkeys(("micro_batch_size", "local_mini_batch_size", "forward_batch_size"), "per_device_train_batch_size"),
    **dict.fromkeys(
        ("global_batch_size", "global_backward_batch_size"),
        "per_device_train_batch_size x gradient_accumulation_steps x processes",
    ),
}
ARGUMENTS = {
    "config": "args, a PPOConfig",
    "policy": "model",
    "policy_model": "model",
    "tokenizer": "processing_class",
    "ref_model": "nothing: the reference is the base without the adapter, or a copy of the adapter it starts from",
    "ref_policy": "nothing: the reference is the base without the adapter, or a copy of the adapter it starts from",
    "value_model": "value_peft_config: the value function is an adapter on the policy's base, or value_mode='head'",
    "reward_model": "reward_funcs, models or functions, or reward_adapter, a folder of RewardTrainer",
    "dataset": "train_dataset",
    **dict.fromkeys(("data_collator", "training_data_collator"), "nothing: prompts are tokenized here"),
    "optimizer": "optimizers, a pair with the scheduler",
    "lr_scheduler": "optimizers, a pair with the optimizer, or lr_scheduler_type of PPOConfig",
    "num_shared_layers": "nothing: one base carries all roles, so all layers are shared",
}


def check(given: Iterable[str], known: Iterable[str], hints: dict[str, str], what: str) -> None:
    """Raise `TypeError` for a keyword that was renamed; Python itself reports the unknown ones."""
    known = set(known)
    lines = [f"{name} is now {hints[name]}" for name in given if name not in known and name in hints]
    if lines:
        raise TypeError(f"{what}: " + "; ".join(lines))
