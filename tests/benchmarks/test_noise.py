"""The study of flipped preferences: the flips, the table by hand, and one rate on a few pairs."""

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

    def __init__(self) -> None:
        self.results = {"pairs": 1200, "many": 8000, "held_out": 100}

    def doctor(self, pairs: int, rate: float, seed: int) -> dict[str, Any]:
        accuracy = 0.8 if pairs == 8000 else 0.75 - rate
        return {"accuracy": accuracy, "rate": rate, "low": rate / 2, "high": 2 * rate, "steady": True}

    def accuracy(self, method: str, rate: float, seed: int) -> float:
        return {"dpo": 0.7, "robust": 0.8}[method] - rate + 0.01 * seed


def test_the_table_by_hand():
    lines = noise.table(Kept(), (1, 2, 3)).splitlines()
    assert lines[0] == "| flipped | the doctor, 1,200 pairs | the doctor, 8,000 pairs | DPO | robust DPO |"
    # Of 1,200 pairs the doctor's model agrees with 0.75, 0.65, 0.55 of the labels: an estimate, a bound, nothing.
    assert lines[3].startswith("| 10% | at most 10% | 10.0% [5.0%, 20.0%] | ")
    assert lines[4].startswith("| 20% | nothing | ")
    assert lines[5].endswith("| 0.420 ± 0.010 | 0.520 ± 0.010 |")


def test_one_seed_has_the_interval_over_its_pairs():
    # Wilson's interval of 80 of 100 at 95%.
    assert noise.spread([0.8], 100) == "0.800 [0.711, 0.867]"


def test_a_rate_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = {"pairs": 104, "held_out": 8, "epochs": 1, "many": 108}
    study = noise.Study(tmp_path / "noise", **settings)
    accuracy = study.accuracy("robust", 0.2, 1)
    assert 0 <= accuracy <= 1
    assert study.doctor(108, 0.2, 1)["rows"] == 108
    monkeypatch.setattr(noise, "run", None)
    again = noise.Study(tmp_path / "noise", **settings)
    assert again.accuracy("robust", 0.2, 1) == accuracy
    assert again.doctor(108, 0.2, 1) == study.doctor(108, 0.2, 1)
    with pytest.raises(SystemExit, match="of other settings"):
        noise.Study(tmp_path / "noise", **{**settings, "pairs": 105})
