"""`embedded:tiny`: a random Llama with a byte-level tokenizer, made locally in a second, for tests."""

from pathlib import Path

from posttrain.data.embedded.cache import cached


def tiny_model(folder: Path | None = None) -> Path:
    """Folder of a random two-layer Llama (hidden 32, 259 tokens) with a byte-level tokenizer and ChatML; for tests.

    Any text round-trips; the bytes are the same on every call. Written to `folder`, else kept in the cache.
    """
    if folder is None:
        return cached("tiny-1", _build)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _build(folder)
    return folder


def _build(folder: Path) -> None:
    from posttrain.data.embedded import tiny_build

    tiny_build.build(folder)
