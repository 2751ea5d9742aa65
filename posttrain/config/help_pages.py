"""The pages of `--help`: the overview, one job, and the options of a trainer with TRL's own help texts."""

import shutil
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from posttrain.config import composition, recipe_list, recipes
from posttrain.config.commands import COMMANDS
from posttrain.errors import PosttrainError, first_line

EXAMPLES = """\
  posttrain +recipe=dpo_smollm2                                one run
  posttrain +recipe=dpo_llama dry_run=true                     its plan alone
  posttrain +recipe=dpo_llama trainer.args.beta=0.05           an option of TRL
  posttrain trainer=dpo peft=lora model.path=ORG/NAME data.path=pairs.jsonl
  posttrain -m +recipe=dpo_smollm2 trainer.args.beta=0.05,0.1  a sweep
  posttrain +recipe=rlhf_smollm2         stages one after another: job=pipeline"""
JOBS = {
    "train": EXAMPLES,
    "doctor": "  posttrain doctor +recipe=dpo_smollm2\n"
    "  posttrain doctor +recipe=dpo_llama data.path=pairs.jsonl      docs/doctor.md",
    "sample": "  posttrain sample +recipe=dpo_smollm2 reward=abstention sample.select=best\n"
    "  posttrain sample +recipe=sft_smollm2 model.init_from=RUN      docs/sample.md",
    "evaluate": "  posttrain evaluate +recipe=dpo_smollm2 model.init_from=RUN\n"
    "  posttrain evaluate +recipe=dpo_smollm2 model.init_from=RUN \\\n"
    "    evaluate.against=RUN2                                       docs/sample.md",
}
# Ends of the names of recipes, by their model; the embedded model first.
MODELS = ("smollm2", "llama", "qwen")
OTHERS = "Recipe, model, data and rewards are chosen as for training: posttrain --help"
CLOSING = """\
A run goes to output_dir/NAME-HASH; the same command continues it there.
posttrain train --help trainer=dpo lists the options of a trainer.
--cfg job shows the composed config."""


def overview() -> str:
    """`posttrain --help`: the commands, examples, the recipes by model, and the groups."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {purpose}" for name, (purpose, _) in COMMANDS.items())
    return f"""posttrain: post-training of language models on one GPU, from recipes over TRL.

  posttrain [COMMAND] …     posttrain COMMAND --help     posttrain --version

Commands
{lines}

Examples
{EXAMPLES}

{_choices()}

{CLOSING}"""


def job(name: str, purpose: str) -> str:
    """`posttrain JOB --help`: the choices of a training, or the settings of another job."""
    heading = textwrap.fill(f"posttrain {name}: {purpose}.", 80)
    if name == "train":
        rest = f"{_choices()}\n\n{CLOSING}"
    else:
        rest = "\n".join(("Settings and their defaults", *_settings(name), "", OTHERS))
    return f"{heading}\n\n{JOBS[name]}\n\n{rest}"


def _settings(section: str) -> Iterator[str]:
    """A section's settings with their defaults, and what each means."""
    from dataclasses import fields

    from posttrain.config.schema import Run

    values = getattr(Run(), section)
    texts = {
        f"{section}.{one.name}={_plain(getattr(values, one.name))}": one.metadata["help"] for one in fields(values)
    }
    width = max(map(len, texts))
    for setting, text in texts.items():
        yield textwrap.fill(
            text,
            80,
            initial_indent=f"  {setting:<{width}}  ",
            subsequent_indent=" " * (width + 4),
            break_on_hyphens=False,
        )


def _choices() -> str:
    families: dict[str, list[str]] = {}
    for name in recipe_list.purposes():
        model = name.rpartition("_")[2]
        families.setdefault(model if model in MODELS else "others", []).append(name)
    listed = "\n".join(_hanging(model, families[model]) for model in (*MODELS, "others"))
    groups = "\n".join(_hanging(f"{group}=", options) for group, options in recipes.groups().items())
    return f"Recipes, as +recipe=NAME; `posttrain recipes` says what each does\n{listed}\n\nGroups\n{groups}"


def _hanging(title: str, words: Iterable[str]) -> str:
    """`words` behind their title, wrapped at 80 columns."""
    return textwrap.fill(", ".join(words), 80, initial_indent=f"  {title:<11}", subsequent_indent=" " * 13)


def trainer_options(words: list[str]) -> str:
    """Every option of the trainer that `words` choose, with type, default and the library's help text.

    Where the chosen config sets another value, it is shown next to the default.
    """
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from posttrain.config import composition_errors, options, own_options, trainer_names, trainers
    from posttrain.config.reserved_options import reserved_options

    try:
        config = composition.compose(words)
        name = OmegaConf.select(config, "trainer.kind", throw_on_missing=False)
    except HydraException as error:
        raise PosttrainError(composition_errors.explain_hydra_error(error)) from error
    except OmegaConfBaseException as error:
        raise PosttrainError(f"trainer.kind: {first_line(error)}") from error
    if name is None:
        return f"trainer: choose one of {', '.join(trainer_names.names())}, as in `posttrain train --help trainer=dpo`"
    if (kind := trainers.find(name)) is None:
        raise PosttrainError(trainer_names.unknown(name))
    chosen: Any = OmegaConf.to_container(config.trainer.args, resolve=False)
    known = options.options_of(kind.config)
    own, decided = own_options.own_options(kind.config), reserved_options(kind)
    lines = [f"Options of trainer={name} ({kind.config})", "Each is set as trainer.args.NAME=VALUE"]
    for title, names in (
        (f"Those of {name}", [name for name in known if name in own]),
        ("Those of every trainer (TrainingArguments)", [name for name in known if name not in own]),
    ):
        lines += ["", title]
        for name in names:
            if name not in decided:
                lines += _entry(name, known[name], chosen.get(name, known[name].default))
    lines += ["", "Set by posttrain"]
    for fix in dict.fromkeys(decided.values()):
        if alike := [name for name in known if decided.get(name) == fix]:
            lines += _wrapped(f"{', '.join(alike)}: {fix}", 2)
    return "\n".join(lines)


def _entry(name: str, option: Any, value: Any) -> list[str]:
    here = "" if value == option.default else f"; here {_plain(value)}"
    kind = " | ".join(map(str, option.choices)) if option.choices else option.type_name
    about = " ".join((option.help or "").split())
    return _wrapped(f"{name}  ({kind}, default {_plain(option.default)}{here})", 2) + _wrapped(about, 6)


def _wrapped(text: str, indent: int) -> list[str]:
    width = min(max(shutil.get_terminal_size().columns, 60), 100)
    return textwrap.wrap(text, width, initial_indent=" " * indent, subsequent_indent=" " * 6, break_on_hyphens=False)


def _plain(value: Any) -> str:
    """A value as the command line takes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def versions() -> str:
    """Our version and those of the libraries that decide a result, a line each."""
    from importlib.metadata import PackageNotFoundError, version
    from platform import python_version

    from posttrain import __version__

    lines = [f"posttrain {__version__}", f"python {python_version()}"]
    for library in ("torch", "trl", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "hydra-core"):
        try:
            lines.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            lines.append(f"{library} not installed")
    return "\n".join(lines)


def page(name: str, words: list[str]) -> str:
    """The overview; the page of the command `name`; or, where `words` choose a trainer, the options of that trainer."""
    if words:
        return trainer_options(words)
    return job(name, COMMANDS[name][0]) if name else overview()
