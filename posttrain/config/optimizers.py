"""What optimizers need: their packages, and the `optim_args` that each of them reads; imports nothing heavy."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

# By the beginning of the name of an optimizer: (module it needs, what to install).
PACKAGES = {
    "galore_": ("galore_torch", "galore-torch"),
    "apollo_": ("apollo_torch", "apollo-torch"),
    **dict.fromkeys(("lomo", "adalomo"), ("lomo_optim", "lomo-optim")),
    "grokadamw": ("grokadamw", "grokadamw"),
    "schedule_free_": ("schedulefree", "schedulefree"),
    "stable_adamw": ("optimi", "torch-optimi"),
    **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit"), ("torchao", "torchao")),
    "adamw_anyprecision": ("torchdistx", "torchdistx"),
    "adamw_torch_xla": ("torch_xla", "torch_xla"),
    "adamw_torch_npu_fused": ("torch_npu", "torch_npu"),
}
# What `optim_args` may hold. Transformers ignores every other name, and all names for an optimizer that is not listed.
# RMSprop of bitsandbytes gets the values as text, and fails.
ARGS = {
    "sgd": "momentum dampening weight_decay nesterov",
    "adagrad": "lr_decay weight_decay eps",
    "rmsprop": "momentum alpha eps weight_decay centered",
    **dict.fromkeys(("ademamix", "ademamix_8bit", "paged_ademamix_"), "beta1 beta2 beta3 alpha eps t_alpha t_beta3"),
    "galore_": "rank update_proj_gap scale proj_type",
    "apollo_": "rank proj scale_type update_proj_gap scale proj_type",
    "grokadamw": "alpha_init lamb gamma grokking_signal_decay_rate gradient_clipping",
    **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit"), "block_size bf16_stochastic_round"),
    "schedule_free_": "weight_lr_power r",
    "stable_adamw": "max_lr kahan_sum decouple_lr",
    "adamw_anyprecision": "use_kahan_summation momentum_dtype variance_dtype compensation_buffer_dtype",
}
T = TypeVar("T")


def of_optimizer(table: Mapping[str, T], optim: str) -> T | None:
    """The entry of `optim`, by its name or, for a key that ends in `_`, by the beginning of its name."""
    return next((table[s] for s in table if (optim.startswith(s) if s.endswith("_") else optim == s)), None)


def check(args: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with `optim` and the options that only some optimizers read; lines lack `trainer.args.`."""
    optim, given = str(args.get("optim") or "adamw_torch_fused"), args.get("optim_args")
    if optim.startswith(("galore_", "apollo_")):
        if not args.get("optim_target_modules"):
            yield f"optim={optim}: set trainer.args.optim_target_modules, such as [attn,mlp]"
        steps = args.get("gradient_accumulation_steps", 1)
        if optim.endswith("_layerwise") and isinstance(steps, int) and steps > 1:
            yield f"optim={optim}: a step in each layer's backward; set gradient_accumulation_steps=1"
    elif args.get("optim_target_modules"):
        yield f"optim_target_modules: optim={optim} does not read it; leave it out, or choose galore or apollo"
    if not isinstance(given, str) or not given:
        return
    known = (of_optimizer(ARGS, optim) or "").split()
    for word in given.replace(" ", "").split(","):
        name, equals, value = word.partition("=")
        if name not in known:
            yield (
                f"optim_args={given}: optim={optim} does not read {name!r}; "
                + (f"it reads {', '.join(known)}" if known else "leave it out")
            )
        elif not (equals and value) or "=" in value:
            yield f"optim_args={given}: expected NAME=VALUE,NAME=VALUE"
