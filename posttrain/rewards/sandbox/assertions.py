"""Assertions rewritten so that the code under test cannot make them pass.

Code that is judged in its own interpreter can forge the verdict: by an object that equals everything, or by writing the
result itself and ending the process. So of `assert EXPRESSION == LITERAL`, the process gets the expression only. It
returns the value as text, and this module compares that with the text of the literal, which the code never sees.
"""

import ast
import inspect
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache

# What literal_eval raises for what is no literal, or no value.
_NONE = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError)


@lru_cache(maxsize=4096)
def split_comparisons(test: str) -> tuple[str, list[str]]:
    """`test` with each assertion `EXPRESSION == LITERAL` replaced by a record of the expression; the literals' texts.

    Only assertions that run once and in order are replaced: at the top level, and in a function `check` called there.
    After the returned source has run, `__posttrain['noted']` has the texts of the expressions (see `canonical`).
    """
    expected = []
    with suppress(*_NONE):
        tree = ast.parse(test)
        for assertion in _assertions(tree):
            if (found := _compared(assertion.test)) is not None:
                left, literal = found
                note = ast.parse("__posttrain['note']", mode="eval").body
                assertion.test, assertion.msg = ast.Call(note, [left], []), None
                expected.append(literal)
        test = ast.unparse(tree)
    return f"__posttrain = {{}}\nexec({_noting()!r}, __posttrain)\n{test}", expected


def _assertions(tree: ast.Module) -> Iterator[ast.Assert]:
    named = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "check"]
    checks = [one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name == "check"]
    for statement in tree.body:
        if isinstance(statement, ast.Assert):
            yield statement
        match statement:
            case ast.Expr(ast.Call(ast.Name("check"))) if len(named) == len(checks) == 1:
                if not any(isinstance(node, (ast.Return, ast.Yield, ast.YieldFrom)) for node in ast.walk(checks[0])):
                    yield from (one for one in checks[0].body if isinstance(one, ast.Assert))


def _compared(test: ast.expr) -> tuple[ast.expr, str] | None:
    """The expression, and the text of the literal that it must equal; `None` for other assertions."""
    match test:
        case ast.Compare(left, [ast.Eq()], [right]):
            for literal, other in ((right, left), (left, right)):
                with suppress(*_NONE):
                    return other, canonical(ast.literal_eval(literal))
    return None


def canonical(value: object) -> str:
    """A text that is the same for equal plain values only: for 1, 1.0 and True; for dicts in any order.

    A subclass has the text of its base, as a Counter equals a dict; a numpy value has that of the Python value.
    Raises `TypeError` for anything else. It uses no other function: its source also runs inside the sandbox.
    """
    if callable(plain := getattr(value, "tolist", None)):
        value = plain()
    from decimal import Decimal
    from fractions import Fraction

    if isinstance(value, (Decimal, Fraction)):
        value = int(value) if value == int(value) else float(value) if value == float(value) else f"number {value}"
    if isinstance(value, complex) and not value.imag:
        value = value.real
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    for kind in (int, float, complex, str, bytes):
        if isinstance(value, kind):
            return kind.__repr__(value)
    if isinstance(value, bytearray):
        return repr(bytes(value))
    if isinstance(value, dict):
        return "{" + ",".join(sorted(f"{canonical(key)}:{canonical(one)}" for key, one in value.items())) + "}"
    if isinstance(value, (set, frozenset, type({}.keys()), type({}.items()))):
        return "set(" + ",".join(sorted(map(canonical, value))) + ")"
    if isinstance(value, (list, tuple)):
        first, last = "[]" if isinstance(value, list) else "()"
        return first + ",".join(map(canonical, value)) + last
    if value is None or value is ...:
        return repr(value)
    raise TypeError(f"{type(value).__name__} is no plain value, and is compared with one")


def _noting() -> str:
    lines = ("noted = []", "def note(value):", "    noted.append(canonical(value))", "    return True")
    return "\n".join((inspect.getsource(canonical), *lines))
