"""The `posttrain` command: `posttrain COMMAND …`; without a command, as in `posttrain +recipe=NAME`, it trains."""

import os
import shlex
import signal
import sys
from typing import Any

from posttrain.config.commands import COMMANDS

HELP = {"--help", "-h"}
# Commands that handle Ctrl-C themselves: it ends an answer, or the server.
INTERRUPTED_BY_HAND = ("chat", "annotate")


def main(argv: list[str] | None = None) -> int:
    """Run the command that `argv` names; returns the exit code."""
    before = {number: signal.signal(number, _stopped) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return dispatch(sys.argv[1:] if argv is None else argv, before)
    except BrokenPipeError:  # `posttrain --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    finally:
        _hand_over(before)


def _stopped(number: int, _frame: object) -> None:
    """Print one line and exit with 130 or 143, before any work has begun; jobs install their own `ExitOnSignal`."""
    os.write(2, f"\n{signal.Signals(number).name}: stopped; nothing had begun\n".encode())
    os._exit(128 + number)


def _hand_over(before: dict[signal.Signals, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)


def dispatch(argv: list[str], before: dict[signal.Signals, Any] | None = None) -> int:
    """Run the command that `argv` names; commands that are no jobs get the signal handlers `before` back."""
    name, rest = (argv[0], argv[1:]) if argv and argv[0] in COMMANDS else ("", argv)
    if argv and "=" not in argv[0] and argv[0][:1] not in ("-", "~") and not name:
        from posttrain.config.suggestions import did_you_mean
        from posttrain.console import print_error

        fix = did_you_mean(argv[0], COMMANDS, 1, f"choose from {', '.join(COMMANDS)}.")
        print_error(f"posttrain: no command {argv[0]!r}; {fix} Settings are KEY=VALUE; a recipe is +recipe=NAME")
        return 2
    if not name and rest in (["--version"], ["-V"]):
        from posttrain.config import help_pages

        print(help_pages.versions())
        return 0
    where = COMMANDS[name or "train"][1]
    if not where.startswith("job:"):
        import importlib

        module = importlib.import_module(where)
        _hand_over(before or {})
        if name not in INTERRUPTED_BY_HAND:
            from posttrain.training.signals import ExitOnSignal

            with ExitOnSignal(shlex.join(["posttrain", *argv])):
                return int(module.main(rest) or 0)
        return int(module.main(rest) or 0)
    if HELP & set(rest):
        from posttrain.jobs import help_page

        return help_page.show(name, [word for word in rest if word not in HELP])
    job = where.removeprefix("job:")
    own = f"job={job or 'train'}"
    if name and (other := [word for word in rest if word.lstrip("+").startswith("job=") and word.lstrip("+") != own]):
        from posttrain.console import print_error

        print_error(f"{other[0]}: `posttrain {name}` is {own}; leave one of the two out")
        return 2
    from posttrain.jobs import command

    return command.run([*rest, f"job={job}"] if job else rest)


if __name__ == "__main__":
    sys.exit(main())
