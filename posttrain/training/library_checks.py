"""Checks by the libraries themselves, before weights load and before a run directory is made.

The checks in `posttrain.config` take a second and cover the known rules on options. Other errors (a combination, a
later release, missing hardware support) show when the objects are built: the trainer's config, an optimizer and a
scheduler on one parameter, the generation config. None of them needs a model.
"""

import tempfile
import warnings
from typing import Any

from posttrain.config import trainers
from posttrain.errors import PosttrainError
from posttrain.training.build import make_config


def check_with_libraries(kind: str, args: dict[str, Any]) -> None:
    """Build the objects that the trainer of `kind` builds from `args`; raises `PosttrainError` for their errors."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _build(kind, args, folder)
        except PosttrainError:
            raise
        except Exception as error:  # each library has its own error classes
            from posttrain.training import library_errors

            message = library_errors.explain(error, kind, args, lambda given: _build(kind, given, folder))
            raise PosttrainError(message) from error


def _build(kind: str, args: dict[str, Any], folder: str) -> None:
    config = make_config(trainers.of(kind), {**args, "output_dir": folder, "report_to": "none"})
    _optimizer(config)
    _compiler(config)
    if trainers.of(kind).has("cache_implementation"):
        from posttrain.training import online

        online.check_generation(config)


def _optimizer(config: Any) -> None:
    """An optimizer and a scheduler as the trainer makes them, on one parameter, and a step of both."""
    import torch
    from transformers import Trainer
    from transformers.optimization import get_scheduler

    name = str(config.optim)
    if config.optim_target_modules is not None or name.startswith(("lomo", "adalomo")):
        return  # such an optimizer is built for the layers of a model
    parameter = torch.nn.Parameter(torch.ones(1))
    made, kwargs = Trainer.get_optimizer_cls_and_kwargs(config)
    optimizer = made([parameter], **kwargs)
    scheduler: Any = get_scheduler(
        config.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=config.get_warmup_steps(100),
        num_training_steps=100,
        scheduler_specific_kwargs=config.lr_scheduler_kwargs,
    )
    if scheduler.__class__.__module__.startswith("torch") and "metrics" not in scheduler.step.__code__.co_varnames:
        scheduler.step()


def _compiler(config: Any) -> None:
    if config.torch_compile_backend is None:
        return
    from torch._dynamo import list_backends

    if (backend := str(config.torch_compile_backend)) not in (known := list_backends(exclude_tags=())):
        raise PosttrainError(f"trainer.args.torch_compile_backend={backend}: choose from {', '.join(known)}")
