"""The content of a file that zstd compressed."""

import io
from typing import IO, Any

import zstandard


class ZstdFile(io.RawIOBase):
    """The frames of `packed`, one behind another. Raises `EOFError` where the last one is cut short.

    zstandard's own reader ends there without an error, so that rows would be lost.
    """

    def __init__(self, packed: IO[bytes]):
        self.packed, self.frame, self.rest, self.made = packed, None, b"", b""

    frame: Any

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.made:
            if not (piece := self.rest or self.packed.read(1 << 16)):
                if self.frame is not None:
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
                return 0
            self.frame = self.frame or zstandard.ZstdDecompressor().decompressobj()
            self.made, self.rest = self.frame.decompress(piece), b""
            if self.frame.eof:
                self.rest, self.frame = self.frame.unused_data, None
        count = min(len(buffer), len(self.made))
        buffer[:count], self.made = self.made[:count], self.made[count:]
        return count
