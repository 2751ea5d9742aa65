"""Every command of docs/quickstart.md, in order, in this process: on the tiny model instead of the embedded one."""

import glob
import importlib
import io
import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from posttrain import __main__
from posttrain.config.commands import COMMANDS
from tests.docs.test_docs import ROOT, commands
from tests.helpers.runs import compose, rows

PAGE = ROOT / "docs/quickstart.md"
# Seconds instead of minutes; what is learnt is not the point here.
SHORT = (
    "probe.prompts=2",
    "probe.max_new_tokens=4",
    "probe.shift_prompts=0",
    "tracking=none",
    "trainer.args.max_steps=2",
)


def write_files(text: str) -> None:
    """The files that the page shows, under the names it gives them."""
    for name, body in re.findall(r"`([\w.]+\.(?:jsonl|py))`:\n\n```\w+\n(.*?)```", text, re.DOTALL):
        Path(name).write_text(body)


def run(line: str, monkeypatch) -> int:
    """One line of the page, its globs expanded."""
    said, _, line = line.rpartition("|")
    words = [found for word in shlex.split(line) for found in (sorted(glob.glob(word)) or [word])]
    words = [
        word.replace("model=smollm2", "model=tiny").replace("embedded:smollm2", "embedded:tiny") for word in words[1:]
    ]
    if words and words[0] in COMMANDS and not COMMANDS[words[0]][1].startswith("job:"):
        said = said or "/exit\n"
        monkeypatch.setattr(sys, "stdin", io.StringIO(shlex.split(said)[-1] if "echo" in said else said))
        return importlib.import_module(COMMANDS[words[0]][1]).main(words[1:])
    job = words.pop(0) if words[0] in COMMANDS else ""
    from posttrain.jobs import preflight

    composed, origin = compose(*words, *(SHORT if job != "doctor" else ()), *([f"job={job}"] if job else []))
    preflight.check(composed)
    getattr(importlib.import_module(f"posttrain.jobs.{composed.job}"), composed.job)(composed, origin)
    return 0


@pytest.mark.usefixtures("few_rows")
def test_the_page_from_its_first_command_to_its_last(monkeypatch, capsys):
    write_files(PAGE.read_text())
    assert len(rows(Path("pairs.jsonl"))) == 5
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lines = [line for line in commands(PAGE) if "posttrain" in line and "--version" not in line]
    assert len(lines) > 10
    for line in lines:
        if "Qwen" in line:  # of the hub: composed and checked in test_docs
            continue
        assert run(line, monkeypatch) == 0, line
    said = capsys.readouterr().out
    assert "shop-model" in said
    assert (Path("shop-model") / "config.json").is_file()
    assert Path("report/index.html").is_file()
    assert __main__.main(["--version"]) == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_runs(tmp_path, monkeypatch):
    """Its cells in order, on the embedded model; `!` lines go to a shell, as in Jupyter."""
    from IPython.core.interactiveshell import InteractiveShell

    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shell = InteractiveShell()
    notebook = json.loads((ROOT / "docs/quickstart.ipynb").read_text())
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            result = shell.run_cell("".join(cell["source"]))
            result.raise_error()
            assert shell.user_ns.get("_exit_code", 0) == 0, "".join(cell["source"])
    assert (tmp_path / "shop-model" / "config.json").is_file()
