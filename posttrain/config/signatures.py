"""The options of a config class without annotated fields."""

import ast
from typing import Any


def defaults(node: ast.ClassDef) -> dict[str, Any]:
    """The arguments of the class's own `__init__` that have defaults, with these."""
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is None:
        return {}
    names = [a.arg for a in init.args.args[1:]]
    values = [ast.literal_eval(d) for d in init.args.defaults]
    return dict(zip(names[len(names) - len(values) :], values, strict=True))
