"""Templates of graders: `{{ item.answer }}`, `{{ sample.output_json.steps[0] }}`."""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from posttrain.data.json_values import reject_constant

_FIELD = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_STEP = re.compile(r"\.([\w-]+)|\[(\d+)\]|\[(?:'([^']*)'|\"([^\"]*)\")\]")
SAMPLE = ("output_text", "output_json", "choices")


class MissingValue(Exception):
    """The row has no value at `path` (`of` is item or sample)."""

    def __init__(self, of: str, path: str):
        super().__init__(path)
        self.of, self.path = of, path


@dataclass(frozen=True)
class Path:
    """`item` or `sample`, and the keys and indices to follow in it."""

    of: str
    steps: tuple[str | int, ...]
    text: str

    def value(self, row: dict[str, Any]) -> Any:
        """The value at this path of `row` (`{"item": ..., "sample": ...}`); raises `MissingValue`."""
        found = row[self.of]
        for step in self.steps:
            if isinstance(found, list) and isinstance(step, str) and step.isdigit():
                step = int(step)
            try:
                found = found[step]
            except (KeyError, IndexError, TypeError):
                raise MissingValue(self.of, self.text) from None
        if found is None or found != found:  # NaN is no value
            raise MissingValue(self.of, self.text)
        return found


@dataclass(frozen=True)
class Template:
    """Text and paths, alternating."""

    parts: tuple[str | Path, ...]

    @property
    def paths(self) -> list[Path]:
        return [part for part in self.parts if isinstance(part, Path)]

    def render(self, row: dict[str, Any]) -> str:
        """The text for a row: strings as they are, all else as JSON. Raises `MissingValue`.

        Whole numbers of the data are written without .0: beside 5.5, a column holds 12 as 12.0.
        """
        return "".join(part if isinstance(part, str) else _text(part.value(row), part.of) for part in self.parts)


@lru_cache(maxsize=256)
def parse(text: str) -> Template:
    """The template of a text; raises `ValueError` for one that no row could fill."""
    parts: list[str | Path] = []
    for number, piece in enumerate(_FIELD.split(text)):
        parts.append(_path(piece.strip()) if number % 2 else piece)
    if any(isinstance(part, str) and "{{" in part for part in parts):
        raise ValueError("{{ without }}")
    return Template(tuple(parts))


def _path(text: str) -> Path:
    of = re.split(r"[.\[]", text, maxsplit=1)[0]
    if of not in ("item", "sample"):
        raise ValueError(f"{{{{ {text} }}}}: begins with neither item nor sample; write {{{{ item.COLUMN }}}}")
    steps: list[str | int] = []
    rest = text[len(of) :]
    while rest:
        step = _STEP.match(rest)
        if step is None:
            raise ValueError(f"{{{{ {text} }}}}: {rest!r} is no path; write .name or [0]")
        name, index, single, double = step.groups()
        steps.append(int(index) if index is not None else next(n for n in (name, single, double) if n is not None))
        rest = rest[step.end() :]
    if not steps or not isinstance(steps[0], str):
        raise ValueError(f"{{{{ {text} }}}}: names nothing in {of}; write {{{{ {of}.NAME }}}}")
    if of == "sample" and steps[0] not in SAMPLE:
        raise ValueError(f"{{{{ {text} }}}}: a sample here has {', '.join(SAMPLE)}")
    return Path(of, tuple(steps), text)


def sample(text: str) -> dict[str, Any]:
    """The `sample` of templates and code for a completion; `output_json` where it is JSON as a whole."""
    found: dict[str, Any] = {
        "output_text": text,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}],
    }
    try:
        found["output_json"] = json.loads(text, parse_constant=reject_constant)
    except (ValueError, RecursionError):
        found["output_json"] = None
    return found


def _text(value: Any, of: str) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(_whole(value) if of == "item" else value, ensure_ascii=False, default=str)


def _whole(value: Any) -> Any:
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
