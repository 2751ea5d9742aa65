"""Options that exclude or need each other, and packages that options need; nothing heavy is imported.

TRL, Transformers and PEFT check most of this after the weights are loaded. Each rule names the option to change.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from posttrain.config import options, trainers
from posttrain.config.schema import PeftConfig, Run
from posttrain.config.trainers import Kind

# Option -> (module it needs, what to install).
PACKAGES = {
    "use_vllm": ("vllm", "trl[vllm]"),
    "use_liger_kernel": ("liger_kernel", "liger-kernel"),
    "deepspeed": ("deepspeed", "deepspeed"),
    "push_to_hub": ("huggingface_hub", "huggingface_hub"),
}

# The losses of DPO in TRL 1.16 that can have another divergence than the reverse KL.
DIVERGENCES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
# What a schedule must be given, one of these, in `lr_scheduler_kwargs`.
SCHEDULE_NEEDS = {
    "warmup_stable_decay": ("num_decay_steps",),
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
}


def check(run: Run) -> list[str]:
    """All that is wrong together, one message each."""
    args, kind = run.trainer.args, trainers.of(run.trainer.kind)
    errors = packages(args)
    if any(args.get(name) for name in ("optim", "optim_args", "optim_target_modules")):
        from posttrain.config import optimizers

        errors += [f"trainer.args.{line}" for line in optimizers.check(args)]
    for rule in (_precision, _evaluation, _loading, _settings, _lengths, _losses, _reference, _generation, _parallel):
        errors += [f"trainer.args.{line}" for line in rule(_Args(args), kind, run.peft)]
    if run.peft.lora or run.peft.quantization:
        from posttrain.config import adapter_combinations

        errors += adapter_combinations.check(run.peft, kind)
    return errors


class _Args(dict):
    """Options with a default for those that are not given; a value of a wrong type counts as not given."""

    def number(self, name: str, default: float) -> float:
        value = self.get(name, default)
        return default if isinstance(value, bool) or not isinstance(value, (int, float)) else value

    def settings(self, name: str) -> Mapping[str, Any]:
        """Nested settings, given as such or as JSON."""
        value = self.get(name)
        with suppress(ValueError):
            value = json.loads(value) if isinstance(value, str) else value
        return value if isinstance(value, Mapping) else {}

    def several(self, name: str, default: list[Any]) -> list[Any]:
        value = self.get(name) or default
        return value if isinstance(value, list) else [value]


def packages(args: Mapping[str, Any], named: str | None = None) -> list[str]:
    """Packages that options need and that are not installed; `named` is how the user set them, if not by `args`."""
    needed = [(name, *PACKAGES[name]) for name in PACKAGES if args.get(name)]
    if args.get("optim"):
        from posttrain.config import optimizers

        if package := optimizers.of_optimizer(optimizers.PACKAGES, str(args["optim"])):
            needed.append(("optim", *package))
    if not needed:
        return []
    from posttrain.extras import missing_modules

    return [
        f"{named or f'trainer.args.{name}={args[name]}' if name != 'deepspeed' else 'trainer.args.deepspeed'}: needs "
        f"the package {package}, which is not installed; pip install '{package}'"
        for name, module, package in needed
        if missing_modules(module)
    ]


def _precision(args: _Args, kind: Kind, peft: PeftConfig) -> list[str]:
    return [
        f"{one}=true: {other}=true is set too; leave one of them out"
        for one, other in (("bf16", "fp16"), ("bf16_full_eval", "fp16_full_eval"))
        if args.get(one) is True and args.get(other) is True
    ]


def _evaluation(args: _Args, kind: Kind, peft: PeftConfig) -> Iterator[str]:
    evaluated, saved = args.get("eval_strategy", "epoch"), args.get("save_strategy", "steps")
    needed = SCHEDULE_NEEDS.get(str(args.get("lr_scheduler_type")), ())
    if needed and not any(name in args.settings("lr_scheduler_kwargs") for name in needed):
        yield (
            f"lr_scheduler_type={args['lr_scheduler_type']}: needs {' or '.join(needed)}; set "
            f"trainer.args.lr_scheduler_kwargs.{needed[0]}"
        )
    if args.get("lr_scheduler_type") in ("reduce_lr_on_plateau", "greedy") and evaluated == "no":
        yield f"lr_scheduler_type={args['lr_scheduler_type']}: reads evaluations; set eval_strategy=epoch"
    if args.get("load_best_model_at_end") is True and saved != "best":
        if evaluated != saved:
            yield (
                f"load_best_model_at_end=true: eval_strategy={evaluated} and save_strategy={saved} must be the same; "
                f"set trainer.args.save_strategy={evaluated if evaluated != 'no' else 'epoch'}"
            )
        elif evaluated == "steps":
            every, kept = args.number("eval_steps", args.number("logging_steps", 10)), args.number("save_steps", 500)
            if every > 0 and abs(kept / every - round(kept / every)) > 1e-9:
                yield f"save_steps={kept:g}: load_best_model_at_end needs a multiple of eval_steps={every:g}"
    if args.get("save_strategy") == "best" and not args.get("metric_for_best_model"):
        yield "save_strategy=best: needs a metric; set trainer.args.metric_for_best_model=eval_loss, or another metric"


WORKER_OPTIONS = [f"dataloader_{name}" for name in ("prefetch_factor", "persistent_workers", "multiprocessing_context")]


def _loading(args: _Args, kind: Kind, peft: PeftConfig) -> list[str]:
    given = [name for name in WORKER_OPTIONS if args.get(name) and not args.get("dataloader_num_workers")]
    return [
        f"{name}={args[name]}: only read with dataloader_num_workers above 0; leave it out, or set that"
        for name in given
    ]


# Options that hold options: Transformers takes settings, JSON text that begins with a brace and, of some, a file.
SETTINGS = ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs")
SETTINGS_FILES = ("accelerator_config", "fsdp_config", "deepspeed")
# What torch.utils.checkpoint takes, and `selective`, which TRL takes in SFT.
CHECKPOINTING = ("use_reentrant", "preserve_rng_state", "debug", "early_stop", "selective", "determinism_check")


def _settings(args: _Args, kind: Kind, peft: PeftConfig) -> Iterator[str]:
    steps, warmup = args.number("max_steps", -1), args.number("warmup_steps", 0)
    if 0 < steps < warmup:
        yield f"warmup_steps={warmup:g}: max_steps={steps:g} ends the run before the learning rate is reached; lower it"
    for name in (*SETTINGS, *SETTINGS_FILES):
        value = args.get(name)
        if isinstance(value, str) and value.startswith("{"):
            try:
                value = json.loads(value)
            except ValueError as error:
                yield f"{name}={value}: is no JSON ({error})"
        elif isinstance(value, str) and name in SETTINGS_FILES:
            if not os.path.isfile(value):  # unlike Path's, false for a name that is too long
                yield f"{name}={value}: no such file"
        elif isinstance(value, str):
            yield f"{name}={value}: expected settings, {{KEY: VALUE}}"
        if name == "accelerator_config" and isinstance(value, Mapping):
            yield from options.check("transformers.trainer_pt_utils.AcceleratorConfig", dict(value), name)
        if name.endswith("checkpointing_kwargs") and isinstance(value, Mapping):
            yield from (f"{name}.{line}" for line in _checkpointing(args, kind, value))


def _checkpointing(args: _Args, kind: Kind, given: Mapping[str, Any]) -> Iterator[str]:
    for key, value in given.items():
        choices = ("default", "none") if key == "determinism_check" else (True, False)
        if key not in CHECKPOINTING:
            from posttrain.config import hints

            yield f"{key}={value}: nothing reads it; {hints.nearest(str(key), CHECKPOINTING)}"
        elif value not in (*choices, None):
            yield f"{key}={value}: choose from {', '.join(map(str, choices)).lower()}"
    if given.get("use_reentrant") is True and (more := given.keys() - {"use_reentrant", "preserve_rng_state"}):
        yield f"use_reentrant=true: torch takes no {min(more)} with it; leave one of them out"
    if given.get("selective") is True:
        if not kind.is_a("SFTTrainer"):
            yield "selective=true: TRL takes it in SFT only; leave it out"
        if args.get("gradient_checkpointing") is False:
            yield "selective=true: needs trainer.args.gradient_checkpointing=true"


def _lengths(args: _Args, kind: Kind, peft: PeftConfig) -> Iterator[str]:
    if not kind.is_a("SFTTrainer"):
        return
    limit = args.get("max_length", 1024)
    if args.get("packing") is True and limit is None:
        yield "packing=true: rows are packed up to max_length; set it"
    if args.get("padding_free") is True and args.get("packing") is not True and limit is not None:
        yield f"padding_free=true: does not cut at max_length={limit}; set packing=true, or max_length=null"


def _losses(args: _Args, kind: Kind, peft: PeftConfig) -> Iterator[str]:
    types = args.several("loss_type", ["sigmoid"] if kind.is_a("DPOTrainer") else [])
    weights = args.get("loss_weights")
    if isinstance(weights, list) and len(weights) != len(types):
        yield f"loss_weights={weights}: {len(weights)} for {len(types)} loss types ({', '.join(map(str, types))})"
    if kind.is_a("DPOTrainer"):
        if len(set(map(str, types))) < len(types):
            yield f"loss_type={types}: names a loss twice; use loss_weights"
        alien = [loss for loss in types if loss not in DIVERGENCES]
        if args.get("f_divergence_type", "reverse_kl") != "reverse_kl" and alien:
            yield f"f_divergence_type={args['f_divergence_type']}: loss_type={alien[0]} knows reverse_kl only"
        if args.get("use_weighting") is True and {"aot", "aot_unpaired"} & set(map(str, types)):
            yield "use_weighting=true: the aot losses sort their batch and cannot be weighted; leave it out"
    if kind.is_a("KTOTrainer"):
        if args.get("loss_type", "kto") == "kto" and args.get("train_sampling_strategy", "sequential") != "sequential":
            yield (
                f"train_sampling_strategy={args['train_sampling_strategy']}: loss_type=kto estimates its KL from "
                "neighbouring rows, which must stay together; leave it out"
            )
        if not args.number("desirable_weight", 1) and not args.number("undesirable_weight", 1):
            yield "desirable_weight=0: undesirable_weight=0 is set too, so that no row counts; raise one of them"


def _reference(args: _Args, kind: Kind, peft: PeftConfig) -> Iterator[str]:
    if args.get("sync_ref_model") is True:
        if peft.method != "none" and kind.is_a("PPOTrainer"):
            yield "sync_ref_model=true: PPO's reference stays where it starts; leave it out"
        if args.get("precompute_ref_log_probs") is True:
            yield "sync_ref_model=true: precompute_ref_log_probs=true keeps the first reference; leave one out"
        if kind.takes_rewards and kind.has("beta") and not args.number("beta", kind.default("beta")):
            yield "sync_ref_model=true: with beta=0 there is no reference; set trainer.args.beta, or leave it out"
    liger = args.get("liger_kernel_config")
    if isinstance(liger, Mapping) and liger.get("fused_linear_cross_entropy") and not kind.scores:
        yield "liger_kernel_config.fused_linear_cross_entropy=true: TRL has a fused LM head; leave it out"


# What `generation_kwargs` may not hold: options of their own, and what breaks groups of completions.
GENERATION = {
    **dict.fromkeys(("max_new_tokens", "max_length", "max_tokens"), "set trainer.args.max_completion_length"),
    **{n: f"set trainer.args.{n}" for n in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")},
    **dict.fromkeys(("num_return_sequences", "n"), "set trainer.args.num_generations"),
    **dict.fromkeys(
        ("do_sample", "num_beams", "num_beam_groups"), "completions are sampled, one for each row; leave it out"
    ),
    **dict.fromkeys(("eos_token_id", "pad_token_id"), "set model.eos_token or model.pad_token"),
}


def _generation(args: _Args, kind: Kind, peft: PeftConfig) -> Iterator[str]:
    if not kind.samples_completions:
        return
    if args.get("auto_find_batch_size") is True:
        yield "auto_find_batch_size=true: would break groups of completions; lower per_device_train_batch_size"
    if args.get("generation_batch_size") is not None and args.get("steps_per_generation") is not None:
        yield "generation_batch_size: steps_per_generation is set too; leave one of them out"
    elif not kind.is_a("PPOTrainer") and (whole := args.number("generation_batch_size", 0)):
        batch = args.number("per_device_train_batch_size", 8)
        if batch >= 1 and whole % batch:
            yield f"generation_batch_size={whole:g}: no multiple of per_device_train_batch_size={batch:g}"
    if args.get("log_completions_hub_repo") and args.get("log_completions") is not True:
        yield "log_completions_hub_repo: only read with log_completions=true; set that, or leave it out"
    for name in args.settings("generation_kwargs"):
        if fix := GENERATION.get(name):
            yield f"generation_kwargs.{name}: {fix}"
    low, high = args.get("vllm_importance_sampling_clip_min"), args.number("vllm_importance_sampling_clip_max", 3.0)
    if isinstance(low, (int, float)) and low >= high:
        yield f"vllm_importance_sampling_clip_min={low:g}: must be below the clip_max of {high:g}"
    clip: Any = args.get("reward_clip_range")
    numbers = isinstance(clip, (list, tuple)) and len(clip) == 2 and all(isinstance(v, (int, float)) for v in clip)
    if numbers and clip[0] >= clip[1]:
        yield f"reward_clip_range={list(clip)}: expected the lower end first"
    least, most = args.number("entropy_coef_min", 0.0), args.number("entropy_coef_max", 1.0)
    if least > most:
        yield f"entropy_coef_min={least:g}: above entropy_coef_max={most:g}"
    if kind.is_a("PPOTrainer"):
        shortest = args.get("min_completion_length")
        if isinstance(shortest, int) and shortest > (most := args.number("max_completion_length", 512)):
            yield f"min_completion_length={shortest}: above max_completion_length={most:g}"
        if args.get("kl_target") is not None and not args.number("beta", 0.05):
            yield "kl_target: adapts beta by factors, so that beta=0 would stay 0; set trainer.args.beta"
        if args.get("value_init") == "reward" and args.get("value_mode") == "head":
            yield "value_init=reward: copies an adapter; set trainer.args.value_mode=adapter"


def _parallel(args: _Args, kind: Kind, peft: PeftConfig) -> Iterator[str]:
    if args.get("fsdp_config") and not args.get("fsdp"):
        yield "fsdp_config: nothing reads it without fsdp; set trainer.args.fsdp=full_shard, or leave it out"
    if (backend := args.get("ddp_backend")) and os.environ.get("WORLD_SIZE", "1") == "1":
        yield f"ddp_backend={backend}: one process has no process group; leave it out, or start with accelerate launch"
