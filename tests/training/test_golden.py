"""Losses of a short run of each offline trainer, as recorded; a change in a library or here that moves them is seen.

Record anew, once the change is known to be meant: `RECORD_GOLDEN=1 pytest tests/training/test_golden.py`.
"""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "golden" / "losses.json"
KINDS = ("sft", "reward", "dpo", "kto")
STEPS = ("trainer.args.learning_rate=5e-3", "trainer.args.num_train_epochs=2", "trainer.args.max_grad_norm=1")


def losses(train, kind):
    from tests.helpers.runs import rows

    plain = ("trainer.args.loss_type=[sigmoid]", "trainer.args.loss_weights=null") if kind == "dpo" else ()
    run = train(f"+recipe={kind}_smollm2", *STEPS, *plain)
    return [row["loss"] for row in rows(run.metrics) if "loss" in row]


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_recorded(train, kind):
    recorded = json.loads(FILE.read_text()) if FILE.exists() else {}
    found = losses(train, kind)
    here = {name: version(name) for name in ("torch", "trl", "transformers", "peft")}
    if os.environ.get("RECORD_GOLDEN"):
        environment = {"versions": here, "machine": platform.machine()}
        FILE.write_text(json.dumps({**recorded, **environment, kind: found}, indent=1) + "\n")
    else:
        note = "" if here == recorded["versions"] else f" (recorded with {recorded['versions']}, here {here})"
        assert found == pytest.approx(recorded[kind], rel=2e-3, abs=2e-3), f"the trajectory moved{note}"
