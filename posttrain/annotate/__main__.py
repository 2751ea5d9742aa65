"""`posttrain annotate DATA|RUN --out FILE`: people say in the browser which completion is better.

Answers are kept next to FILE; the same command resumes. At the end FILE has the pairs, for `data.path`
of every recipe. An answers file instead of DATA is only exported.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain import extras
from posttrain.annotate.serve import PORT
from posttrain.console import print_error
from posttrain.errors import PosttrainError, first_line

if TYPE_CHECKING:
    from posttrain.annotate.answers import Answers
    from posttrain.annotate.items import Item
    from posttrain.annotate.session import Session
    from posttrain.config.schema import DataConfig

# module -> package
PACKAGES = {
    **{name: name for name in ("starlette", "uvicorn", "nh3", "krippendorff")},
    "markdown_it": "markdown-it-py",
}
TOKEN_VARIABLE = "POSTTRAIN_ANNOTATE_TOKEN"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="posttrain annotate",
        description=__doc__.split(": ", 1)[1].replace("people", "People", 1),
        usage="%(prog)s DATA|RUN|ANSWERS --out FILE [options] [KEY=VALUE ...]",
        epilog="KEY=VALUE: settings of the data (data.columns=...), or of job=sample where a RUN is sampled from.",
    )
    parser.add_argument(
        "source",
        metavar="DATA|RUN|ANSWERS",
        help="data with pairs or completions, a run of job=sample, a run to sample from, or a file *.answers.jsonl",
    )
    parser.add_argument("settings", metavar="KEY=VALUE", nargs="*", help="see below")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="pairs, as .jsonl or .parquet")
    parser.add_argument("--show", type=int, default=2, metavar="K", help="completions at a time (default 2)")
    parser.add_argument("--votes", type=int, default=1, metavar="K", help="people asked about an item (default 1)")
    parser.add_argument("--overlap", type=int, default=0, metavar="N", help="items that everybody is asked about")
    parser.add_argument(
        "--informative", action="store_true", help="items first whose rewards disagree or whose scores are close"
    )
    parser.add_argument(
        "--export", choices=("majority", "weighted"), default="majority", help="from votes to pairs (default majority)"
    )
    parser.add_argument("--drop-flagged", action="store_true", help="no pairs of items that someone flagged")
    parser.add_argument(
        "--guidelines", type=Path, metavar="FILE", help="Markdown with what to prefer, shown next to each item"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random order (default 0)")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="H", help=f"address; beyond this machine with a token ({TOKEN_VARIABLE})"
    )
    parser.add_argument("--port", type=int, metavar="P", help=f"default {PORT}, or another where that is taken")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_intermixed_args(argv)
    try:
        check(args)
        if args.source.endswith(".answers.jsonl"):
            export(args)
        else:
            annotate(args, shlex.join(["posttrain", "annotate", *argv]))
    except PosttrainError as error:
        print_error(error)
        return 1
    except BrokenPipeError:
        raise
    except OSError as error:  # a full or read-only disk, a name that is too long
        print_error(f"{error.filename or args.out}: {error.strerror or error}; choose another place")
        return 1
    except KeyboardInterrupt:  # while reading or sampling
        return 130
    return 0


def check(args: argparse.Namespace) -> None:
    """Raise `PosttrainError` with everything that is wrong in the options."""
    from posttrain.annotate.answers import answers_path
    from posttrain.annotate.export import FORMATS, votes_file
    from posttrain.annotate.items import MAX_COMPLETIONS

    errors, source = [], Path(args.source).expanduser()
    exports = args.source.endswith(".answers.jsonl")
    # What lies next to a file that this command has written.
    beside = [answers_path(args.out), *([votes_file(args.out)] if exports else [])]
    if args.out.suffix not in FORMATS or args.out.name.endswith((".answers.jsonl", ".votes.jsonl")):
        errors.append(f"--out={args.out}: expected a file that ends in .jsonl or .parquet")
    elif not args.out.absolute().parent.is_dir():
        errors.append(f"--out={args.out}: no folder {args.out.parent}; make it first")
    elif args.out.exists() and args.out.resolve() == source.resolve():
        errors.append(f"--out={args.out}: that is the data itself; choose another name")
    elif args.out.exists() and not any(file.exists() for file in beside):
        names = " or ".join(file.name for file in beside)
        errors.append(
            f"--out={args.out}: exists, without {names} next to it, and would be overwritten; choose another name"
        )
    if not 2 <= args.show <= MAX_COMPLETIONS:
        errors.append(f"--show={args.show}: expected 2 to {MAX_COMPLETIONS}")
    if args.guidelines and not args.guidelines.is_file():
        errors.append(f"--guidelines={args.guidelines}: no such file")
    elif args.guidelines:
        try:
            args.guidelines.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            errors.append(f"--guidelines={args.guidelines}: cannot be read ({error}); save it as UTF-8")
    errors += [f"--votes={args.votes}: expected at least 1"] if args.votes < 1 else []
    errors += [f"--overlap={args.overlap}: expected 0 or more"] if args.overlap < 0 else []
    errors += [f"--port={args.port}: expected 1 to 65535"] if not 1 <= (args.port or PORT) <= 65535 else []
    errors += [f"{word}: expected KEY=VALUE" for word in args.settings if "=" not in word]
    if len(os.environ.get(TOKEN_VARIABLE) or "x" * 16) < 16:
        errors.append(f"{TOKEN_VARIABLE}: expected at least 16 characters")
    missing = [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing and not exports:
        errors.append(f"{', '.join(missing)} not installed: {extras.install_command('annotate')}")
    if errors:
        raise PosttrainError("\n".join(errors))


def export(args: argparse.Namespace) -> None:
    """Write pairs from an answers file, also while a server appends to it."""
    from posttrain.annotate.answers import Answers, read

    path = Path(args.source).expanduser()
    report(Answers(read(path)), args)


def annotate(args: argparse.Namespace, command: str) -> None:
    """Read, or sample, the items; serve until Ctrl-C; write the pairs."""
    from posttrain.annotate import serve
    from posttrain.annotate.session import Session
    from posttrain.console import quiet_libraries

    # Bind first, so that a port that is in use is an error at once.
    with serve.exclusive_access(args.out), serve.bind(args.host, args.port) as listening:
        quiet_libraries()
        items = load_items(args)
        session = Session(
            args.out,
            items,
            data=args.source,
            overlap=args.overlap,
            votes=args.votes,
            seed=args.seed,
        )
        if args.guidelines:
            session.guidelines = args.guidelines.read_text(encoding="utf-8-sig")
        plan(args, items, session)
        serve.run(session, listening, args.host, os.environ.get(TOKEN_VARIABLE))
        print_summary(session, args, command)


def load_items(args: argparse.Namespace) -> list[Item]:
    """The items of the data or of a run of job=sample; another run is sampled from first."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from posttrain.annotate import items, sampling
    from posttrain.config.schema import DataConfig
    from posttrain.data import files
    from posttrain.runs.directory import RunDirectory

    settings, source = list(args.settings), args.source
    folder = Path(source).expanduser()
    record = RunDirectory(folder).record() if folder.is_dir() else None
    if sampling.generates(record):
        source, settings = str(sampling.sample(folder, record or {}, settings)), []
    elif wrong := files.check(source):
        raise PosttrainError(f"DATA={source}: {wrong}")
    try:
        schema = OmegaConf.structured({"data": OmegaConf.structured(DataConfig(path=source))})
        OmegaConf.set_struct(schema, True)
        merged: Any = OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.from_dotlist(settings)))
    except OmegaConfBaseException as error:
        raise PosttrainError(f"{error.full_key or 'data'}: {first_line(error)}") from None
    except YAMLError as error:
        raise PosttrainError(f"{shlex.join(settings)}: cannot be read: {' '.join(str(error).split())}") from None
    if errors := setting_errors(merged["data"], source):
        raise PosttrainError("\n".join(errors))
    try:
        return items.read(merged["data"], args.show, args.seed, args.informative)
    except PosttrainError as error:
        raise PosttrainError(str(error).replace("data.path=", "DATA=")) from error


