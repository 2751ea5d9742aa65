"""Errors in the JSON of a grader, each with its place."""

import difflib
import json
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


class GraderErrors(Exception):
    """All that is wrong with a grader: (place in the JSON, what and the fix)."""

    def __init__(self, found: list[tuple[str, str]]):
        super().__init__("\n".join(f"{place}: {what}" if place else what for place, what in found))
        self.found = found


def validated(model: type[Any], raw: dict[str, Any], place: str) -> Any:
    try:
        # Null is what is not set.
        given = {name: value for name, value in raw.items() if value is not None or name not in model.model_fields}
        return model.model_validate_json(json.dumps(given))  # as JSON: 1 is fine for a float
    except ValidationError as error:
        found: dict[str, str] = {}
        for one in error.errors():
            where, what = _explain(model, one)
            found.setdefault(join(place, where), what)
        raise GraderErrors(list(found.items())) from None


def _explain(model: type[Any], error: Any) -> tuple[str, str]:
    """Place and message of one of pydantic's errors."""
    # Members of a union appear as the name of a type in capitals or a python type; keys of graders are fields.
    steps = [step for step in error["loc"] if isinstance(step, int) or not _is_type(step)]
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
    kind, given = error["type"], json.dumps(error["input"], default=str)
    if kind == "missing":
        return where, "required, and not there"
    if kind == "extra_forbidden":
        known = [name for name in _model_at(model, steps[:-1]).model_fields if name not in ("name", "type")]
        return where, f"unknown here; {choose(str(error['loc'][-1]), tuple(known))}"
    if kind == "literal_error":
        allowed = tuple(part.strip(" '") for part in error["ctx"]["expected"].replace(" or ", ", ").split(","))
        return f"{where}={given}", choose(error["input"], allowed)
    shown = f"={given}" if len(given) < 60 else ""
    return f"{where}{shown}", error["msg"].lower().replace("input should be", "expected")


def _model_at(model: type[Any], steps: list[Any]) -> type[Any]:
    """The model of the object at `steps` within one of `model`."""
    for step in steps:
        inside = [model.model_fields[step].annotation] if step in model.model_fields else []
        while inside:
            one = inside.pop(0)
            inside += get_args(one)
            if isinstance(one, type) and issubclass(one, BaseModel):
                model, inside = one, []
    return model


def _is_type(step: str) -> bool:
    return step in ("str", "Text", "list[Text]") or step.startswith("list[")


def choose(given: Any, allowed: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(str(given), allowed, n=1)
    # difflib finds no name near "equal", although it begins with eq.
    near = near or [name for name in allowed if str(given).startswith(name) or name.startswith(str(given))][:1]
    return (f"did you mean {near[0]}? " if near else "") + f"choose from {', '.join(allowed)}"


def join(*places: str) -> str:
    return ".".join(place for place in places if place)
