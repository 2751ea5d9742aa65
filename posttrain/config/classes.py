"""Classes of installed packages, read from their source: parsed, never imported or executed.

Importing `trl` takes some seconds, and a misspelt option should be answered in one.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from posttrain.errors import PosttrainError

# Trainers of this project; all others are TRL's, or are given by their path.
OWN_TRAINERS = {"ppo": "posttrain.ppo.PPOTrainer"}
# Where TRL's trainers lie.
TRL = ("trl.trainer", "trl.experimental")


@dataclass(frozen=True)
class Source:
    """A class as the source file of `module` defines it."""

    module: str
    node: ast.ClassDef

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def tree(self) -> ast.Module:
        """The whole file, parsed."""
        return _tree(self.module)

    def resolve_class(self, name: str) -> Source | None:
        """The class that `name` means where this one is defined; `None` where it is no class of a Python file."""
        return _resolve(self.module, name)

    def bases(self) -> list[Source]:
        """The classes that it inherits from, as far as they have a file."""
        found = (_resolve(self.module, ast.unparse(base)) for base in self.node.bases)
        return [base for base in found if base is not None]

    def lineage(self) -> list[Source]:
        """The class itself, then its bases, depth first."""
        found = {self.path: self}
        for base in self.bases():
            found |= {one.path: one for one in base.lineage() if one.path not in found}
        return list(found.values())


def find(path: str) -> Source | None:
    """The class at `package.module.Name`, also where that module imports it from another; `None` if there is none."""
    module, _, name = path.rpartition(".")
    return _resolve(module, name) if module else None


def package_folder(package: str) -> Path | None:
    """Where the modules of an installed package lie."""
    spec = importlib.util.find_spec(package.partition(".")[0])
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places)), *package.split(".")[1:]) if places else None


def trainer_path(name: str) -> str:
    """The path of the trainer called `name`, this project's or TRL's; else `name`, which may be a path."""
    return OWN_TRAINERS.get(name) or in_trl(name) or name


def in_trl(name: str) -> str | None:
    """The path of TRL's trainer `name`: a file `NAME_trainer.py`, or a folder among the experimental ones."""
    if not name.isidentifier():
        return None
    for package, pattern in ((TRL[0], f"{name}_trainer.py"), (f"{TRL[1]}.{name}", "*_trainer.py")):
        folder = package_folder(package)
        for file in sorted(folder.glob(pattern)) if folder else []:
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and re.fullmatch(r"[^_]\w*Trainer", node.name):
                    return f"{'trl' if package == TRL[0] else package}.{node.name}"
    return None


@cache
def _resolve(module: str, name: str, asked: frozenset[str] = frozenset()) -> Source | None:
    """The class that `name`, also `package.Name`, means in `module`; `asked` are the modules that import it so."""
    if module in asked or _file(module) is None:
        return None
    head, dot, rest = name.rpartition(".")
    for node in _body(_tree(module).body):
        if isinstance(node, ast.Import) and dot:
            for alias in node.names:
                bound = alias.asname or alias.name
                if f"{head}.".startswith(f"{bound}."):
                    return _resolve(alias.name + head.removeprefix(bound), rest)
        if isinstance(node, ast.ClassDef) and node.name == name:
            return Source(module, node)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name and (there := _absolute(module, node)) != module:
                    return _resolve(there, alias.name, asked | {module})
    return None


def _body(nodes: list[ast.stmt]) -> list[ast.stmt]:
    """Statements of a module, those under `if` (TYPE_CHECKING among them) and `try` as well."""
    found = []
    for node in nodes:
        found.append(node)
        if isinstance(node, (ast.If, ast.Try)):
            found += _body([*node.body, *node.orelse])
    return found


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    file = _file(module)
    parts = module.split(".")
    inside = node.level - 1 if file is not None and file.name == "__init__.py" else node.level
    return ".".join([*parts[: len(parts) - inside], *([node.module] if node.module else [])])


@cache
def _file(module: str) -> Path | None:
    top, *_ = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        # A module of one file; built-in ones have no source.
        alone = Path(spec.origin) if spec and spec.origin and module == top else None
        return alone if alone is not None and alone.suffix == ".py" else None
    for place in spec.submodule_search_locations:
        path = Path(place, *module.split(".")[1:])
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                return file
    return None


@cache
def _tree(module: str) -> ast.Module:
    file = _file(module)
    assert file is not None
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PosttrainError(f"{file}: cannot be read as a Python file: {error}") from error
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        at = f":{line}" if line else ""
        raise PosttrainError(f"{file}{at}: {getattr(error, 'msg', error)}") from error
