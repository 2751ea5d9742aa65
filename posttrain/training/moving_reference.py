"""A reference adapter that follows the policy (TR-DPO); TRL supports this for whole models only.

The reference is the frozen adapter `ref`. Every `ref_model_sync_steps` steps its matrices become
alpha x the policy's + (1 - alpha) x their own, with alpha = `ref_model_mixup_alpha`.
Source: Gorbatovski et al. 2024, "Learn Your Reference Model for Real Good Alignment", eq. 1; there of whole weights.
"""

from typing import Any

import torch
from transformers import TrainerCallback

from posttrain.models import inherit


class MovingReference(TrainerCallback):
    """Moves the adapter `ref` of the trained model; checkpoints hold it, so a run resumes exactly."""

    def __init__(self, model: Any, alpha: float, steps: int):
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        self.model, self.alpha, self.steps = model, alpha, steps
        inherit.add_reference_adapter(model)
        set_peft_model_state_dict(model, get_peft_model_state_dict(model), adapter_name="ref")

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.steps:
            return
        parameters = dict(self.model.named_parameters())
        for name, policy in parameters.items():
            own = ".".join("ref" if part == "default" else part for part in name.split("."))
            if own != name and (reference := parameters.get(own)) is not None:
                reference.lerp_(policy.to(reference.dtype), self.alpha)
