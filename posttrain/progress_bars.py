"""What the libraries' progress bars count (bytes, rows, files), for one status line instead of their many bars."""

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.filesize import decimal
from rich.text import Text


class Counted:
    """The progress bars that were started in a block of `counting`: the hub's count bytes, those of `datasets` rows."""

    def __init__(self, text: str):
        self.text = text
        self.bars: list[Any] = []
        self.started = self.began = time.monotonic()

    def add(self, bar: Any) -> None:
        if not self.bars:
            self.began = time.monotonic()
        self.bars.append(bar)

    def __str__(self) -> str:
        """`text`, followed by the counts of the bars."""
        files = [bar for bar in self.bars if bar.unit == "B" and bar.total]
        done, size = int(sum(bar.n for bar in files)), int(sum(bar.total for bar in files))
        if done < size:
            speed = int(done / max(time.monotonic() - self.began, 1e-3))
            return f"{self.text}: {decimal(done)} of {decimal(size)} ({done / size:.0%}), {decimal(speed)}/s"
        rows = [bar for bar in self.bars if bar.unit != "B" and bar.desc and bar.total and bar.n < bar.total]
        if rows:
            return f"{self.text}: {rows[-1].desc.rstrip(': ')}, {rows[-1].n:,} of {rows[-1].total:,}"
        return self.text

    def __rich__(self) -> Text:
        return Text(f"{self} ({time.monotonic() - self.started:.0f} s)", no_wrap=True, overflow="ellipsis")


@contextmanager
def counting(text: str) -> Iterator[Counted]:
    """Yield the counts of the tqdm bars that are started in the block, and show none of the bars."""
    from tqdm.std import tqdm

    counted, begin = Counted(text), tqdm.__init__
    hidden = {"disable": False, "file": io.StringIO(), "mininterval": 3600.0, "delay": 3600.0}

    def silent(bar: Any, *args: Any, **kwargs: Any) -> None:
        begin(bar, *args, **{**kwargs, **hidden})
        # The hub has two bars for the same bytes; the one of the network shows no total, and is left out.
        if "total_fmt" in (kwargs.get("bar_format") or "total_fmt"):
            counted.add(bar)

    tqdm.__init__ = silent
    try:
        yield counted
    finally:
        tqdm.__init__ = begin
