"""Rewards that verify mathematics, JSON and code; signature and None as in `rewards.text`."""

import ast
import importlib.util
import json
import logging
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from posttrain import extras
from posttrain.data.json_values import DECODER, reject_constant
from posttrain.errors import PosttrainError
from posttrain.rewards import sandbox
from posttrain.rewards.sandbox.assertions import split_comparisons
from posttrain.rewards.text import Completion, best, references, text_of

NEEDS = {"math_equal": ("math_verify", "math-verify"), "json_schema": ("jsonschema", "jsonschema")}
_FENCE = re.compile(r"```[\w+-]*[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL)


def check(function: str, args: dict[str, Any], key: str) -> list[str]:
    """Everything wrong with the args of a function here that can be known without data."""
    module, name = NEEDS.get(function, ("json", "json"))
    if importlib.util.find_spec(module) is None:
        return [f"{key}.function: {function} needs {name}; {extras.install_command('graders')}"]
    if function == "unit_tests" and args.get("execute") is not True:
        return [f"{key}: runs code of completions in a limited subprocess; allow it with {key}.args.execute=true"]
    if function == "unit_tests":
        return sandbox.check(args, f"{key}.args") + sandbox.check_walls(args, f"{key}.args")
    if function == "json_schema":
        if (args.get("schema") is None) == (args.get("column") is None):
            return [f"{key}.args: give schema=FILE.json, or column=NAME of the column that holds each row's schema"]
        if not isinstance(args.get("schema"), (str, type(None))):
            return [f"{key}.args.schema={args['schema']}: expected a file, FILE.json"]
        try:
            if args.get("schema") is not None:
                _schema_file(args["schema"])
        except PosttrainError as error:
            return [f"{key}.args.schema={args['schema']}: {error}"]
    return []


def math_equal(completions: Sequence[Completion], column: str = "answer", **columns: Any) -> list[float | None]:
    r"""1.0 where the completion's last result equals the reference mathematically (1/2, 0.5, \frac{1}{2}), else 0.0.

    Several \boxed in one line count together, as 1 and 2 for the reference {1, 2}, and the last one alone.

    math-verify reads LaTeX and plain numbers; of GSM8K's references, the part after ####. None where the reference is
    not mathematics. Each parse and each comparison may take 3 seconds.
    """
    answers = [[a for a in row if _mathematics(a)] for row in references(columns, column)]
    return best(completions, answers, _equal)


def _equal(text: str, reference: str) -> float:
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it logs every text that takes too long
    limit, wanted = _limit(), list(_mathematics(reference))
    texts = [text] if text.count("\\boxed") < 2 else [text, text[text.rfind("\\boxed") :]]
    return float(any(verify(wanted, parse(said, parsing_timeout=limit), timeout_seconds=limit) for said in texts))


@cache
def _mathematics(reference: str) -> tuple[Any, ...]:
    """math-verify's reading of a reference; empty for none."""
    from math_verify import parse

    result = reference.split("####")[-1].strip()
    if not any(mark in result for mark in ("$", "\\(", "\\[", "\\boxed")):
        result = f"${result}$"  # math-verify finds LaTeX only between dollar signs
    return tuple(parse(result, parsing_timeout=_limit()))


def _limit() -> Any:
    """The time limit of math-verify, or None outside the main thread: it works by a signal."""
    return 3 if threading.current_thread() is threading.main_thread() else None


def json_schema(
    completions: Sequence[Completion], schema: str | None = None, column: str | None = None, **columns: Any
) -> list[float | None]:
    """1.0 where the completion as a whole is JSON that its schema accepts, else 0.0; None without a schema.

    The schema (JSON Schema, the draft by its `$schema`) is that of the file `schema`, or each row's own, as JSON text
    or an object in `column`. Its references stay within it: no other document is fetched.
    """
    validators = _validators(columns, column) if column is not None else [_schema_file(str(schema))] * len(completions)
    return [
        None if validator is None else float(_valid(validator, text_of(completion)))
        for completion, validator in zip(completions, validators, strict=True)
    ]


def _validators(columns: dict[str, Any], column: str) -> list[Any]:
    """The validator of each row's schema, None where it has none."""
    if column in columns:
        columns = {**columns, column: [json.dumps(row) if isinstance(row, dict) else row for row in columns[column]]}
    schemas = [row[0] if row else None for row in references(columns, column)]
    try:
        return [None if text is None else _validator(text) for text in schemas]
    except PosttrainError as error:
        raise PosttrainError(f"reward: the column {column!r}: {error}") from None


def check_column(function: str, columns: dict[str, Any], column: str, entry_point: str | None = None) -> None:
    """Raise `PosttrainError` for a column that a function here cannot read."""
    if function == "json_schema":
        _validators(columns, column)
    elif function == "unit_tests":
        _tests(columns, column, entry_point)


def _valid(validator: Any, text: str) -> bool:
    try:
        return _accepts(validator, json.loads(text, parse_constant=reject_constant))
    except (ValueError, RecursionError, ArithmeticError):  # ArithmeticError: a number of hundreds of digits
        return False


def _accepts(validator: Any, value: Any) -> bool:
    from referencing.exceptions import Unresolvable

    try:
        return bool(validator.is_valid(value))
    except Unresolvable as error:
        raise PosttrainError(
            f"JSON schema: $ref={error.ref} leads to nothing within it, and other documents are not fetched"
        ) from None


@cache
def _schema_file(path: str) -> Any:
    try:
        return _validator(Path(os.path.expanduser(path)).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise PosttrainError(f"cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise PosttrainError(f"cannot be read ({error})") from None


@cache
def _validator(text: str) -> Any:
    """The validator of a JSON schema; raises `PosttrainError` for an invalid schema."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for
    from referencing.jsonschema import EMPTY_REGISTRY

    try:
        schema = DECODER.decode(text)
        kind = validator_for(schema)
        kind.check_schema(schema)
    except json.JSONDecodeError as error:
        raise PosttrainError(f"not JSON: {error}") from None
    except (ValueError, RecursionError) as error:  # a key twice, NaN
        raise PosttrainError(f"no JSON schema: {error}") from None
    except SchemaError as error:
        where = "".join(f"[{step!r}]" for step in error.path)
        raise PosttrainError(f"no JSON schema: {where + ': ' if where else ''}{error.message}") from None
    validator = kind(schema, registry=EMPTY_REGISTRY)  # the default one would fetch what references name
    values: tuple[Any, ...] = (None, 0, "", [], {})
    try:
        for value in values:  # finds most references that cannot be resolved
            _accepts(validator, value)
    except RecursionError:
        raise PosttrainError("no JSON schema: a $ref leads back to itself") from None
    return validator


def unit_tests(
    completions: Sequence[Completion],
    column: str = "tests",
    entry_point: str | None = None,
    every: bool = False,
    execute: bool = False,
    seconds: float = 10,
    memory: int = 1 << 30,
    packages: bool = False,
    walls: str = "full",
    **columns: Any,
) -> list[float | None]:
    """The share of a row's tests that the completion's code passes; with `every`, 1.0 for all of them, else 0.0.

    The code is the last ``` block, or all of the text. A test is Python that raises where the code is wrong (an
    assertion), run after the code in its own limited subprocess (`posttrain.rewards.sandbox`: `seconds`, `memory`
    in bytes, `packages`). Assertions of equality with a literal are compared out of the code's reach
    (`posttrain.rewards.sandbox.assertions`). HumanEval's tests define `check(candidate)`: `entry_point` is the column
    with the name of the function to give it. A list of tests may be in a string, as JSON or as Python prints it, as in
    a cell of a CSV file. None without tests. Raises `PosttrainError` without `execute`,
    and where the system lacks a wall of the sandbox unless `walls` is `reduced`.
    """
    if execute is not True:
        raise PosttrainError("reward unit_tests: runs code of completions; allow it with execute=true")
    sandbox.require_walls("reward.unit_tests.args.walls", walls)
    tests = _tests(columns, column, entry_point)
    calls: list[tuple[str, str, list[Any]]] = []
    expected: list[list[str]] = []
    for completion, row in zip(completions, tests, strict=True):
        code = code_of(text_of(completion))
        for test in row:
            source, values = split_comparisons(test)
            calls.append((f"{code}\n\n{source}\n\ndef passed(): return __posttrain['noted']", "passed", []))
            expected.append(values)
    outcomes = sandbox.run_all(calls, sandbox.Limits(seconds, memory, packages=packages))
    passed = iter([outcome.value == values for outcome, values in zip(outcomes, expected, strict=True)])
    shares = [[next(passed) for _ in row] for row in tests]
    return [None if not row else float(all(row)) if every else sum(row) / len(row) for row in shares]


def _tests(columns: dict[str, Any], column: str, entry_point: str | None) -> list[list[str]]:
    """The tests of each row, with the call of `check` where the row has an entry point.

    Raises `PosttrainError` for one that is no code, or that would pass whatever the code does.
    """
    rows = references(columns, column)
    names = references(columns, entry_point) if entry_point else [[]] * len(rows)
    asked = [f"\ncheck({name[0]})" if name else "" for name in names]
    return [[_test(test, call, column) for test in _listed(row)] for row, call in zip(rows, asked, strict=True)]


def _listed(row: list[Any]) -> list[Any]:
    """The tests of a row that are not blank, out of a string that lists them."""
    if len(row) == 1 and isinstance(row[0], str) and row[0].lstrip().startswith("["):
        for read in (json.loads, ast.literal_eval):
            with suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                row = read(row[0])
                break
    return [test for test in row if not isinstance(test, str) or test.strip()]


def _test(test: Any, call: str, column: str) -> str:
    wrong = _nothing_tested(test + call) if isinstance(test, str) else _NO_TEST
    if wrong is not None:
        raise PosttrainError(f"reward: the column {column!r} holds {test!r:.80}; {wrong}")
    return str(test + call)


_NO_TEST = "a test is Python code, as text, with an assert"
_TESTING = (ast.Assert, ast.Raise, ast.Call)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def _nothing_tested(test: str) -> str | None:
    """Why any code would pass it: it is a value, such as inputs and outputs as JSON, or its assertions never run."""
    try:
        tree = ast.parse(test)
        if any(isinstance(node, _TESTING) for node in _running(tree)):
            return None
        for node in tree.body:
            if isinstance(node, (*_FUNCTIONS, ast.ClassDef)) and any(isinstance(n, _TESTING) for n in ast.walk(node)):
                entry = "set args.entry_point to the column that names the function to test in each row, or "
                return f"nothing calls `{node.name}`; {entry if node.name == 'check' else ''}call it in the test"
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None  # fails as it is
    return _NO_TEST


def _running(tree: ast.Module) -> Iterator[ast.AST]:
    """The nodes that run: of a function only where it is called, and then its body instead of the call.

    What stands below `if __name__ == "__main__"` does not run in the sandbox.
    """
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, _FUNCTIONS)}
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                continue
            case ast.If(ast.Compare(ast.Name("__name__"), [ast.Eq()])):
                pending += node.orelse
                continue
            case ast.Call(ast.Name(name)) if name in functions:
                pending += functions[name].body
                functions[name].body = []
            case _:
                yield node
        pending += ast.iter_child_nodes(node)


def code_of(text: str) -> str:
    """The last block between ``` marks, closed or not, or all of the text."""
    blocks = _FENCE.findall(text)
    return str(blocks[-1]) if blocks else text
