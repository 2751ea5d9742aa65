"""Weights that mixed precision casts once for a generation, not once for each token."""

from typing import Any


class CastOnce:
    """Mixed into a trainer that samples with Transformers; the sampled tokens stay the same.

    A forward pass under autocast casts every float32 weight that is trained. PyTorch keeps the casts until the
    outermost autocast ends, so one around the whole generation makes them serve all tokens. Sharded weights and vLLM's
    own copy are left alone.
    """

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        trainer: Any = self
        generate = super()._generate_single_turn  # type: ignore[misc]
        if trainer.args.use_vllm or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            return generate(*args, **kwargs)
        with trainer.accelerator.autocast():
            return generate(*args, **kwargs)
