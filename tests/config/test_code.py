"""Code of the user's own that cannot be used: one line with its path, whatever is wrong, and no run directory."""

import re
import sys

import pytest

from posttrain.config import code
from posttrain.errors import PosttrainError, Stopped
from posttrain.jobs import preflight, train_plan
from tests.helpers.runs import SMALL, compose

MODULES = {
    "cut": "def f(completions, **columns:\n    return [1.0]\n",
    "raises": "raise RuntimeError('no licence\\nsecond line')\n",
    "asks": "import a_package_that_is_not_there\n",
    "leaves": "raise SystemExit('bye')\n",
    "fine": (
        "number = 3\n"
        "def score(completions, **columns):\n    return [1.0] * len(completions)\n"
        "def needs(completions, gold, **columns):\n    return [1.0] * len(completions)\n"
        "def bare(completions):\n    return [1.0]\n"
        "def undocumented(a):\n    return a\n"
        "class Silent:\n    pass\n"
        "class Judge:\n"
        "    def __init__(self, rubric):\n        pass\n"
        "    def __call__(self, completions, **columns):\n        return [1.0] * len(completions)\n"
    ),
    "latin": "",
}
BAD = [
    ("cut.f", r"cut\.py:1: "),
    ("raises.f", r"raises fails when it is imported: RuntimeError: no licence at .*raises\.py:1$"),
    ("asks.f", "asks needs a_package_that_is_not_there, which is not installed$"),
    ("leaves.f", "leaves fails when it is imported: SystemExit: bye at "),
    ("latin.f", r"latin\.py:1: .*utf-8"),
    ("nowhere.f", "no module nowhere, neither in this folder nor installed$"),
    ("fine.within.f", "no module fine.within"),
    ("fine.scroe", "fine has no scroe; did you mean score\\?$"),
    ("fine.number", "is a int, not a function or class$"),
    ("score", "expected package.module.name$"),
    ("fine..score", "expected package.module.name$"),
    (".score", "expected package.module.name$"),
]
REWARDS = [
    *BAD,
    ("builtins.max", "its parameters cannot be read; wrap it in a function of your own$"),
    ("fine.bare", r"takes no \*\*columns; "),
    ("fine.Silent", "is a class whose objects cannot be called; "),
    ("fine.Judge", "is built with rubric; set args.rubric$"),
]


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "latin.py").write_bytes(b"cafe = '\xe9'\ndef f(completions, **columns): pass\n")
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


def refused(*overrides):
    run, _ = compose("model=tiny", "data.path=rows.jsonl", *overrides)
    with pytest.raises(PosttrainError) as error:
        preflight.check(run)
    return [line for line in str(error.value).splitlines() if "data.path" not in line]


@pytest.mark.parametrize(("path", "why"), REWARDS)
def test_a_reward(path, why):
    [line] = refused("trainer=rloo", f"+reward.mine.function='{path}'")
    assert line.startswith(f"reward.mine.function={path}: ")
    assert re.search(why, line), line


SETTINGS = {
    "rollout": "trainer.rollout='{}'",
    "environment": "trainer.environment='{}'",
    "tools": "trainer.tools=['{}']",
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(("path", "why"), BAD)
def test_what_else_a_trainer_takes(setting, path, why):
    [line] = refused("trainer=grpo", "reward=length", SETTINGS[setting].format(path))
    assert line.startswith(f"trainer.{setting}={path}: ")
    assert re.search(why, line), line


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("trainer.rollout=fine.undocumented", r"is called as f\(prompts, trainer\): too many positional arguments$"),
        ("trainer.environment=fine.Judge", "is called without arguments: missing a required argument: 'rubric'$"),
    ],
)
def test_a_call_that_would_fail(override, why):
    [line] = refused("trainer=grpo", "reward=length", override)
    assert re.search(why, line), line


def test_trainers_and_callbacks_are_read_before_they_are_imported():
    for override in ("trainer.callbacks=[cut.F]", "trainer.kind=cut.F"):
        assert re.search(r"cut\.py:1: ", refused("trainer=sft", override)[0])


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (
            ["trainer=sft", "trainer.callbacks=[late.Sees]"],
            "trainer.callbacks=late.Sees: late fails when it is imported",
        ),
        (
            ["trainer=sft", "trainer.callbacks=[fine.Silent]"],
            "trainer.callbacks=fine.Silent: is no class of transformers",
        ),
        (["trainer=grpo", "reward=length", "trainer.tools=[fine.undocumented]"], "trainer.tools=fine.undocumented: "),
    ],
)
def test_what_the_libraries_are_needed_for_is_said_before_a_run_directory_exists(overrides, why, tmp_path, pairs):
    (tmp_path / "late.py").write_text("class Sees:\n    pass\nraise OSError('no such device')\n")
    run, _ = compose(*overrides, *SMALL)
    with pytest.raises(PosttrainError, match=why):
        train_plan.prepare(run, tmp_path / "outputs")
    assert not (tmp_path / "outputs").exists()


def test_a_column_that_a_reward_asks_for(tmp_path, pairs):
    run, _ = compose("trainer=rloo", *SMALL, "~reward", "+reward.mine.function=fine.needs")
    with pytest.raises(
        PosttrainError, match=r"reward.mine.function=fine.needs: needs gold, which is neither in its args"
    ):
        train_plan.prepare(run, tmp_path / "outputs")


def test_a_signal_while_a_module_is_imported_is_no_fault_of_the_module(tmp_path):
    (tmp_path / "signalled.py").write_text("from posttrain.errors import Stopped\nraise Stopped(143)\n")
    with pytest.raises(Stopped):
        code.load("signalled.f")
