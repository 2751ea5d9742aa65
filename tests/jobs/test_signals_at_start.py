"""A signal while a command is still importing: one line, 130 or 143, nothing left behind."""

import signal
import subprocess
import sys

import pytest

CODE = """
import os, sys
class Signalled:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Signalled())
from posttrain.__main__ import main
sys.exit(main({argv!r}))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("module", "argv"),
    [
        ("posttrain.jobs.command", ["+recipe=dpo_smollm2"]),
        ("hydra", ["+recipe=dpo_smollm2"]),
        ("posttrain.report.__main__", ["report", "outputs"]),
        ("posttrain.chat", ["chat", "RUN"]),
    ],
)
def test_while_importing(module, argv, number, tmp_path):
    code = CODE.format(module=module, number=int(number), argv=argv)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (128 + number, "")
    assert done.stderr.strip() == f"{number.name}: stopped; nothing had begun"
    assert not list(tmp_path.iterdir())
