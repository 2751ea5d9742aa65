"""The one console that all output goes through, and quiet libraries beside it."""

import logging
import os
import sys
import warnings

from rich.console import Console

# A log file has no width of its own; tables need some.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def quiet_libraries() -> None:
    """Leave only what a user can act on: no import chatter, no per-file bars off a terminal, no repeated warnings."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("WANDB_SILENT", "true")
    # bitsandbytes says at import that an optional CPU kernel is missing.
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", category=FutureWarning)
    if not console.is_terminal:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
