"""Formulas over the scores of graders, `0.8 * exact + 0.2 * max(close, 0)`: parsed, never executed as code."""

import ast
import math
import operator
from collections.abc import Mapping
from typing import Any

from posttrain.config.suggestions import did_you_mean

DEEPEST = 200  # operations within one another; `_value` calls itself for each
_OPERATORS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_SIGNS: dict[type, Any] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
# name -> function and number of arguments, None for one or more
_FUNCTIONS: dict[str, tuple[Any, int | None]] = {
    "min": (lambda *scores: min(scores), None),
    "max": (lambda *scores: max(scores), None),
    "abs": (abs, 1),
    "floor": (math.floor, 1),
    "ceil": (math.ceil, 1),
    "exp": (math.exp, 1),
    "sqrt": (math.sqrt, 1),
    "log": (math.log, 1),
}


def parse(text: str, names: list[str]) -> ast.expr:
    """The formula's tree; raises `ValueError` for anything but numbers, `names`, + - * / ^, and known functions."""
    try:
        # ^ is the power of a formula, ** that of Python; no other operator here contains ^.
        tree = ast.parse(" ".join(text.replace("^", "**").split()), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"is no formula ({getattr(error, 'msg', None) or error})") from None
    _check(tree, names)
    return tree


def evaluate(tree: ast.expr, values: Mapping[str, float]) -> float:
    """The formula's number; raises `ArithmeticError` or `ValueError` where it has none, as for log(0)."""
    result = _value(tree, values)
    if not math.isfinite(result):
        raise ValueError(f"gives {result}")
    return result


def _check(node: ast.expr, names: list[str], left: int = DEEPEST) -> None:
    inner: list[ast.expr] = []
    if not left:
        raise ValueError(f"more than {DEEPEST} operations within one another")
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        inner = [node.left, node.right]
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _SIGNS:
        inner = [node.operand]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        if node.func.id not in _FUNCTIONS:
            raise ValueError(f"{node.func.id}: {_near(node.func.id, list(_FUNCTIONS), 'functions')}")
        wanted = _FUNCTIONS[node.func.id][1]
        if (wanted is not None and len(node.args) != wanted) or not node.args:
            raise ValueError(f"{node.func.id}: takes {wanted or 'at least 1'}, given {len(node.args)}")
        inner = node.args
    elif isinstance(node, ast.Name):
        if node.id not in names:
            raise ValueError(f"{node.id}: {_near(node.id, names, 'graders')}")
    elif not (isinstance(node, ast.Constant) and type(node.value) in (int, float)):
        raise ValueError(f"{ast.unparse(node)}: not of a formula; write numbers, + - * / ^, {', '.join(_FUNCTIONS)}")
    for part in inner:
        _check(part, names, left - 1)


def _near(name: str, known: list[str], what: str) -> str:
    return did_you_mean(name, known, 1, f"the {what} are {', '.join(known)}")


def _value(node: ast.expr, values: Mapping[str, float]) -> float:
    """Floats at every step: they overflow with an error, where integers would grow without end."""
    if isinstance(node, ast.BinOp):
        result = _OPERATORS[type(node.op)](_value(node.left, values), _value(node.right, values))
    elif isinstance(node, ast.UnaryOp):
        result = _SIGNS[type(node.op)](_value(node.operand, values))
    elif isinstance(node, ast.Call):
        assert isinstance(node.func, ast.Name)
        result = _FUNCTIONS[node.func.id][0](*(_value(argument, values) for argument in node.args))
    elif isinstance(node, ast.Name):
        result = values[node.id]
    else:
        assert isinstance(node, ast.Constant)
        result = node.value
    if isinstance(result, complex):  # a negative number to a power that is not whole
        raise ValueError(f"gives {result}")
    return float(result)
