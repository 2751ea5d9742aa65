"""A journal of finished pieces of work, for jobs that resume after a kill."""

import json
import os
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError


class Journal:
    """The finished pieces (`done`), and `append` for the next one; a partial last piece is dropped on opening."""

    def __init__(self, path: Path):
        self.path = path
        self.done: list[dict[str, Any]] = []
        whole = 0
        if path.is_file():
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if not line.endswith(b"\n"):
                        break
                    try:
                        self.done.append(json.loads(line))
                    except ValueError as error:
                        raise PosttrainError(
                            f"{path}:{number}: is damaged ({error}); restore the file, or remove this line and all "
                            "after it: the run's command then does them again"
                        ) from error
                    whole += len(line)
            if whole < path.stat().st_size:
                with path.open("r+b") as file:
                    file.truncate(whole)

    def append(self, piece: dict[str, Any]) -> None:
        """Add a piece; on disk when this returns."""
        rest = json.dumps(piece).encode() + b"\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        whole = os.fstat(file).st_size
        try:
            while rest:
                rest = rest[os.write(file, rest) :]
            os.fsync(file)
        except OSError:  # on a full disk, half a piece would damage the next one
            os.ftruncate(file, whole)
            raise
        finally:
            os.close(file)
        self.done.append(piece)
