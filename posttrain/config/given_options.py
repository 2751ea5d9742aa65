"""A trainer's options with their types, as the checks in this package read them."""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

# Options that hold options: Transformers takes a dict or its JSON, and for NESTED_FILES also the path of a file.
NESTED_FILES = ("accelerator_config", "fsdp_config", "deepspeed")
NESTED = ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs", *NESTED_FILES)


class GivenOptions(dict):
    """Options with a default for those that are not given; a value of a wrong type counts as not given."""

    def number(self, name: str, default: float) -> float:
        value = self.get(name, default)
        return default if isinstance(value, bool) or not isinstance(value, (int, float)) else value

    def settings(self, name: str) -> Mapping[str, Any]:
        """Nested settings, given as a dict or as JSON."""
        value = self.get(name)
        with suppress(ValueError):
            value = json.loads(value) if isinstance(value, str) else value
        return value if isinstance(value, Mapping) else {}

    def several(self, name: str, default: list[Any]) -> list[Any]:
        value = self.get(name) or default
        return value if isinstance(value, list) else [value]
