"""PPO for language models on current TRL: `from posttrain.ppo import PPOConfig, PPOTrainer`.

Names are resolved on first use, so that `posttrain.ppo.maths` can be imported without TRL and Transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import PPOConfig
    from .trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer"]

_MODULES = {"PPOConfig": ".config", "PPOTrainer": ".trainer"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
