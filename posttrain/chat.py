"""`posttrain chat RUN [RUN2]`: talk to a run or a model, or to two of them side by side."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from posttrain.console import SafeConsole, print_error, printable, quiet_libraries, show_status
from posttrain.errors import PosttrainError, first_line

if TYPE_CHECKING:
    from posttrain.models.dialogue import Dialogue, Settings

COMMANDS = """\
  /system TEXT  sets the system prompt, and starts again; alone: without one
  /reset        starts the conversation again
  /exit         ends the chat, as Ctrl-D does
  Ctrl-C        stops an answer"""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="posttrain chat",
        description=__doc__.split(": ", 1)[1].capitalize(),
        epilog=f"In the chat:\n{COMMANDS}\n\nPiped input is one message, answered without decoration.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="a run directory, a folder, a hub id, or embedded:smollm2; at most two"
    )
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 is greedy; default: the model's own setting")
    parser.add_argument("--top-p", type=float, metavar="P", help="nucleus sampling; default: the model's own setting")
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="longest answer (default 512)")
    parser.add_argument("--lines", action="store_true", help="every line of piped input is a turn or a command")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the sampling: the same answers again")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        chat(args)
    except PosttrainError as error:
        print_error(error)
        return 1
    except BrokenPipeError:
        raise
    except (OSError, UnicodeDecodeError) as error:  # a name that is too long; other bytes than text in the pipe
        whose = "stdin" if isinstance(error, UnicodeDecodeError) else error.filename or "RUN"
        print_error(f"{whose}: {first_line(error)}")
        return 1
    except KeyboardInterrupt:  # while loading, or in a pipe
        return 130
    return 0


def chat(args: argparse.Namespace) -> None:
    """Check, load, and talk until the input ends."""
    check(args)
    quiet_libraries()
    from posttrain.models.dialogue import Settings, load_dialogues
    from posttrain.runs import lineage
    from posttrain.training.out_of_memory import explain_memory_errors

    sources = [lineage.source(run) for run in args.runs]
    if scoring := [source.name for source in sources if source.scores]:
        raise PosttrainError(f"RUN={scoring[0]}: a reward model gives scores and does not answer")
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    terminal = Terminal(interactive, headings=len(sources) > 1)
    messages = terminal.lines() if interactive or args.lines else terminal.whole()
    status = show_status("Loading", terminal.out if interactive else terminal.errors)
    with status, explain_memory_errors("talk to one run, or CUDA_VISIBLE_DEVICES= takes the CPU", "loading"):
        voices = load_dialogues(sources)
    for voice in voices:
        if args.system:
            voice.set_system_prompt(args.system)
        if voice.plain:
            terminal.notice(f"{voice.name} has no chat template: it continues your text")
    settings = Settings(args.max_new_tokens, args.temperature, args.top_p, args.seed)
    if interactive:
        terminal.notice(f"{' | '.join(voice.name for voice in voices)}: /help lists the commands, Ctrl-D ends")
    for line in messages:
        if line == "/exit":
            return
        if line.startswith("/") and (interactive or args.lines):
            command(line, voices, terminal)
        else:
            answer_message(line, voices, settings, terminal)


def check(args: argparse.Namespace) -> None:
    """Raise `PosttrainError` with everything that is wrong in the options."""
    errors = []
    if len(args.runs) > 2:
        errors.append(f"RUN: one or two, got {len(args.runs)}")
    if args.temperature is not None and not 0 <= args.temperature < math.inf:
        errors.append(f"--temperature={args.temperature}: expected a number, 0 or more")
    if args.top_p is not None and not 0 < args.top_p <= 1:
        errors.append(f"--top-p={args.top_p}: expected above 0, and at most 1")
    if args.max_new_tokens < 1:
        errors.append(f"--max-new-tokens={args.max_new_tokens}: expected at least 1")
    if args.seed is not None and not 0 <= args.seed < 2**32:
        errors.append(f"--seed={args.seed}: expected at least 0 and at most {2**32 - 1}")
    if errors:
        raise PosttrainError("\n".join(errors))


def answer_message(line: str, voices: list[Dialogue], settings: Settings, terminal: Terminal) -> None:
    """Answer one message by every voice; a message that is too long gets a notice, and the chat goes on."""
    for voice in voices:
        terminal.heading(voice.name)
        try:
            voice.reply(line, settings, terminal.emit, terminal.notice)
        except PosttrainError as error:
            terminal.notice(str(error))
        except KeyboardInterrupt:
            if not terminal.interactive:
                raise
        terminal.emit("\n")
        if terminal.interactive and voice.cut_off:
            terminal.notice("the answer is cut off; --max-new-tokens=N allows more")


def command(line: str, voices: list[Dialogue], terminal: Terminal) -> None:
    """Carry out /reset, /system or /help; another command gets a notice and is not sent to the model."""
    name, _, text = line.partition(" ")
    if name == "/reset":
        for voice in voices:
            voice.history = []
        terminal.notice("the conversation starts again")
    elif name == "/system":
        try:
            for voice in voices:
                voice.set_system_prompt(text.strip() or None)
            terminal.notice("system prompt set; the conversation starts again" if text.strip() else "no system prompt")
        except PosttrainError as error:
            terminal.notice(str(error))
    else:
        terminal.notice(COMMANDS if name == "/help" else f"{name}: no such command; /help lists them")


class Terminal:
    """Where a chat is read and written. In a pipe only answers go to stdout, and notices to stderr."""

    def __init__(self, interactive: bool, headings: bool):
        self.interactive = interactive
        self.headings = headings
        self.errors = SafeConsole(stderr=True, highlight=False)
        self.out = SafeConsole(highlight=False)

    def whole(self) -> Iterator[str]:
        """All that is piped in, as one message."""
        if text := sys.stdin.read().strip():
            yield text

    def lines(self) -> Iterator[str]:
        """The user's messages, without blank lines, until Ctrl-D or the end of the pipe."""
        if not self.interactive:
            yield from (line.strip() for line in sys.stdin if line.strip())
            return
        import readline  # noqa: F401 - arrow keys and history for input()

        while True:
            try:
                line = input("> ").strip()
            except KeyboardInterrupt:
                self.notice("\nCtrl-D or /exit ends")
                continue
            except EOFError:
                print()
                return
            if line:
                yield line

    def heading(self, name: str) -> None:
        if self.headings:
            self.out.print(f"[bold]{_escape(name)}[/]" if self.interactive else f"# {_escape(name)}", soft_wrap=True)

    def emit(self, text: str) -> None:
        print(printable(text), end="", flush=True)

    def notice(self, text: str) -> None:
        console = self.out if self.interactive else self.errors
        console.print(text, style="dim" if self.interactive else None, markup=False, soft_wrap=True)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    sys.exit(main())
