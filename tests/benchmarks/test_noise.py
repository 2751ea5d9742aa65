"""The study of flipped preferences: the flips, the table by hand, and one rate on a few pairs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import recipes

if not (recipes.ROOT / "benchmarks").is_dir():
    pytest.skip("benchmarks/ belongs to a checkout", allow_module_level=True)
sys.path.insert(0, str(recipes.ROOT / "benchmarks"))
import noise


def test_flips_are_exact_and_of_the_seed():
    pairs = [{"prompt": str(n), "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(50)]

    def wrong(rate: float, seed: int) -> set[str]:
        return {pair["prompt"] for pair in noise.flipped(pairs, rate, seed) if pair["chosen"].startswith("bad")}

    assert wrong(0.0, 1) == set()
    assert len(wrong(0.3, 1)) == 15
    assert wrong(0.3, 1) == wrong(0.3, 1) != wrong(0.3, 2)


class Kept:
    """Stands in for a study that has been run."""

    def doctor(self, rate: float, seed: int) -> dict[str, Any]:
        sure = rate > 0.1
        return {
            "numbers": {"accuracy": 0.8, "rate": rate, "low": rate / 2, "high": 2 * rate, "steady": sure},
        }

    def accuracy(self, method: str, rate: float, seed: int) -> float | None:
        if method == "doctor" and rate <= 0.1:
            return None
        return {"dpo": 0.7, "robust": 0.8, "doctor": 0.75}[method] - rate + 0.01 * seed


def test_the_table_by_hand():
    lines = noise.table(Kept(), (1, 2, 3)).splitlines()
    assert lines[2] == (
        "| 0% | 0.0% [0.0%, 0.0%], an estimate in 0 of 3 | 0.720 ± 0.010 | 0.820 ± 0.010 | no rate was named |"
    )
    assert lines[-1] == (
        "| 30% | 30.0% [15.0%, 60.0%], an estimate in 3 of 3 | 0.420 ± 0.010 | 0.520 ± 0.010 | 0.470 ± 0.010 |"
    )


def test_a_rate_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study = noise.Study(tmp_path / "noise", pairs=104, held_out=8, epochs=1)
    accuracy = study.accuracy("robust", 0.2, 1)
    assert 0 <= accuracy <= 1
    assert study.doctor(0.2, 1)["numbers"]["rows"] == 104
    monkeypatch.setattr(noise, "run", None)
    again = noise.Study(tmp_path / "noise", pairs=104, held_out=8, epochs=1)
    assert again.accuracy("robust", 0.2, 1) == accuracy
    assert again.doctor(0.2, 1) == study.doctor(0.2, 1)
    with pytest.raises(SystemExit, match="of other settings"):
        noise.Study(tmp_path / "noise", pairs=105, held_out=8, epochs=1)
