"""Tables of the report in a terminal."""

import pytest
from rich.console import Console

from posttrain.report import tables

HEAD = [
    *("run", "distinct 1-grams (share)", "distinct 2-grams (share)", "share that ends", "entropy (nats per token)"),
    *("length (tokens)", "length correlation", "repetition (share)", "self-BLEU", "win rate against the start"),
]
ROWS = [
    ["the starting policy", "0.601", "0.906", "0.156", "2.491", "22.5", "-0.145", "0.000", "0.055", ""],
    ["dpo", "0.500", "0.529", "0.938", "0.250", "7.438", "-0.868", "0.000", "0.594", "0.792"],
]


@pytest.mark.parametrize("width", range(60, 180, 5))
def test_no_table_is_cut_at_its_right_edge(width, capsys):
    for table in tables.rich("Failure modes", [HEAD, *ROWS], width):
        Console(width=width).print(table)
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("Failure modes")]
    assert all(line[-1] in "┓┃┩│┘" and len(line) <= width for line in lines)
    cells = {cell.strip() for line in lines for cell in line.split("│")}
    assert {*ROWS[1]} <= cells, "and no number is broken"
