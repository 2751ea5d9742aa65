"""Makes mixed precision cast the weights once per generation, not once per token."""

from typing import Any


class CastOnce:
    """Mixed into a trainer that samples with Transformers; the sampled tokens stay the same.

    A forward pass under autocast casts every trained float32 weight. PyTorch caches the casts until the outermost
    autocast ends, so one autocast around the whole generation serves all tokens. Sharded weights and vLLM's copy are
    not affected.
    """

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        trainer: Any = self
        generate = super()._generate_single_turn  # type: ignore[misc]
        if trainer.args.use_vllm or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            return generate(*args, **kwargs)
        with trainer.accelerator.autocast():
            return generate(*args, **kwargs)
