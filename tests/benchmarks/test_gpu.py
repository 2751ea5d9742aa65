"""The script for a GPU: every part rehearsed on a CPU, what a cut leaves, and the tables of the docs."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import recipes
from tests.helpers import command

if not (recipes.ROOT / "benchmarks").is_dir():
    pytest.skip("benchmarks/ belongs to a checkout", allow_module_level=True)
sys.path.insert(0, str(recipes.ROOT / "benchmarks"))
import gpu
import gpu_measure
import gpu_model
import gpu_tables

ABOUT = {"card": "H100", "memory_gib": 80.0, "rehearsal": False, "date": "2026-01-02", "versions": {"torch": "2.9"}}


@pytest.mark.usefixtures("few_rows")
def test_every_part_is_rehearsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("subprocess.run", command.run)
    place = gpu_model.Place(tmp_path, gpu_model.REHEARSAL)
    found: dict[str, Any] = {}
    for part in gpu.PARTS.values():
        for name in part:
            result = gpu.one(name, place)
            assert result["status"] == "done", f"{name}: {result['error']}"
            found[name] = result["figures"]
    assert set(found) == set(gpu_measure.MEASUREMENTS)
    assert "collected" in found["tests"]["summary"]
    for name in ("sft", "dpo", "reward", "grpo", "ppo"):
        assert found[name]["tokens_per_second"] > 0, name
        tried = found[name]["by_microbatch"]
        assert list(tried) == ["1", "2", "4"], name
        assert None not in tried.values(), name
    assert (found["ppo"]["bases"], found["ppo_separate"]["bases"]) == (1, 3)
    assert [row["case"] for row in found["shared_1b"]["rows"]] == ["dpo", "dpo_equal", "reward", "grpo"]
    assert all(row["times"] > 0 for name in gpu_tables.SHARED for row in found[name]["rows"])
    assert gpu.one("shared_8b_flex", place)["status"] == "done"  # and once more
    assert found["drift"]["rows"][0]["mean"] > 0
    measured = {name: {"figures": figures} for name, figures in found.items()}
    assert gpu_tables.NONE not in gpu_tables.filled(pages(), {**ABOUT, "measurements": measured})


def pages() -> str:
    return "".join(page.read_text(encoding="utf-8") for page in gpu_tables.PAGES)


def test_the_pages_have_every_table_and_no_figures_without_results():
    assert set(gpu_tables.TABLES) == {match[2] for match in gpu_tables.REGION.finditer(pages())}
    results = json.loads(gpu_tables.RESULTS.read_text()) if gpu_tables.RESULTS.is_file() else {}
    assert gpu_tables.filled(pages(), results) == pages()


def test_tables_by_hand():
    figures = {
        "sft": {
            "microbatch": 2,
            "tokens_a_row": 2048,
            "seconds_a_step": 2.0,
            "tokens_per_second": 2048.0,
            "peak_gib": 12.34,
            "by_microbatch": {"1": 10.0, "2": 12.0, "4": 16.5, "8": None},
        },
        "shared_8b": {
            "rows": [
                {
                    "case": "dpo",
                    "rows": 8,
                    "prompt_tokens": [400, 600],
                    "answer_tokens": [60, 60],
                    "plain_seconds": 3.0,
                    "shared_seconds": 1.5,
                    "times": 2.0,
                    "plain_gib": 20.0,
                    "shared_gib": 15.0,
                }
            ]
        },
    }
    found = gpu_tables.Found({**ABOUT, "measurements": {name: {"figures": f} for name, f in figures.items()}})
    assert gpu_tables.source(found) == "`make gpu`, 2026-01-02, one H100 of 80.0 GiB; torch 2.9.\n"
    assert "| SFT, `sft_llama` | 2 x 2048 tokens read | 2.00 | 2,048 |" in gpu_tables.speed(found)
    assert re.search(r"\| SFT, `sft_llama` \| 12\.3 \| \d+\.\d \| 4 \(16\.5 GiB\) \|", gpu_tables.memory(found))
    assert "| 8B, QLoRA, sdpa | DPO | 8 x 400–600, 60 | 3.00 | 1.50 | 2.00 | 20.0 | 15.0 |" in gpu_tables.shared(found)
    assert f"| 1B, LoRA, FlexAttention | {' | '.join([gpu_tables.NONE] * 7)} |" in gpu_tables.shared(found)


@pytest.mark.parametrize(
    ("tried", "said"),
    [
        ({"1": 9.0, "2": 10.0}, "2 or more (10.0 GiB)"),
        ({"1": None}, "none"),
        (None, "not measured"),
    ],
)
def test_the_largest_microbatch(tried: dict[str, float | None] | None, said: str):
    assert gpu_tables.largest(tried) == said


class Launched:
    """Stands in for a worker: notes what was asked of it; `fails` break it, the rest is measured."""

    def __init__(self, *fails: str):
        self.fails = fails
        self.asked: list[list[str]] = []

    def __call__(self, names: Sequence[str], seconds: float) -> Iterator[tuple[str, dict[str, Any]]]:
        self.asked.append(list(names))
        for name in names:
            if name in self.fails:
                yield name, {"status": "failed", "error": "out of luck"}
                return
            yield name, {"status": "done", "figures": {"step": 1.0}}


EVERY = [name for part in gpu.PARTS.values() for name in part]


def test_a_failure_costs_its_own_measurement_and_is_tried_again(tmp_path: Path):
    path, launched = tmp_path / "gpu.json", Launched("reward")
    assert not gpu.session(gpu.Results(path, ABOUT), EVERY, 3600, launched)
    assert launched.asked[1:3] == [list(gpu.PARTS["llama"]), ["grpo", "ppo", "ppo_separate"]]
    saved = json.loads(path.read_text())
    assert (saved["card"], saved["date"]) == ("H100", "2026-01-02")
    assert {n for n, r in saved["measurements"].items() if r["status"] == "failed"} == {"reward"}
    again = Launched()
    assert gpu.session(gpu.Results(path, ABOUT), EVERY, 3600, again)
    assert again.asked == [["reward"]]


def test_nothing_is_begun_without_the_time_for_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    launched = Launched()
    results = gpu.Results(tmp_path / "gpu.json", ABOUT)
    assert not gpu.session(results, EVERY, 22, launched)
    # Of 22 seconds there is room for what takes 20 or less.
    short = [name for part in gpu.PARTS.values() for name, seconds in part.items() if seconds <= 21]
    assert list(results.measurements) == short
    assert "grpo: no time left" in capsys.readouterr().out


def test_results_of_another_card_are_not_mixed(tmp_path: Path):
    gpu.Results(tmp_path / "gpu.json", ABOUT).add("sft", {"status": "done"})
    with pytest.raises(SystemExit, match="measured on H100"):
        gpu.Results(tmp_path / "gpu.json", {**ABOUT, "card": "H200"})


WORKER = """
import sys, time
print("a library speaks", flush=True)
print('RESULT {"name": "a", "status": "done", "figures": {}}', flush=True)
%s
"""


@pytest.mark.parametrize(
    ("end", "why"),
    [("raise SystemExit('CUDA error: device-side assert')", "device-side assert"), ("time.sleep(60)", "stopped after")],
)
def test_a_worker_that_dies_or_hangs(end: str, why: str):
    found = dict(gpu.worker([sys.executable, "-c", WORKER % end], ["a", "b", "c"], 1))
    assert found["a"] == {"status": "done", "figures": {}}
    assert found["b"]["status"] == "failed"
    assert why in found["b"]["error"]
    assert "c" not in found


def test_a_worker_tells_what_failed_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    def broken(place: Any) -> Any:
        print("not a result")
        raise ValueError("no such thing")

    monkeypatch.setattr(gpu_measure, "MEASUREMENTS", {"a": broken, "b": lambda place: {"x": place.rehearsal}})
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    gpu.work(["a", "b"], tmp_path, rehearse=True)
    first, second = (json.loads(line.removeprefix(gpu.MARK)) for line in capsys.readouterr().out.splitlines())
    assert (first["name"], first["status"]) == ("a", "failed")
    assert "no such thing" in first["error"]
    assert second == {"name": "b", "status": "done", "figures": {"x": True}}


def test_a_rehearsal_stays_out_of_the_docs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        gpu.main(["--rehearse", "--work", str(tmp_path)])
    assert "--rehearse needs --out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.main(["--only", "nothing", "--work", str(tmp_path)])
    assert "no measurement; there are tests, sft" in capsys.readouterr().err
