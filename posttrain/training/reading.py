"""Errors of reading a complete checkpoint that does not fit this run."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError
from posttrain.training import out_of_memory


@contextmanager
def reading(checkpoint: str | None) -> Iterator[None]:
    """Say in one message which checkpoint cannot be continued from, and how the run resumes.

    Files that are cut or missing are found before (`posttrain.runs.damage`). torch reads tensors alone
    (`weights_only`), so a file that holds code ends here as well.
    """
    try:
        yield
    except PosttrainError:
        raise
    except Exception as error:
        if checkpoint is None or out_of_memory.is_out_of_memory(error):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        what = "a file holds code instead of tensors" if isinstance(error, pickle.UnpicklingError) else lines[0]
        raise PosttrainError(
            f"{checkpoint}: cannot be continued from: {what}. Remove that folder, and the same command resumes from "
            "the checkpoint before it, or starts again"
        ) from error


def has_weights(model: Any, checkpoint: Path) -> None:
    """Raise `ValueError` where an adapter's weights are not in a checkpoint: PEFT leaves what it misses as it was."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    file = checkpoint / "adapter_model.safetensors"
    if not isinstance(model, PeftModel) or not file.is_file():
        return
    with safe_open(file, "pt") as weights:
        missing = get_peft_model_state_dict(model, save_embedding_layers=False).keys() - weights.keys()
    if missing:
        raise ValueError(f"{file.name} lacks {len(missing)} weights of this run's adapter, {min(missing)} among them")
