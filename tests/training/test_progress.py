"""What a person hears of a run while it works."""

from __future__ import annotations

import time

import pytest

from posttrain import console
from posttrain.training.progress import Phase


def test_a_log_file_hears_of_a_phase_once_if_it_takes_a_while(monkeypatch, capsys):
    """No line for what is quick; of what is not, one, with the time that is left as far as that can be told."""
    monkeypatch.setattr("posttrain.console.PATIENCE", 0.05)
    with Phase("probe    quick", 2) as phase:
        phase.advance()
    with Phase("probe    slow", 4) as phase:
        phase.advance(2)
        time.sleep(0.3)
    with console.working("Loading"):
        time.sleep(0.3)
    assert capsys.readouterr().out.splitlines() == ["probe    slow ..., about 0 s left", "Loading ..."]


@pytest.mark.parametrize("width", [80, 160])
def test_a_line_keeps_count_time_loss_reward_kl_and_speed(width, monkeypatch):
    """In 80 columns too, with the longest counts and every figure logged."""
    import io
    import re
    from types import SimpleNamespace

    from rich.console import Console

    from posttrain.training import progress

    terminal = Console(force_terminal=True, width=width, file=io.StringIO())
    monkeypatch.setattr(progress, "console", terminal)
    bar = progress.ProgressBar("dpo_smollm2-5feb2bc4")
    state = SimpleNamespace(is_world_process_zero=True, max_steps=10000, global_step=4999)
    state.num_input_tokens_seen, state.logging_steps, state.log_history = 0, 1, []
    bar.on_train_begin(None, state, None)
    bar.on_step_begin(None, state, None)
    bar.started = (bar.started[0] - 2, *bar.started[1:])
    logs = {"loss": 0.502, "reward": -0.461, "objective/kl": 12.25, "rewards/margins": 0.4, "accuracy": 0.95}
    bar.on_log(None, state, None, logs={**logs, "num_tokens": 4000.0, "mean_token_accuracy": 0.333})
    state.global_step = 5000
    bar.on_step_end(None, state, None)
    bar.bar.refresh()
    bar.close()
    line = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.file.getvalue()).splitlines()[-1]
    assert len(line.rstrip()) <= width
    assert "dpo_smollm2" in line
    for part in ("5000/10000", "loss 0.502", "reward -0.461", "kl 12.2", "tok"):
        assert part in line, line
    assert re.search(r"\d+:\d\d", line) or "--:--" in line


def test_the_speed_of_a_continued_run_leaves_out_the_tokens_of_earlier_processes():
    from types import SimpleNamespace

    from posttrain.training import progress

    bar = progress.ProgressBar("dpo-5feb2bc4")
    state = SimpleNamespace(is_world_process_zero=True, max_steps=400, global_step=144, num_input_tokens_seen=0)
    state.log_history = [
        {"step": 143, "num_tokens": 89_000.0},
        {"step": 144, "num_tokens": 90_000.0},
        {"eval_loss": 1.0},
    ]
    bar.on_step_begin(None, state, None)
    assert bar.started[1:] == (144, 90_000.0)
