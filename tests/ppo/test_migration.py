"""docs/migrate_ppo.md, row by row, against what TRL 1.12 and 0.11 had and what PPOConfig and PPOTrainer have."""

import ast
import dataclasses
import inspect
import json
import re

import pytest

from posttrain.config import hints, recipes
from posttrain.ppo import PPOConfig, PPOTrainer, names

ROOT = recipes.PACKAGE.parent
THERE = json.loads((ROOT / "tests/golden/trl_ppo_names.json").read_text())
HERE = {field.name: field.default for field in dataclasses.fields(PPOConfig)}


def tables():
    """Heading -> the rows of its table: cells without their backquotes."""
    found, heading = {}, ""
    for line in (ROOT / "docs/migrate_ppo.md").read_text().splitlines():
        if line.startswith("##"):
            heading = line
        elif line.startswith("| `"):
            found.setdefault(heading, []).append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def table(words):
    return next(rows for heading, rows in tables().items() if words in heading)


def bare(cell):
    return cell.strip("`")


@pytest.mark.parametrize(("words", "release"), [("1.12's PPOConfig", "1.12"), ("older API", "0.11")])
def test_every_option_has_a_row_with_its_name_and_defaults(words, release):
    rows = table(words)
    options = THERE[release]["options"]
    assert sorted(bare(row[0]) for row in rows) == sorted(options)
    for old, new, there, here, note in rows:
        before = options[bare(old)]
        if there and before != []:
            assert ast.literal_eval(bare(there)) == before, old
        if new:
            assert bare(new) in HERE, old
            now = HERE[bare(new)]
            if now is not dataclasses.MISSING:
                assert ast.literal_eval(bare(here)) == now, old
        else:
            assert not here
        assert new or note or there, f"{old}: says nothing"


@pytest.mark.parametrize(("words", "release"), [("1.12's PPOTrainer", "1.12"), ("of its PPOTrainer", "0.11")])
def test_every_argument_of_the_trainer_has_a_row(words, release):
    rows = table(words)
    assert sorted(bare(row[0]) for row in rows) == sorted(THERE[release]["arguments"])
    known = inspect.signature(PPOTrainer.__init__).parameters
    for old, new, note in rows:
        assert bare(new) in known if new else note, old


@pytest.mark.parametrize("release", ["1.12", "0.11"])
def test_the_hints_agree_with_the_page(release):
    """An old name on the command line, or in Python, is told the name that the page gives (or a group to set)."""
    rows = table("1.12's PPOConfig" if release == "1.12" else "older API")
    said = {bare(old): bare(new) for old, new, *_ in rows if new and bare(old) not in HERE}
    for old, new in said.items():
        hint = hints.for_option("PPOConfig", old, HERE) or names.OPTIONS.get(old)
        if old in names.OPTIONS and not hint.startswith("set ") and old != "mini_batch_size":
            assert new in hint, (old, hint)  # mini_batch_size was a size, and is told by both of its factors


def test_the_new_script_takes_its_options():
    text = (ROOT / "docs/migrate_ppo.md").read_text()
    script = re.findall(r"```python\n(.*?)```", text, re.S)[1]
    calls = {
        node.func.id: [keyword.arg for keyword in node.keywords]
        for node in ast.walk(ast.parse(script))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert set(calls["PPOConfig"]) <= set(HERE)
    assert set(calls["PPOTrainer"]) <= set(inspect.signature(PPOTrainer.__init__).parameters)
