"""A stage's own process: output to the terminal and into a log, SIGTERM and SIGINT passed on."""

import codecs
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from posttrain.pipeline.stages import search_path
from posttrain.training.signals import Signals

# Hydra's last line below every error.
HYDRA_HINT = "Set the environment variable HYDRA_FULL_ERROR"


class StageSignals(Signals):
    """`Signals` that are also passed on to the running stage, which saves and ends."""

    def __init__(self) -> None:
        super().__init__()
        self.process: subprocess.Popen[bytes] | None = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        super()._note(number, frame)
        if self.process is not None and self.process.poll() is None:
            # To the process group, since `accelerate launch` does not pass signals on.
            os.killpg(self.process.pid, number)


def execute(command: Sequence[str], log: Path, signals: StageSignals) -> int:
    """Run `command` to its end and return its exit status, negative for a signal."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PATH": search_path()}
    environment.setdefault("WANDB_RUN_GROUP", log.parent.parent.name)  # the pipeline's stages together in W&B
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink, log.open("rb") as source:
        sink.write(f"$ {shlex.join(command)}\n".encode())
        sink.flush()
        source.seek(0, os.SEEK_END)
        # Output goes directly into the file, so that a stage survives if the pipeline is killed. It gets its own
        # session, or Ctrl-C would reach it twice.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=environment, start_new_session=True
        )
        signals.process = process
        if signals.number:  # the signal came before the process was known
            os.killpg(process.pid, signals.number)
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        ended = False
        while not ended:
            ended = process.poll() is not None
            sys.stdout.write(decode(source.read()))
            sys.stdout.flush()
            if not ended:
                time.sleep(0.1)
        signals.process = None
    return process.returncode


def last_error(log: Path) -> str:
    """The last line of a log that is not empty and not Hydra's hint."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return next(
        (line.strip() for line in reversed(lines) if line.strip() and not line.startswith(HYDRA_HINT)), "no output"
    )
