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


OLD_OPTIONS = sorted({(old, release) for release in ("1.12", "0.11") for old in THERE[release]["options"]})
OLD_ARGUMENTS = sorted({(old, release) for release in ("1.12", "0.11") for old in THERE[release]["arguments"]})
# A size of old that is now told by the factors of a rollout.
FACTORS = {"batch_size", "mini_batch_size"}


def renamed(old, release, page, known, make):
    """What a keyword of old is answered with in Python: nothing where it is taken, else the name on the page."""
    new = next(bare(row[1]) for row in table(page) if bare(row[0]) == old)
    if old in known:
        assert new in ("", old)
        return None
    with pytest.raises(TypeError, match=f"{old} is now ") as error:
        make(**{old: None})
    if new and old not in FACTORS:
        assert re.search(rf"\b{new}\b", str(error.value)), (old, new)
    return str(error.value)


@pytest.mark.parametrize(("old", "release"), OLD_OPTIONS)
def test_an_old_option_is_answered_with_its_name_of_now(old, release):
    page = "1.12's PPOConfig" if release == "1.12" else "older API"
    said = renamed(old, release, page, HERE, PPOConfig)
    if said is None:
        return
    # On the command line too: an option's name, or the key of this project's own.
    hint = hints.for_option("PPOConfig", old, HERE)
    assert hint
    assert hint.startswith("set ") or names.OPTIONS[old].split(",")[0].split(":")[0] in hint


@pytest.mark.parametrize(("old", "release"), OLD_ARGUMENTS)
def test_an_old_argument_is_answered_with_its_name_of_now(old, release):
    page = "1.12's PPOTrainer" if release == "1.12" else "of its PPOTrainer"
    renamed(old, release, page, inspect.signature(PPOTrainer.__init__).parameters, PPOTrainer)


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


def test_a_checkpoint_with_trls_old_value_head_is_taken_as_its_policy(tmp_path, capsys):
    """`AutoModelForCausalLMWithValueHead` saved the policy's weights as they are, and `v_head.*` beside them."""
    import torch
    from safetensors.torch import load_file, save_file

    from posttrain.data.embedded.tiny import tiny_model
    from posttrain.jobs.train import train
    from posttrain.runs.directory import RunDirectory
    from tests.helpers.runs import SMALL, compose, weights, write_pairs

    folder = tiny_model(tmp_path / "old")
    policy = load_file(folder / "model.safetensors")
    head = {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.zeros(1)}
    save_file({**policy, **head}, folder / "model.safetensors", metadata={"format": "pt"})
    write_pairs(tmp_path / "pairs.jsonl", 20)
    words = ["trainer=ppo", "data=squad", "data.columns={}", *SMALL, "peft=lora", f"model.path={folder}"]
    words += ["trainer.args.max_steps=1", "trainer.args.max_completion_length=4", "trainer.args.eval_strategy=no"]
    words += ["+reward.letter.function=tests.helpers.rewards.letter", "trainer.args.learning_rate=0"]
    words += ["trainer.args.num_ppo_epochs=1", "peft=none", "trainer.args.value_mode=head"]
    run, origin = compose(*words)
    train(run, origin)
    said = " ".join(capsys.readouterr().out.split())
    assert "value head of TRL's older PPO (v_head.*), left out: the policy is trained on" in said
    saved = weights(RunDirectory.of(run, origin).model)
    assert saved.keys() == policy.keys()
    assert all(torch.equal(saved[name], policy[name]) for name in policy)
