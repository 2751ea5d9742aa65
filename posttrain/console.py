"""The one console that all output goes through."""

import sys

from rich.console import Console

# A log file has no width of its own; tables need some.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
