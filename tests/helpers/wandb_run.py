"""What a run gave to W&B, read back from its offline files."""

import time
from typing import Any

from posttrain.training.wandb_file import records

WAIT = 60.0


def finished_records(run: Any) -> list[Any]:
    """The records of a run's offline files, once W&B's own process has written the last one, `exit`."""
    end = time.monotonic() + WAIT
    while True:
        files = sorted((run.path / "wandb").glob("offline-run-*/*.wandb"))
        found = [list(records(file)) for file in files]
        if all(one and any(r.WhichOneof("record_type") == "exit" for r in one) for one in found):
            return [record for one in found for record in one]
        assert time.monotonic() < end, f"W&B has not finished its files in {WAIT:.0f} s"
        time.sleep(0.2)