def setting_errors(data: DataConfig, source: str) -> list[str]:
    """Errors in the settings of the data."""
    from posttrain.config import ranges
    from posttrain.config.checks import wrong_choice
    from posttrain.data.formats import SETTINGS

    wrong = [wrong_choice(f"data.{name}", getattr(data, name), allowed) for name, allowed in SETTINGS.items()]
    errors = [one for one in wrong if one] + ranges.check_schema({"data": asdict(data)})
    if data.path != source:
        errors.append(f"data.path={data.path}: DATA={source} names the data; leave it out")
    errors += ["data.mix: one source is read here; leave it out"] if data.mix else []
    return errors + (["data.streaming=true: the data is read as a whole here; leave it out"] if data.streaming else [])


def plan(args: argparse.Namespace, items: list[Item], session: Session) -> None:
    from posttrain.annotate.answers import answers_path
    from posttrain.console import print_facts

    given = len(session.answers.standing)
    votes = f"{args.votes} vote{'' if args.votes == 1 else 's'} each"
    shared = f"; {len(session.everyone)} of them asked of everybody" if session.everyone else ""
    print_facts(
        {
            "data": args.source,
            "items": f"{len(items)}, {votes}{shared}",
            "order": "most informative first" if args.informative else "as in the data",
            "answers": f"{answers_path(args.out)}" + (f": {given} so far" if given else ""),
            "stop": "Ctrl-C; the same command resumes",
        }
    )


def print_summary(session: Session, args: argparse.Namespace, command: str) -> None:
    """Print the answers so far, and how to continue."""
    from posttrain.annotate.answers import answers_path
    from posttrain.console import print_plain

    answers = session.answers
    given, people = len(answers.standing), len(answers.annotators())
    counts = f"{given} answer{'' if given == 1 else 's'} by {people} {'person' if people == 1 else 'people'}"
    print_plain(f"\n{counts}: {answers_path(args.out)}")
    try:
        if answers.standing:
            report(answers, args)
    except PosttrainError as error:  # no pair yet, such as when all answers are ties
        print_plain(str(error))
    print_plain(f"resume   {command}")


def report(answers: Answers, args: argparse.Namespace) -> None:
    """Write pairs and votes, and print what was written and how to train on it."""
    from posttrain.annotate import export, sampling
    from posttrain.console import print_plain

    written = export.write(answers, args.out, args.export, args.drop_flagged)
    rest = {"undecided": written.undecided, "skipped by all": written.skipped, "flagged": written.flagged}
    without = "".join(f"; {count} {name}" for name, count in rest.items() if count)
    decided = f"{written.items} item{'' if written.items == 1 else 's'}"
    print_plain(f"pairs    {args.out}: {written.pairs} from {decided}, by {args.export}{without}")
    print_plain(f"votes    {export.votes_file(args.out)}")
    print_plain(f"train    {sampling.next_command(str(answers.task.get('data', '')), args.out)}")


if __name__ == "__main__":
    sys.exit(main())
