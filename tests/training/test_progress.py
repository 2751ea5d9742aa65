"""What a person hears of a run while it works."""

from __future__ import annotations

import time

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
