"""Options of the trainers that sample completions, as far as they exclude or need each other."""

from collections.abc import Iterator
from typing import Any

from posttrain.config.given_options import GivenOptions
from posttrain.config.trainers import Kind

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


def check(args: GivenOptions, kind: Kind) -> Iterator[str]:
    """What is wrong with the options of `kind`, a trainer that samples completions."""
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
