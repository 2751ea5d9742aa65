"""The study of the demo's settings: figures by hand, the whole of it on the random model, and the page."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import recipes

if not (recipes.ROOT / "benchmarks").is_dir():
    pytest.skip("benchmarks/ belongs to a checkout", allow_module_level=True)
sys.path.insert(0, str(recipes.ROOT / "benchmarks"))
import demo

TINY = ("model=tiny", "trainer.args.bf16=false", "probe.max_new_tokens=4")
TRAINING = (
    *("trainer.args.max_length=1024", "data.max_train_rows=4", "data.max_eval_rows=4", "trainer.args.max_steps=1"),
    *("trainer.args.eval_strategy=no", "trainer.args.eval_on_start=false", "trainer.args.save_strategy=no"),
)


def rows(invented: list[Any], withheld: list[Any], f1: list[Any]) -> list[dict[str, Any]]:
    names = ("invented", "withheld", "answer_f1")
    return [{"rewards": dict(zip(names, three, strict=True))} for three in zip(invented, withheld, f1, strict=True)]


def half(count: int, invented: float, withheld: float, f1: float) -> list[dict[str, Any]]:
    """`count` unanswerable and `count` answerable questions, that share of them with a 1."""

    def ones(share: float) -> list[float]:
        return [float(n < round(share * count)) for n in range(count)]

    none: list[Any] = [None] * count
    return rows(ones(invented) + none, none + ones(withheld), none + ones(f1))


def test_figures_by_hand():
    found = demo.compared(half(100, 0.9, 0.1, 0.2), half(100, 0.2, 0.2, 0.5))
    assert (found["invented_before"]["value"], found["invented_after"]["value"]) == (0.9, 0.2)
    assert found["invented_after"]["count"] == 100
    assert found["withheld_after"]["value"] == 0.2
    # 30 of the 100 answerable questions are right now and were not before; none the other way round.
    assert found["answer_f1_change"]["value"] == pytest.approx(0.3)
    low, high = found["answer_f1_change"]["interval"]
    assert 0.2 < low < 0.3 < high < 0.4
    assert demo.reached(found)


@pytest.mark.parametrize("after", [(0.31, 0.2, 0.5), (0.2, 0.26, 0.5), (0.2, 0.2, 0.21)])
def test_each_of_the_three_is_needed(after: tuple[float, float, float]):
    assert not demo.reached(demo.compared(half(100, 0.9, 0.1, 0.2), half(100, *after)))


@pytest.mark.usefixtures("few_rows")
def test_the_study_on_the_random_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study = demo.Demo(tmp_path / "demo", 4, TINY, TRAINING)
    found = study.measured("first", 1, "validation")
    assert found["invented_after"]["count"] == found["answer_f1_before"]["count"] == 2
    assert "+recipe=dpo_smollm2" in found["command"]
    # Another start of the script uses what is there.
    monkeypatch.setattr(demo, "run", None)
    again = demo.Demo(tmp_path / "demo", 4, TINY, TRAINING).measured("first", 1, "validation")
    assert again == json.loads(json.dumps(found))
    filled = demo.page(demo.PAGE.read_text(encoding="utf-8"), [found])
    assert "| `first` | 1 | " in filled
    assert filled.count(demo.NONE) == 1  # the test articles


def test_every_setting_composes():
    from tests.helpers.runs import compose

    for name, overrides in demo.SETTINGS.items():
        run, _ = compose("+recipe=dpo_smollm2", *overrides)
        assert run.trainer.kind == "dpo", name
