"""Two processes (gloo) train to identical weights, and resume to them."""

import os
import socket
import sys
from pathlib import Path

from tests.helpers import command


def test_two_processes(model_dir, tmp_path):
    here = Path(__file__).resolve().parent
    path = os.pathsep.join([str(here.parents[1]), str(here), os.environ.get("PYTHONPATH", "")])
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    run = command.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port),
         str(here / "distributed_run.py"), str(model_dir), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-4000:]
    assert run.stdout.count("identical") == 2
