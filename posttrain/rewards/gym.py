"""The score that reasoning-gym's own scorer gives; signature and None as in `rewards.text`."""

import ast
import json
import re
from collections.abc import Sequence
from typing import Any

from posttrain.console import print_plain
from posttrain.errors import PosttrainError, first_line
from posttrain.rewards.text import Completion, number, references, text_of

_TAG = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL)
# Tasks whose scorers evaluate the answer as Python: LISTS by eval, the formulas below by sympy's parse_expr.
LISTS = {"string_insertion", "spiral_matrix", "binary_matrix", "n_queens"}
FORMULAS = {"simple_integration", "intermediate_integration", "polynomial_multiplication", "puzzle24", "countdown"}
FUNCTIONS = {
    *("sin", "cos", "tan", "sec", "csc", "cot", "asin", "acos", "atan", "sinh", "cosh", "tanh"),
    *("exp", "log", "sqrt"),
}
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.UAdd, ast.USub)
_FAILED: set[str] = set()  # tasks whose scorer failed, each said once
LARGEST, HIGHEST = 10**30, 32  # number and exponent of a formula


def reasoning_gym(
    completions: Sequence[Completion], column: str = "task", extract: str = "tag", **columns: Any
) -> list[float | None]:
    """The task's `score_answer`, mostly in [0, 1], for rows of `data.path=reasoning_gym:TASK`.

    `extract` says what of the completion is the answer: `tag` what is in the last <answer>...</answer>, or all of
    it without one; `text` all of it; `number` the last number. None for rows of other data.

    Some scorers evaluate the answer as Python. They get only answers that run no code and end soon: literals, and
    formulas of numbers, names and FUNCTIONS. Any other answer is scored as an empty one, and an answer that a scorer
    fails on as 0.
    """
    if extract not in ("tag", "text", "number"):
        raise PosttrainError(f"reward reasoning_gym: extract={extract}: choose from tag, text, number")
    return [
        _score(_answer(text_of(completion), extract), row[0]) if row else None
        for completion, row in zip(completions, references(columns, column), strict=True)
    ]


def _answer(text: str, extract: str) -> str:
    if extract == "number":
        found = number(text)
        return "" if found is None else f"{found:f}"
    tags = _TAG.findall(text) if extract == "tag" else []
    return str(tags[-1]) if tags else text


def _score(answer: str, task: str) -> float:
    from posttrain.data.embedded.gym import dataset

    try:
        place = json.loads(task)
        options, index = json.dumps(place["options"], sort_keys=True), int(place["index"])
    except (ValueError, TypeError, KeyError):
        raise PosttrainError(
            f"reward reasoning_gym: a row's task is {task!r:.60}; it scores rows of data.path=reasoning_gym:TASK"
        ) from None
    name = place["name"]
    tasks = dataset(name, options, "reward reasoning_gym")
    entry = tasks[index]  # generated again, since its metadata may not survive JSON
    if (name in LISTS and not _literal(answer)) or (name in FORMULAS and not _formula(answer)):
        answer = ""
    try:
        return float(tasks.score_answer(answer, entry=entry))
    except Exception as error:  # a scorer that takes for granted how an answer looks
        if name not in _FAILED:
            print_plain(f"reasoning_gym: the scorer of {name} fails on {answer!r:.80} ({first_line(error)}); scored 0")
        _FAILED.add(name)
        return 0.0


def _literal(text: str) -> bool:
    """Whether eval ends soon: it is a literal or a name, or no Python at all."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if not isinstance(node, ast.Name):
            ast.literal_eval(node)
    except SyntaxError:
        return True
    except (ValueError, TypeError, RecursionError, MemoryError):
        return False
    return True


def _formula(text: str) -> bool:
    try:
        return _harmless(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _harmless(node: ast.expr) -> bool:
    """Whether it is a formula of + - * / and ** with small exponents, without a function of a function."""
    if isinstance(node, ast.Constant):
        return _number(node.value, LARGEST)
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, _OPERATORS) and _harmless(node.operand)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        tower = any(isinstance(part, ast.Pow) for part in ast.walk(node.left))
        return not tower and _harmless(node.left) and _exponent(node.right)
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, _OPERATORS) and _harmless(node.left) and _harmless(node.right)
    if isinstance(node, ast.Call):
        known = isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS
        nested = any(isinstance(part, ast.Call) for argument in node.args for part in ast.walk(argument))
        return known and not nested and not node.keywords and all(_harmless(argument) for argument in node.args)
    return isinstance(node, ast.Name)


def _exponent(node: ast.expr) -> bool:
    """Whether it is a harmless exponent, such as 2, -2, 1/2, x, -x or 2*x; other products could have any size."""
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, _OPERATORS) and _exponent(node.operand)
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mult, ast.Div)):
        small = isinstance(node.left, ast.Constant) and _exponent(node.left)
        wanted = ast.Name if isinstance(node.op, ast.Mult) else (ast.Name, ast.Constant)
        return small and isinstance(node.right, wanted) and _exponent(node.right)
    if isinstance(node, ast.Constant):
        return _number(node.value, HIGHEST)
    return isinstance(node, ast.Name)


def _number(value: Any, most: int) -> bool:
    return type(value) in (int, float) and abs(value) <= most
