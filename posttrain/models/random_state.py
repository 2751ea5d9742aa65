"""Measuring with separate random numbers, so that a measurement does not change the training."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def own_random_state(seed: int) -> Iterator[None]:
    """In the block, torch, NumPy and Python draw random numbers from `seed`; their states are restored afterwards."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def measuring(trainer: Any, seed: int) -> Iterator[None]:
    """In the block: evaluation mode, no gradients, random numbers from `seed`; all of it is restored afterwards."""
    model, training = trainer.model, trainer.model.training
    with own_random_state(seed), torch.no_grad(), trainer.accelerator.autocast():
        model.eval()
        try:
            yield
        finally:
            model.train(training)
