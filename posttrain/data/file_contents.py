"""Files by their first bytes: compressed ones, and those whose content is not what their name says."""

import bz2
import gzip
import io
import lzma
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from posttrain.errors import PosttrainError

# The first bytes of files of other kinds.
_MAGIC = {
    b"PAR1": "a Parquet file; call it .parquet",
    b"\x1f\x8b": "compressed by gzip; add .gz to its name",
    b"BZh": "compressed by bzip2; add .bz2 to its name",
    b"\xfd7zXZ": "compressed by xz; add .xz to its name",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; add .zst to its name",
    b"PK\x03\x04": "a zip or Excel file; unpack it, or save it as CSV",
    b"ARROW1": "an Arrow file; save it as Parquet",
    b"version https://git-lfs": "a pointer of Git LFS to the file itself; fetch that with git lfs pull",
    b"\xff\xfe": "UTF-16 or UTF-32; save it as UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
}
_PACKED = {".gz": b"\x1f\x8b", ".bz2": b"BZh", ".xz": b"\xfd7zXZ", ".zst": b""}


def check(file: Path, kind: str | None) -> None:
    """Raise `PosttrainError` for a file whose content does not match its suffix; `kind` is that of `files.kind`."""
    with file.open("rb") as stream:
        start = stream.read(64)
    packed = _PACKED.get(file.suffix)
    wrong = next((what for magic, what in _MAGIC.items() if start.startswith(magic)), None)
    if kind == ".parquet":
        if not start or start.startswith(b"PAR1"):
            return
        wrong = wrong or "not a Parquet file, whatever its name says"
    elif packed is not None:
        if start.startswith(packed):
            return
        wrong = f"not compressed as {file.suffix}; take {file.suffix} off its name"
    elif not wrong and b"\0" in start[:2]:
        wrong = "UTF-16 or UTF-32, or no text; save it as UTF-8"
    elif kind == ".csv" and re.match(rb'(\xef\xbb\xbf)?\s*(\[\s*)?\{\s*"\w+"\s*:', start):
        wrong = "JSON; call it .jsonl or .json"
    if wrong:
        raise PosttrainError(f"{file}: cannot be read: it is {wrong}")


@contextmanager
def opened(file: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked."""
    if file.suffix == ".zst":
        import pyarrow

        with file.open("rb") as packed, pyarrow.CompressedInputStream(packed, "zstd") as plain:
            yield io.BufferedReader(plain)
        return
    opener: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(file.suffix, open)
    with opener(file, "rb") as stream:
        yield stream
