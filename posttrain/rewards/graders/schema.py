"""The JSON of graders, as OpenAI's API defines it, read and checked without anything heavy.

Source: OpenAI API reference, "Graders" (string_check, text_similarity, score_model, label_model, python, multi).
"""

from __future__ import annotations

import ast
import json
import keyword
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from posttrain.data.json_values import DECODER
from posttrain.rewards.graders import formula, template
from posttrain.rewards.graders.errors import GraderErrors, choose, join, validated

LARGEST_SOURCE = 256 << 10  # bytes, as OpenAI has it


class _Grader(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str = ""
    # OpenAI's evals decide by it what has passed; a reward is the score itself.
    pass_threshold: float | None = None


class StringCheck(_Grader):
    """1 or 0: equal, not equal, contains, contains whatever the case."""

    type: Literal["string_check"]
    operation: Literal["eq", "ne", "like", "ilike"]
    input: str
    reference: str


class TextSimilarity(_Grader):
    """How close `input` is to `reference`, in [0, 1]."""

    type: Literal["text_similarity"]
    input: str
    reference: str
    evaluation_metric: Literal[
        "fuzzy_match",
        "bleu",
        "gleu",
        "meteor",
        "cosine",
        "rouge_1",
        "rouge_2",
        "rouge_3",
        "rouge_4",
        "rouge_5",
        "rouge_l",
    ]


class Python(_Grader):
    """`grade(sample, item)` of `source`, a number."""

    type: Literal["python"]
    source: str
    image_tag: str | None = None


class Text(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["input_text", "output_text", "text"]
    text: str


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Text | list[Text]
    type: Literal["message"] = "message"

    @property
    def text(self) -> str:
        parts = self.content if isinstance(self.content, list) else [self.content]
        return "\n".join(part if isinstance(part, str) else part.text for part in parts)


class Sampling(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    seed: int | None = None
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, ge=0, le=1)
    max_completions_tokens: int | None = Field(default=None, ge=1)
    reasoning_effort: str | None = None


class ScoreModel(_Grader):
    """The number that a language model gives, within `range`."""

    type: Literal["score_model"]
    model: str = Field(min_length=1)
    input: list[Message] = Field(min_length=1)
    range: list[float] = [0.0, 1.0]
    sampling_params: Sampling = Sampling()


class LabelModel(_Grader):
    """1 where the label that a language model gives is among `passing_labels`, else 0."""

    type: Literal["label_model"]
    model: str = Field(min_length=1)
    input: list[Message] = Field(min_length=1)
    labels: list[str] = Field(min_length=1)
    passing_labels: list[str]
    sampling_params: Sampling = Sampling()


@dataclass(frozen=True)
class Multi:
    """A formula over the scores of `graders`."""

    graders: dict[str, Single]
    formula: ast.expr


class _MultiShape(_Grader):
    type: Literal["multi"]
    graders: dict[str, Any] = Field(min_length=1)
    calculate_output: str


Single = StringCheck | TextSimilarity | Python | ScoreModel | LabelModel
Node = Single | Multi
SINGLE: dict[str, type[Single]] = {
    "string_check": StringCheck,
    "text_similarity": TextSimilarity,
    "python": Python,
    "score_model": ScoreModel,
    "label_model": LabelModel,
}


def read(path: str) -> Node:
    """The grader in a file; raises `GraderErrors`."""
    try:
        return of_json(DECODER.decode(Path(os.path.expanduser(path)).read_text(encoding="utf-8-sig")))
    except FileNotFoundError:
        raise GraderErrors([("", "no such file")]) from None
    except OSError as error:
        raise GraderErrors([("", f"cannot be read ({error.strerror})")]) from None
    except json.JSONDecodeError as error:
        raise GraderErrors([(f"line {error.lineno}, column {error.colno}", f"not JSON: {error.msg}")]) from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise GraderErrors([("", f"not JSON: {error}")]) from None
    except ValueError as error:  # a key twice, NaN
        raise GraderErrors([("", str(error))]) from None


def of_json(raw: Any) -> Node:
    """The grader that a JSON value describes; raises `GraderErrors` with everything that is wrong in it."""
    if isinstance(raw, dict) and isinstance(raw.get("grader"), dict) and "type" not in raw:
        raw = raw["grader"]  # the body of an API request that runs a grader
    if not isinstance(raw, dict) or raw.get("type") != "multi":
        return _single(raw, "", (*SINGLE, "multi"))
    shape = validated(_MultiShape, raw, "")
    wrong: list[tuple[str, str]] = []
    graders: dict[str, Single] = {}
    # One grader without a name takes the name in it.
    inner = {str(shape.graders.get("name", "grader")): shape.graders} if "type" in shape.graders else shape.graders
    for name, part in inner.items():
        try:
            graders[name] = _single(part, f"graders.{name}", tuple(SINGLE))
        except GraderErrors as error:
            wrong += error.found
    try:
        tree = formula.parse(shape.calculate_output, list(inner))
    except ValueError as error:
        wrong.append((f'calculate_output="{shape.calculate_output:.100}"', str(error)))
        odd = [name for name in inner if not name.isidentifier() or keyword.iskeyword(name)]
        wrong += [(f"graders.{name}", "a formula cannot name it; use letters, digits and _") for name in odd]
    if wrong:
        raise GraderErrors(wrong)
    return Multi(graders, tree)


def parts(node: Node) -> Iterator[tuple[str, Single]]:
    """(place in the JSON, grader) of each grader that is no multi."""
    if isinstance(node, Multi):
        yield from ((f"graders.{name}", part) for name, part in node.graders.items())
    else:
        yield "", node


def templates(node: Single) -> dict[str, str]:
    """Place in the grader -> the text with `{{ }}` in it."""
    if isinstance(node, (StringCheck, TextSimilarity)):
        return {"input": node.input, "reference": node.reference}
    if isinstance(node, Python):
        return {}
    return {f"input[{n}].content": message.text for n, message in enumerate(node.input)}


def columns(node: Node) -> list[tuple[str, template.Path]]:
    """(place, path) of every value of the data that templates read."""
    return [
        (join(place, inner), path)
        for place, part in parts(node)
        for inner, text in templates(part).items()
        for path in template.parse(text).paths
        if path.of == "item"
    ]


def _single(raw: Any, place: str, types: tuple[str, ...]) -> Single:
    if not isinstance(raw, dict):
        raise GraderErrors([(place, f"expected an object with a type, one of {', '.join(types)}")])
    kind = raw.get("type")
    if not isinstance(kind, str) or kind not in SINGLE:
        given = f"{join(place, 'type')}={json.dumps(kind)}" if "type" in raw else join(place, "type")
        raise GraderErrors([(given, "multi graders cannot be nested" if kind == "multi" else choose(kind, types))])
    node = validated(SINGLE[kind], raw, place)
    wrong = [(join(place, inner), what) for inner, what in _meaning(node)]
    if wrong:
        raise GraderErrors(wrong)
    return node


def _meaning(node: Single) -> Iterator[tuple[str, str]]:
    """Errors that the JSON's shape does not show."""
    for place, text in templates(node).items():
        if (what := _failing(template.parse, text)) is not None:
            yield place, what
    if isinstance(node, Python):
        yield from _source(node.source)
    elif isinstance(node, ScoreModel):
        if len(node.range) != 2 or node.range[0] >= node.range[1]:
            yield f"range={json.dumps(node.range)}", "expected two numbers, the lower one first"
    elif isinstance(node, LabelModel):
        if other := [label for label in node.passing_labels if label not in node.labels]:
            yield f"passing_labels={json.dumps(node.passing_labels)}", f"{other[0]} is not one of the labels"
        alike = [label.strip().casefold() for label in node.labels]
        if "" in alike or len({*alike}) < len(alike):
            yield f"labels={json.dumps(node.labels)}", "a label is blank, or differs from another in its case alone"


def _source(source: str) -> Iterator[tuple[str, str]]:
    if len(source.encode()) > LARGEST_SOURCE:
        yield "source", f"longer than {LARGEST_SOURCE >> 10} KiB"
        return
    try:
        tree = ast.parse(source)
    except (RecursionError, MemoryError):
        yield "source", "nested too deeply"
        return
    except (SyntaxError, ValueError) as error:
        yield "source", f"line {getattr(error, 'lineno', None) or 1}: {getattr(error, 'msg', error)}"
        return
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    names += [
        name.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for name in node.targets
        if isinstance(name, ast.Name)
    ]
    if "grade" not in names:
        yield "source", "defines no function grade; write def grade(sample, item): and return a number"
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or node.name != "grade" or node.decorator_list:
            continue
        if not _takes_two(node.args):
            yield "source", f"line {node.lineno}: grade is called with two values: write def grade(sample, item):"


def _takes_two(given: ast.arguments) -> bool:
    most = len(given.posonlyargs) + len(given.args)
    least = most - len(given.defaults)
    return least <= 2 and (most >= 2 or given.vararg is not None) and None not in given.kw_defaults


def _failing(function: Callable[[str], Any], text: str) -> str | None:
    try:
        function(text)
    except ValueError as error:
        return str(error)
    return None
