"""The options of a config class: names, types, defaults and choices, read from its source (`posttrain.config.classes`).

Dataclass fields for the config classes of trainers and adapters, the `__init__` signature for others.
"""

import ast
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from posttrain.config import ranges
from posttrain.config.classes import Source, find

# Classes that are no trainer's config.
LORA, QUANTIZATION = "peft.LoraConfig", "transformers.BitsAndBytesConfig"
# Names that need no path, besides TRL's.
SHORT_NAMES = {
    "LoraConfig": LORA,
    "BitsAndBytesConfig": QUANTIZATION,
    "TrainingArguments": "transformers.TrainingArguments",
    "PPOConfig": "posttrain.ppo.PPOConfig",
}

# Choices that the libraries state in prose only, and check after the weights are loaded.
CHOICES: dict[str, dict[str, tuple[Any, ...]]] = {
    "DPOConfig": {
        "loss_type": (
            *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot"),
            *("aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
        ),
        "f_divergence_type": ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
    },
    "GRPOConfig": {
        "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
        "importance_sampling_level": ("token", "sequence"),
        "scale_rewards": ("group", "batch", "none", True, False),
        "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
        "vllm_mode": ("server", "colocate"),
        "vllm_model_impl": ("transformers", "vllm"),
    },
    "TrainingArguments": {
        **dict.fromkeys(
            ("log_level", "log_level_replica"),
            ("detail", "debug", "info", "warning", "error", "critical", "passive"),
        ),
        "torch_compile_mode": ("default", "lite", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    },
    "RLOOConfig": {"vllm_mode": ("server", "colocate"), "vllm_model_impl": ("transformers", "vllm")},
    "LoraConfig": {"bias": ("none", "all", "lora_only")},
    "BitsAndBytesConfig": {
        "bnb_4bit_quant_type": ("nf4", "fp4"),
        "bnb_4bit_compute_dtype": ("bfloat16", "float16", "float32"),
        "bnb_4bit_quant_storage": ("uint8", "bfloat16", "float16", "float32"),
    },
}


class Expression(str):
    """The source text of a default that is computed when the library is imported."""


@dataclass(frozen=True)
class Option:
    """One option: the type its value must have, the values it may take where the library lists them, its default and
    the library's help text. `default` is an `Expression` where the source has no literal."""

    type: Any
    choices: tuple[Any, ...] | None = None
    default: Any = None
    help: str | None = None

    @property
    def type_name(self) -> str:
        """The type as a person reads it."""
        return _type_name(self.type)


def check(cls: str, options: dict[str, Any], path: str, reserved: dict[str, str] | None = None) -> list[str]:
    """Everything wrong with `options` for the class at `cls`, one message each; empty when all is well.

    `cls` is a dotted path; `path` is where the options are in the config (`trainer.args`); `reserved`
    maps options that posttrain sets itself to the config key to use instead.
    """
    known, short, errors = options_of(cls), cls.rpartition(".")[2], []
    for name, value in options.items():
        if reserved and name in reserved:
            errors.append(f"{path}.{name}: set by posttrain; {reserved[name]}")
        elif name not in known:
            from posttrain.config import hints

            errors.append(f"{path}.{name}: {hints.unknown_option(short, name, known)}")
        elif problem := _problem(known[name], value) or ranges.problem(short, name, value):
            errors.append(f"{path}.{name}={value!r}: {problem}")
    return errors


def as_typed(cls: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with integers as floats where the library wants floats; it may refuse, or miscount, integers."""
    known = options_of(cls)
    return {
        name: float(value)
        if type(value) is int and name in known and known[name].type in (float, float | None)
        else value
        for name, value in options.items()
    }


def _problem(option: Option, value: Any) -> str | None:
    if option.choices is not None:
        if value is None and check_type(option, None):
            return f"leave it out, or choose from {', '.join(map(str, option.choices))}"
        for one in value if isinstance(value, list) and "list[" in str(option.type) else [value]:
            if one is not None and one not in option.choices:
                from posttrain.config.suggestions import choose

                return choose(one, option.choices)
        return None
    return check_type(option, value)


def check_type(option: Option, value: Any) -> str | None:
    """What is wrong with the type of a value."""
    from pydantic import PydanticUserError, TypeAdapter, ValidationError

    try:
        # JSON mode: strict about types, yet a YAML list is fine for a tuple.
        TypeAdapter(option.type).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        return f"expected {_type_name(option.type)} ({error.errors()[0]['msg'].lower()})"
    except PydanticUserError:
        return None  # JSON has no value of this type
    except (TypeError, ValueError):
        return f"expected {_type_name(option.type)}"
    return None


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


@cache
def options_of(cls: str) -> dict[str, Option]:
    """Name -> `Option` of every option of the class at the dotted path `cls`, inherited ones included."""
    return _options(source_of(cls))


def _options(cls: Source) -> dict[str, Option]:
    found: dict[str, Option] = {}
    for base in reversed(cls.bases()):
        found |= options_of(base.path)
    fields = [n for n in cls.node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    for field in fields:
        assert isinstance(field.target, ast.Name)
        if _initialised(field):
            stated, type_ = _metadata(field), _evaluate(field.annotation, cls)
            found[field.target.id] = Option(type_, stated.get("choices"), _default(field), stated.get("help"))
    if not fields:
        from posttrain.config import signatures

        given = signatures.defaults(cls.node).items()
        found = {n: Option(Any if d is None else type(d), default=d) for n, d in given} or found
    for name, values in CHOICES.get(cls.name, {}).items():
        if name in found:
            found[name] = replace(found[name], choices=values)
    literal = {n: typing.get_args(o.type) for n, o in found.items() if typing.get_origin(o.type) is typing.Literal}
    return found | {name: replace(found[name], choices=values) for name, values in literal.items()}


def source_of(cls: str) -> Source:
    """The class at the dotted path `cls` (TRL's without `trl.`), from the installed library, without importing it."""
    cls = cls if "." in cls else SHORT_NAMES.get(cls, f"trl.{cls}")
    if (found := find(cls)) is None:
        package = cls.partition(".")[0]
        raise ModuleNotFoundError(
            f"{cls}: not in the installed {package}; run `make install`, or pip install {package}"
        )
    return found


def _keywords(field: ast.AnnAssign) -> dict[str, ast.expr]:
    return {k.arg: k.value for k in field.value.keywords if k.arg} if isinstance(field.value, ast.Call) else {}


def _initialised(field: ast.AnnAssign) -> bool:
    return not (isinstance(off := _keywords(field).get("init"), ast.Constant) and off.value is False)


def _metadata(field: ast.AnnAssign) -> dict[str, Any]:
    """`choices` and `help` of a dataclass field."""
    found: dict[str, Any] = {}
    metadata = _keywords(field).get("metadata")
    if isinstance(metadata, ast.Dict):
        for key, value in zip(metadata.keys, metadata.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "choices" and isinstance(value, ast.List):
                found["choices"] = tuple(ast.literal_eval(value))
            elif isinstance(key, ast.Constant) and key.value == "help" and (text := _string_literal(value)):
                found["help"] = text
    return found


def _string_literal(node: ast.expr) -> str | None:
    """A string literal, or several that are added."""
    if isinstance(node, ast.BinOp) and (left := _string_literal(node.left)) and (right := _string_literal(node.right)):
        return left + right
    return _text(node)


def _default(field: ast.AnnAssign) -> Any:
    """The default of a dataclass field: its value, or the source text of an expression."""
    node: ast.expr | None = field.value
    if isinstance(node, ast.Call):
        keywords = _keywords(field)
        node = keywords.get("default", keywords.get("default_factory"))
        if isinstance(node, ast.Lambda):
            node = node.body
    if node is None:
        return None
    try:
        return ast.literal_eval(node)
    except ValueError:
        return Expression(ast.unparse(node))


def _text(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


# Names that an annotation may use.
TYPES = {name: getattr(typing, name) for name in typing.__all__} | {"typing": typing}
TYPES |= {type_.__name__: type_ for type_ in (bool, int, float, str, list, dict, tuple, set, type(None))}


def _evaluate(annotation: ast.expr, cls: Source) -> Any:
    """The type that an annotation means; enumerations become literals of their values, all else `Any`."""
    text = str(annotation.value) if isinstance(annotation, ast.Constant) else ast.unparse(annotation)
    if "_[" in text:  # a pattern written as a literal: "pissa_niter_[number of iters]"
        return bool | str
    try:
        tree = ast.parse(text, mode="eval")
        # Names and subscripts only; an annotation with a call in it is not evaluated.
        if any(isinstance(n, ast.Call) for n in ast.walk(tree)):
            return Any
        used = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name)]
        enumerations = {name: found for name in used if name not in TYPES and (found := _enumeration(name, cls))}
        names = {**dict.fromkeys(used, Any), **TYPES, **enumerations}
        if enumerations and isinstance(annotation, ast.BinOp):
            # `SchedulerType | str` accepts any string, and Transformers rejects the unknown ones much later.
            return typing.Union[tuple(names[name] for name in used if name != "str")]  # noqa: UP007 - built from values
        return eval(text, {"__builtins__": {}}, names)
    except Exception:
        return Any


def _enumeration(name: str, cls: Source) -> Any:
    """The literal of an enumeration's values; `None` for another class."""
    found = cls.resolve_class(name)
    values = [text for n in found.node.body if isinstance(n, ast.Assign) and (text := _text(n.value))] if found else []
    return typing.Literal[tuple(values)] if values else None
