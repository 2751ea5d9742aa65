"""The study of forgetting: its files, and the table by hand."""

import json
import sys
from pathlib import Path

import pytest

from posttrain.config import recipes

if not (recipes.ROOT / "benchmarks").is_dir():
    pytest.skip("benchmarks/ belongs to a checkout", allow_module_level=True)
sys.path.insert(0, str(recipes.ROOT / "benchmarks"))
import forgetting


def test_replay_takes_no_text_that_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    texts = tmp_path / "texts.jsonl"
    rows = [
        {"text": f"{domain} {n} " + "x" * 300, "domain": domain} for domain in forgetting.DOMAINS for n in range(12)
    ]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("posttrain.data.embedded.wheels.texts", lambda: texts)
    forgetting.files(tmp_path, few=32, held_out=4)
    kept = {name: (tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("plain", "replayed", "held_out")}
    assert {name: len(lines) for name, lines in kept.items()} == {"plain": 32, "replayed": 42, "held_out": 4}
    replayed = [json.loads(line)["text"] for line in kept["replayed"][32:]]
    assert {text.split()[1] for text in replayed} == {"8", "9", "10", "11"}
    assert max(map(len, replayed)) == forgetting.CHARACTERS
    assert not set(kept["plain"]) & set(kept["held_out"])
    assert len(set(forgetting.HARMFUL) | set(forgetting.HARMLESS)) == 48


class Kept:
    """Stands in for a study that has been run."""

    def metrics(self, setting: str, seed: int) -> dict[str, dict[str, float]]:
        names = ["eval_loss", *(f"probe/forgetting/{name}" for name in forgetting.DOMAINS)]
        end = {name: place + 0.1 * seed for place, name in enumerate(names)}
        return {
            "start": {"eval_loss": 4.0, "probe/refusals/harmful": 0.5, "probe/refusals/harmless": 0.0},
            "end": end | {"probe/refusals/harmful": 0.25, "probe/refusals/harmless": 0.125 * seed},
        }


def test_the_table_by_hand():
    lines = forgetting.table(Kept(), (1, 3)).splitlines()
    assert lines[0] == "|  | loss on reviews | wiki | web | code | c4 | refuses harmful | refuses harmless |"
    assert lines[2] == "| before | 4.00 | 0.00 | 0.00 | 0.00 | 0.00 | 0.50 | 0.00 |"
    assert lines[3].startswith("| LoRA, rate 2e-4 | 0.20 ± 0.14 | 1.20 ± 0.14 |")
    assert lines[3].endswith("| 0.25 ± 0.00 | 0.25 ± 0.18 |")
