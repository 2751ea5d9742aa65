"""Resuming the teacher of SDPO and SDFT, which is a moving average of the adapter."""

import functools
from typing import Any


def continue_moving_teacher(trainer: Any) -> None:
    """Let TRL's moving average of the adapter, the teacher of SDPO and SDFT, continue from a checkpoint.

    A resumed run has loaded that adapter from the checkpoint, and TRL would add it again.
    """
    for callback in trainer.callback_handler.callbacks:
        begin = getattr(callback, "_initialize_teacher_adapter", None)
        if begin is not None:
            callback._initialize_teacher_adapter = functools.partial(_begin_or_continue, callback, begin)


def _begin_or_continue(callback: Any, begin: Any) -> None:
    from peft import get_peft_model_state_dict

    name, model = callback.teacher_adapter_name, callback.accelerator.unwrap_model(callback.model)
    if callback._initialized or name not in model.peft_config:
        begin()
        return
    found = get_peft_model_state_dict(model, adapter_name=name)
    callback.shadow_weights = {key: value.clone() for key, value in found.items()}
    callback._initialized = True
