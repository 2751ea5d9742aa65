"""What a person hears of a run while it works."""

import time

import pytest

from posttrain import console
from posttrain.training.progress import Phase


def test_a_log_file_hears_of_a_phase_once_if_it_takes_a_while(monkeypatch, capsys):
    """No line for what is quick; of what is not, one, with the time that is left as far as that can be told."""
    monkeypatch.setattr("posttrain.console.SLOW_SECONDS", 0.05)
    with Phase("probe    quick", 2) as phase:
        phase.advance()
    with Phase("probe    slow", 4) as phase:
        phase.advance(2)
        time.sleep(0.3)
    with console.show_status("Loading"):
        time.sleep(0.3)
    assert capsys.readouterr().out.splitlines() == ["probe    slow ..., about 0 s left", "Loading ..."]


@pytest.mark.parametrize("width", [80, 140])
def test_a_terminal_shows_the_whole_name_of_a_phase_and_how_long_a_status_takes(width, monkeypatch):
    """Besides a run's own bar, too: its column of names is narrow."""
    import io

    from posttrain.training import progress

    out = console.SafeConsole(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(progress, "console", out)
    with Phase("probe    32 samples of up to 64 tokens", 2) as phase:
        phase.advance()
        phase.bar.refresh()
    with console.show_status("Loading the model", out):
        time.sleep(0.05)
    shown = out.file.getvalue()
    assert "probe" in shown
    assert "32 samples of up to 64 tokens" in shown
    assert "Loading the model (0 s)" in shown


def test_bars_of_libraries_are_counted_and_not_shown(monkeypatch, capsys):
    """In one line, in bytes before rows; the bar that the hub draws for the same bytes on the network is left out."""
    from tqdm.auto import tqdm

    monkeypatch.setattr("posttrain.console.SLOW_SECONDS", 0.02)
    monkeypatch.setattr("posttrain.console.REPORT_SECONDS", 0.02)
    with console.show_status("Loading the model"):
        rows = tqdm(total=4000, desc="Tokenizing: ", disable=True)
        rows.update(1000)
        time.sleep(0.15)
        files = [tqdm(total=size, unit="B", desc="model.safetensors") for size in (3_000_000, 1_000_000)]
        tqdm(total=4_000_000, unit="B", bar_format="{desc}: {bar}| {n_fmt:>5}B{postfix:>12}")
        for file in files:
            file.update(1_000_000)
        time.sleep(0.15)
        files[0].update(2_000_000)
        rows.close()
    with tqdm(total=1, desc="shown again", leave=True):
        pass
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == "Loading the model: Tokenizing, 1,000 of 4,000"
    assert all(line.startswith("Loading the model: 2.0 MB of 4.0 MB (50%), ") for line in lines[1:])
    assert lines[1].endswith("/s")
    assert "safetensors" not in printed.err
    assert "shown again" in printed.err


@pytest.mark.parametrize("terminal", [False, True])
def test_a_line_in_a_log_file_ends_in_no_blanks(terminal):
    import io

    file = io.StringIO()
    out = console.SafeConsole(file=file, width=40, force_terminal=terminal, color_system=None)
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for row in (("name", "a long value"), ("other", "short"), ("", "")):
        table.add_row(*row)
    out.print(table)
    out.print("kept  ", end="")
    out.print("  here")
    lines = file.getvalue().splitlines()
    assert [line.rstrip() for line in lines] == ["name   a long value", "other  short", "", "kept    here"]
    assert terminal or lines == [line.rstrip() for line in lines]


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


def test_libraries_are_quiet_where_they_were_imported_before(monkeypatch):
    """A check of rewards imports Transformers first, whose own default is to warn."""
    from transformers.utils import logging

    from posttrain.console import quiet_libraries

    before = logging.get_verbosity()
    try:
        for given, expected in ((None, logging.ERROR), ("info", logging.INFO)):
            logging.set_verbosity(logging.WARNING)
            monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
            if given:
                monkeypatch.setenv("TRANSFORMERS_VERBOSITY", given)
            quiet_libraries()
            assert logging.get_verbosity() == expected
    finally:
        logging.set_verbosity(before)


def test_libraries_that_a_check_imports_are_quiet_too(monkeypatch):
    import os
    from types import SimpleNamespace

    from posttrain.errors import PosttrainError
    from posttrain.jobs import command

    variable, seen = "HF_DATASETS_DISABLE_PROGRESS_BARS", []
    monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(command.HydraConfig, "get", staticmethod(lambda: None))
    monkeypatch.setattr(command.parse, "origin", lambda hydra: SimpleNamespace(overrides=()))
    monkeypatch.setattr(
        command.parse, "read", lambda cfg: (seen.append(os.environ.get(variable)), (None, ["wrong"]))[1]
    )
    with pytest.raises(PosttrainError, match="wrong"):
        command.job(None)
    assert seen == ["1"]


def test_a_policy_that_is_its_reference_shows_no_accuracy():
    """Every pair ties, and TRL logs 0."""
    from types import SimpleNamespace

    from posttrain.training import progress

    bar = progress.ProgressBar("run")
    state = SimpleNamespace(is_world_process_zero=True, max_steps=4, global_step=1, log_history=[])
    state.num_input_tokens_seen, state.logging_steps = 0, 1
    bar.started, bar.printed = (0.0, 0, 0.0), 0.0
    for margin, shown in ((0.0, False), (0.5, True)):
        bar.on_log(None, state, None, logs={"rewards/margins": margin, "rewards/accuracies": 0.0})
        assert ("rewards/accuracies" in bar.latest) == shown
