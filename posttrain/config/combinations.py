"""Options that exclude or need each other, and packages that options need; nothing heavy is imported.

TRL, Transformers and PEFT check most of this after the weights are loaded. Each rule names the option to change.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from posttrain.config import trainers
from posttrain.config.given_options import NESTED, GivenOptions
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
# Schedule -> the options of which `lr_scheduler_kwargs` must hold one.
SCHEDULE_NEEDS = {
    "warmup_stable_decay": ("num_decay_steps",),
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
}


def check(run: Run) -> list[str]:
    """Options that do not fit together, one message each."""
    args, kind = run.trainer.args, trainers.of(run.trainer.kind)
    errors = packages(args) + check_smoothing(kind.name, kind.lineage, args)
    if any(args.get(name) for name in ("optim", "optim_args", "optim_target_modules")):
        from posttrain.config import optimizers

        errors += [f"trainer.args.{line}" for line in optimizers.check(args)]
    given = GivenOptions(args)
    for rule in (_precision, _schedule, _evaluation, _loading, _lengths, _losses, _reference, _parallel):
        errors += [f"trainer.args.{line}" for line in rule(given, kind, run.peft)]
    if args.keys() & NESTED:
        from posttrain.config import nested_options

        errors += [f"trainer.args.{line}" for line in nested_options.check(given, kind)]
    if kind.samples_completions:
        from posttrain.config import sampling_combinations

        errors += [f"trainer.args.{line}" for line in sampling_combinations.check(given, kind)]
    if run.peft.lora or run.peft.value or run.peft.quantization:
        from posttrain.config import adapter_combinations

        errors += adapter_combinations.check(run)
    return errors


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


def _precision(args: GivenOptions, kind: Kind, peft: PeftConfig) -> Iterator[str]:
    for one, other in (("bf16", "fp16"), ("bf16_full_eval", "fp16_full_eval")):
        if args.get(one) is True and args.get(other) is True:
            yield f"{one}=true: {other}=true is set too; leave one of them out"


def _schedule(args: GivenOptions, kind: Kind, peft: PeftConfig) -> Iterator[str]:
    steps, warmup = args.number("max_steps", -1), args.number("warmup_steps", 0)
    if 0 < steps < warmup:
        yield f"warmup_steps={warmup:g}: max_steps={steps:g} ends the run before the learning rate is reached; lower it"
    needed = SCHEDULE_NEEDS.get(str(args.get("lr_scheduler_type")), ())
    if needed and not any(name in args.settings("lr_scheduler_kwargs") for name in needed):
        yield (
            f"lr_scheduler_type={args['lr_scheduler_type']}: needs {' or '.join(needed)}; set "
            f"trainer.args.lr_scheduler_kwargs.{needed[0]}"
        )
    if args.get("lr_scheduler_type") in ("reduce_lr_on_plateau", "greedy") and args.get("eval_strategy") == "no":
        yield f"lr_scheduler_type={args['lr_scheduler_type']}: reads evaluations; set eval_strategy=epoch"


def _evaluation(args: GivenOptions, kind: Kind, peft: PeftConfig) -> Iterator[str]:
    if not kind.evaluates and args.get("eval_strategy", "no") != "no":
        yield f"eval_strategy: {kind.name} has no loss on held-out rows; the probe measures it"
    evaluated, saved = args.get("eval_strategy", "epoch"), args.get("save_strategy", "steps")
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
    if args.get("load_best_model_at_end") is True and evaluated == "steps" and kind.has("steps_per_generation"):
        every, whole = args.number("eval_steps", args.number("logging_steps", 10)), _steps_of_a_generation(args, kind)
        if every >= 1 and every % whole:
            yield (
                f"load_best_model_at_end=true: eval_steps={every:g} is no multiple of the {whole:g} steps that learn "
                f"from one generation, within which nothing is saved; set trainer.args.eval_steps={whole:g}"
            )
    if args.get("save_strategy") == "best" and not args.get("metric_for_best_model"):
        yield "save_strategy=best: needs a metric; set trainer.args.metric_for_best_model=eval_loss, or another metric"


def _steps_of_a_generation(args: GivenOptions, kind: Kind) -> float:
    """Optimizer steps that learn from the same completions."""
    if kind.is_a("PPOTrainer"):
        return args.number("num_mini_batches", 1) * args.number("num_ppo_epochs", 4)
    if args.get("generation_batch_size"):
        return 1  # it depends on the processes; a best model that was not saved is reported at the end
    accumulated = args.number("gradient_accumulation_steps", kind.default("gradient_accumulation_steps"))
    return args.number("steps_per_generation", accumulated) * args.number("num_iterations", 1) / accumulated


WORKER_OPTIONS = [f"dataloader_{name}" for name in ("prefetch_factor", "persistent_workers", "multiprocessing_context")]
ONE_PROCESS = "one process has no process group"
BY_LENGTH = ("group_by_length", "batch_rebalance")  # these read a row's `input_ids`


def _loading(args: GivenOptions, kind: Kind, peft: PeftConfig) -> Iterator[str]:
    if args.get("auto_find_batch_size") is True:
        yield "auto_find_batch_size=true: would break groups of completions, and resuming; lower the batch size instead"
    for name in WORKER_OPTIONS:
        if args.get(name) and not args.get("dataloader_num_workers"):
            yield f"{name}={args[name]}: only read with dataloader_num_workers above 0; leave it out, or set that"
    if (order := args.get("train_sampling_strategy")) in BY_LENGTH and kind.reads not in ("text", "messages"):
        yield f"train_sampling_strategy={order}: {kind.name}'s rows have no one length; leave it out"


def _lengths(args: GivenOptions, kind: Kind, peft: PeftConfig) -> Iterator[str]:
    if not kind.is_a("SFTTrainer"):
        return
    limit = args.get("max_length", 1024)
    if args.get("packing") is True and limit is None:
        yield "packing=true: rows are packed up to max_length; set it"
    if args.get("padding_free") is True and args.get("packing") is not True and limit is not None:
        yield f"padding_free=true: does not cut at max_length={limit}; set packing=true, or max_length=null"


def _losses(args: GivenOptions, kind: Kind, peft: PeftConfig) -> Iterator[str]:
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
        if args.get("per_device_train_batch_size", 8) == 1:
            yield (
                "per_device_train_batch_size=1: kto estimates its KL from the other rows of a micro-batch; "
                "set at least 2, and fewer gradient_accumulation_steps"
            )
        if args.get("loss_type", "kto") == "kto" and args.get("train_sampling_strategy", "sequential") != "sequential":
            yield (
                f"train_sampling_strategy={args['train_sampling_strategy']}: loss_type=kto estimates its KL from "
                "neighbouring rows, which must stay together; leave it out"
            )
        if not args.number("desirable_weight", 1) and not args.number("undesirable_weight", 1):
            yield "desirable_weight=0: undesirable_weight=0 is set too, so that no row counts; raise one of them"


def _reference(args: GivenOptions, kind: Kind, peft: PeftConfig) -> Iterator[str]:
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


def _parallel(args: GivenOptions, kind: Kind, peft: PeftConfig) -> Iterator[str]:
    if args.get("fsdp_config") and not args.get("fsdp"):
        yield "fsdp_config: nothing reads it without fsdp; set trainer.args.fsdp=full_shard, or leave it out"
    for name in ("ddp_backend", "fsdp") if os.environ.get("WORLD_SIZE", "1") == "1" else ():
        if args.get(name):
            yield f"{name}={args[name]}: {ONE_PROCESS}; leave it out, or use accelerate launch"


# The losses of DPO that read `label_smoothing` in TRL 1.16; the others ignore it, conservative DPO's sigmoid too.
LOSSES_WITH_SMOOTHING = ("robust", "exo_pair", "aot", "aot_unpaired")


def check_smoothing(kind: str, lineage: tuple[str, ...], args: dict[str, Any]) -> list[str]:
    """Label smoothing that TRL would ignore for the trainer `kind`, or fail on after the weights are loaded.

    `lineage` are the names of its class and of those that it inherits from.
    """
    errors = []
    if args.get("label_smoothing_factor") and "SFTTrainer" not in lineage:
        fix = "set loss_type=[robust] and label_smoothing" if "DPOTrainer" in lineage else "leave it out"
        errors.append(f"trainer.args.label_smoothing_factor: TRL's loss for {kind} does not read it; {fix}")
    amount = args.get("label_smoothing", 0.0)
    if "DPOTrainer" not in lineage or isinstance(amount, bool) or not isinstance(amount, (int, float)):
        return errors
    types = args.get("loss_type") or ["sigmoid"]
    types = types if isinstance(types, list) else [types]
    where = f"trainer.args.label_smoothing={amount:g}"
    if amount and not any(one in LOSSES_WITH_SMOOTHING for one in types):
        errors.append(
            f"{where}: TRL ignores it with loss_type=[{','.join(map(str, types))}]; set "
            f"trainer.args.loss_type=[robust], or leave it out (read by {', '.join(LOSSES_WITH_SMOOTHING)})"
        )
    elif "exo_pair" in types and not amount:
        errors.append(f"{where}: loss_type=[exo_pair] needs it above 0; its paper sets 0.001")
    if "robust" in types and not 0 <= amount < 0.5:
        errors.append(f"{where}: loss_type=[robust] divides by 1 - 2 label_smoothing; set it below 0.5")
    return errors
