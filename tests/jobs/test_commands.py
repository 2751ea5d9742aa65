"""The command `posttrain`: its subcommands, help, versions, completion, and what a missing extra is answered by."""

import contextlib
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from posttrain import __main__, extras
from posttrain.config import completion, help_pages, options, recipe_list, recipes, trainers
from posttrain.config.commands import COMMANDS
from posttrain.config.reserved_options import reserved_options


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_help_and_has_a_page_of_its_own(name, capsys):
    assert __main__.main(["--help"]) == 0
    assert f"  {name} " in capsys.readouterr().out
    with contextlib.suppress(SystemExit):  # argparse
        assert __main__.main([name, "--help"]) == 0
    assert f"posttrain {name}" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "job"), [(n, w[4:]) for n, (_, w) in COMMANDS.items() if w.startswith("job:")])
def test_a_job_is_a_recipe_with_that_job(name, job, monkeypatch):
    called = []
    monkeypatch.setattr("posttrain.jobs.command.run", lambda argv: called.append(argv) or 0)
    assert __main__.main([name, "+recipe=dpo_smollm2", "dry_run=true"]) == 0
    assert called == [["+recipe=dpo_smollm2", "dry_run=true", *([f"job={job}"] if job else [])]]


@pytest.mark.parametrize(("name", "job"), [("sample", "evaluate"), ("train", "pipeline"), ("doctor", "train,doctor")])
def test_a_command_and_another_job_are_refused(name, job, capsys):
    assert __main__.main([name, "+recipe=dpo_smollm2", f"job={job}"]) == 2
    said = capsys.readouterr().err
    assert f"job={job}: `posttrain {name}` is job={name}; leave one of the two out" in " ".join(said.split())


@pytest.mark.parametrize("module", ["chat", "export", "report.__main__", "annotate.__main__"])
def test_a_module_keeps_its_own_command_line(module, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"posttrain.{module}").main(["--help"])
    assert ended.value.code == 0
    assert f"usage: posttrain {module.removesuffix('.__main__')} " in capsys.readouterr().out


def test_a_word_that_is_no_command_is_answered(capsys):
    assert __main__.main(["chatt", "outputs/x"]) == 2
    assert "no command 'chatt'; did you mean chat?" in capsys.readouterr().err


