"""The memory of weights that a training only reads: quantized ones under an adapter, reward models, a teacher."""

from pathlib import Path
from typing import Any

from posttrain.config.schema import Run
from posttrain.training.sizes import Sizes, of_config


def of_base(sizes: Sizes, quantization: dict[str, Any], width: int) -> float:
    """Bytes of the weights that are not trained, `width` bytes each; `quantization` leaves out the embedding."""
    weights = sizes.total - sizes.trained
    quantized = weights - sizes.embedding if quantization else 0
    return quantized * _quantized(quantization) + (weights - quantized) * width


def _quantized(options: dict[str, Any]) -> float:
    """Bytes per quantized weight, with the scale of its block of 64, which is in float32, or in 8 bits itself."""
    if not options.get("load_in_4bit"):
        return 1.0
    return 0.5 + (1 / 64 + 4 / (64 * 256) if options.get("bnb_4bit_use_double_quant") else 4 / 64)


def reward_models(run: Run) -> float:
    """Bytes of the reward models' weights, as far as they are local files."""
    folders = [Path(model).expanduser() for entry in run.reward.values() for model in entry.models]
    found = [folder / "model" if (folder / "model").is_dir() else folder for folder in folders]
    return float(sum(file.stat().st_size for folder in found for file in folder.glob("*.safetensors")))


def teacher(run: Run, width: int) -> float:
    """Bytes of the teacher's weights; an adapter on them is merged, or small."""
    if not run.trainer.teacher.model:
        return 0.0
    from posttrain.training import trainer_arguments

    known, total, quantization = trainer_arguments.teacher_size(run)
    return of_base(of_config(known, (total, 0)), quantization, width)