def test_versions_are_ours_and_the_libraries(capsys):
    from importlib.metadata import version

    assert __main__.main(["--version"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("posttrain ")
    assert {f"trl {version('trl')}", f"torch {version('torch')}"} <= set(said)


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo", "kto", "grpo", "rloo", "ppo", "orpo", "gmpo"])
def test_the_options_of_a_trainer_are_listed_with_the_librarys_words(kind, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    said = help_pages.trainer_options([f"trainer={kind}"])
    known = options.options_of(trainers.of(kind).config)
    usable, _, decided = said.partition("Set by posttrain")
    reserved = reserved_options(trainers.of(kind)).keys()
    for name in known:
        assert (f"\n  {name}  (" in usable) != (name in reserved), "an option that is refused is not offered"
        assert name not in reserved or name in decided
    assert "output_dir: set output_dir" in decided
    # Characters of a terminal: an accent that stands on the one before takes none.
    assert max(map(cell_len, said.splitlines())) <= 80
    # Each has words, but for those that TrainingArguments itself explains nowhere.
    silent = [name for name, option in known.items() if not option.help]
    assert len(silent) <= 0.1 * len(known), silent


def test_option_help_agrees_with_the_library():
    """Read from source, never imported: so held against the imported class here."""
    import dataclasses

    from trl import DPOConfig

    fields = {field.name: field for field in dataclasses.fields(DPOConfig)}
    known = options.options_of("trl.DPOConfig")
    for name in ("beta", "max_length", "learning_rate", "loss_type", "num_train_epochs", "logging_steps"):
        field = fields[name]
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        assert known[name].default == default, name
        assert known[name].help == field.metadata["help"], name


def test_help_shows_what_a_recipe_sets_otherwise():
    said = help_pages.trainer_options(["+recipe=dpo_llama", "trainer.args.max_steps=7"])
    assert "  beta  (float, default 0.1; here 0.01)" in said
    assert "  max_steps  (int, default -1; here 7)" in said
    assert "trainer: choose one of ppo" in help_pages.trainer_options(["model=tiny"])


def test_a_recipe_is_printed_composed_without_what_it_does_not_read(capsys):
    from omegaconf import OmegaConf

    assert recipe_list.main(["dpo_llama", "trainer.args.beta=0.07"]) == 0
    said = capsys.readouterr().out
    config = OmegaConf.create(said)
    assert (config.trainer.args.beta, config.trainer.kind) == (0.07, "dpo")
    assert not {"doctor", "sample", "evaluate", "stages", "reward"} & set(config)
    assert recipe_list.main([]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(recipes.recipe_files())
    assert recipe_list.main(["dpo_lama"]) == 1
    assert "did you mean dpo_llama" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "word", "found"),
    [
        ([], "ch", "chat"),
        ([], "+recipe=dpo_s", "+recipe=dpo_smollm2"),
        (["train"], "peft=q", "peft=qlora"),
        (["recipes"], "rlhf_l", "rlhf_llama"),
        (["doctor", "trainer=ppo"], "trainer.args.vf", "trainer.args.vf_coef="),
        (["+recipe=grpo_llama"], "trainer.args.num_gen", "trainer.args.num_generations="),
        (["completion"], "z", "zsh"),
    ],
)
def test_completion(before, word, found):
    assert found in completion.candidates(before, word)


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """Calls a shell, in which `posttrain` is a command; skips the test where the shell is not installed."""
    command = tmp_path / "bin/posttrain"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m posttrain "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__main__.__file__).parents[1]))

    def call(name, script, *words):
        if shutil.which(name) is None:
            pytest.skip(f"no {name}")
        options = {"zsh": ["-f"], "fish": ["--no-config"]}.get(name, [])
        done = subprocess.run([name, *options, "-c", script, *words], capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    return call


def test_completion_in_bash(shell):
    """The printed script, in the shell itself: the candidates for a line, as Tab would give them."""
    ask = 'COMP_LINE="$1"; COMP_POINT=${#1}; compopt() { :; }; _posttrain; printf "%s\\n" "${COMPREPLY[@]}"'

    def tab(line):
        return shell("bash", f"COMP_WORDBREAKS=' ='\n{completion.SCRIPTS['bash']}\n{ask}", "bash", line)

    assert tab("posttrain exp") == ["export"]
    assert tab("posttrain peft=q") == ["qlora"], "after = bash completes the value alone"
    assert "recipes" in tab("posttrain ")


def test_completion_in_fish(shell):
    def tab(line):
        return shell("fish", f"{completion.SCRIPTS['fish']}\ncomplete -C '{line}'")

    assert tab("posttrain exp") == ["export"]
    assert tab("posttrain +recipe=dpo_sm") == ["+recipe=dpo_smollm2"]


def test_completion_in_zsh(shell):
    """What the script hands to zsh: a space follows a whole word (no `-S`), and paths are completed."""
    stubs = "compdef() { :; }; compadd() { (( ${@[(i)--]} < $# )) && print -- compadd $@; }; _files() { print files; }"

    def tab(line):
        return shell("zsh", f"{stubs}\n{completion.SCRIPTS['zsh']}\nBUFFER=$1; CURSOR=${{#1}}; _posttrain", "zsh", line)

    assert tab("posttrain exp") == ["compadd -- export"]
    assert tab("posttrain trainer=ppo trainer.args.vf_co") == ["compadd -S -- trainer.args.vf_coef="]
    assert tab("posttrain chat outp") == ["files"]


@pytest.mark.parametrize("word", extras.PLUGINS)
def test_a_plugin_that_is_missing_is_answered_by_the_command_that_installs_it(word, monkeypatch, capsys):
    from posttrain.jobs import command

    monkeypatch.setattr(extras, "missing_modules", lambda *modules: list(modules))
    assert command.run(["-m", "+recipe=dpo_smollm2", word]) == 1
    assert f"{word}: not installed; pip install " in capsys.readouterr().err


def test_extras_are_installed_by_a_command_that_works_before_a_release(monkeypatch, tmp_path):
    checkout = Path(extras.__file__).parents[1]
    assert extras.install_command("doctor") == f"pip install -e '{checkout}[doctor]'"
    monkeypatch.chdir(checkout)
    assert extras.install_command("doctor") == "pip install -e '.[doctor]'"
    # From a wheel, whose metadata lists the libraries of each extra.
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "site" / "posttrain" / "extras.py"))
    said = extras.install_command("doctor")
    assert said.startswith("pip install ")
    assert "rensa<0.6,>=0.5" in said
    assert "posttrain" not in said


@pytest.mark.parametrize("value", ["inf", "nan", "-1"])
def test_chat_takes_no_temperature_without_an_end(value: str):
    from argparse import Namespace

    from posttrain import chat
    from posttrain.errors import PosttrainError

    args = Namespace(runs=["a"], temperature=float(value), top_p=None, max_new_tokens=1, seed=None)
    with pytest.raises(PosttrainError, match=r"^--temperature=.*: expected a number, 0 or more$"):
        chat.check(args)
