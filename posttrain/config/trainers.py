"""The trainers that a recipe can select, and their properties, read from their classes.

Nothing is imported: signature, config class, the columns it reads and whether it keeps a reference are in the source
of the class and of those that it inherits from. So a trainer of a newer TRL, or one of the user's own that follows
TRL's conventions, needs no entry here.
"""

import ast
from dataclasses import dataclass
from functools import cache
from typing import Any

from posttrain.config import classes, options
from posttrain.config.classes import Source
from posttrain.config.schema import Run, TrainerConfig
from posttrain.errors import PosttrainError

# Classes that end a lineage.
BASE_CLASSES = ("_BaseTrainer", "Trainer")


@dataclass(frozen=True)
class Kind:
    """A trainer. `path` and `config` are dotted paths of its class and of its config class.

    `parameters` are those of its `__init__`, `lineage` the names of its class and of those that it inherits from.
    `reads` says which rows it takes (a key of `posttrain.data.formats.ACCEPTS`), `renders` whether it applies the chat
    template by mapping its data set. `reference` is whether it compares the policy with a frozen one, `base_reference`
    whether that is always the model without an adapter. `evaluates` is whether it has a loss on held-out rows,
    `own_attention` whether it needs its own attention implementation.
    """

    name: str
    path: str
    config: str
    parameters: frozenset[str]
    lineage: tuple[str, ...]
    reads: str
    renders: bool
    reference: bool
    base_reference: bool
    evaluates: bool
    own_attention: bool

    def is_a(self, *trainers: str) -> bool:
        """Whether it is, or inherits from, one of the classes with these names."""
        return bool(set(trainers) & set(self.lineage))

    @property
    def takes_rewards(self) -> bool:
        """Whether rewards come from outside."""
        return "reward_funcs" in self.parameters

    @property
    def samples_completions(self) -> bool:
        """Whether its rows are prompts, which the policy itself answers."""
        return self.reads in ("prompts", "advised")

    @property
    def has_teacher(self) -> bool:
        """Whether it distils a teacher model."""
        return "teacher_model" in self.parameters

    @property
    def scores(self) -> bool:
        """Whether it trains a model that scores texts, not one that writes them."""
        return self.is_a("RewardTrainer")

    @property
    def weights_pairs(self) -> bool:
        """Whether it learns by a pair's weight (`posttrain.training.pair_weights`)."""
        return self.is_a("RewardTrainer", "DPOTrainer")

    @property
    def generations(self) -> int | None:
        return self.default("num_generations")

    def default(self, option: str) -> Any:
        """The default of an option; `None` where there is no such option."""
        found = options.options_of(self.config).get(option)
        return found.default if found else None

    def has(self, *names: str) -> bool:
        """Whether it has one of these options."""
        return not options.options_of(self.config).keys().isdisjoint(names)


@cache
def find(name: str) -> Kind | None:
    """The trainer of this name, or at this path; `None` where there is none."""
    path = classes.trainer_path(name)
    source = classes.find(path)
    if source is None or (config := _config(source)) is None:
        return None
    lineage = _lineage(source)
    code = [node for one in lineage for node in ast.walk(one.node)]
    named = {node.attr for node in code if isinstance(node, ast.Attribute)}
    methods = {node.name for node in code if isinstance(node, ast.FunctionDef)}
    texts = {node.value for node in code if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    keywords = {node.arg for node in code if isinstance(node, ast.keyword)}
    return Kind(
        name,
        path,
        config.path,
        frozenset(parameters(source)),
        tuple(one.name for one in lineage),
        _reads(lineage, set(parameters(source))),
        renders=any(_maps(node, "maybe_apply_chat_template") for node in code),
        reference=bool({"ref_model", "disable_adapter"} & named),
        base_reference="disable_adapter" in named and "ref" not in texts,
        # One that makes its rows in the training step has nothing to evaluate.
        evaluates="eval_dataset" in parameters(source)
        and ("training_step" not in methods or bool({"prediction_step", "compute_loss", "_prepare_inputs"} & methods)),
        # Others read it from the policy, for a second model.
        own_attention="attn_implementation" in texts | keywords and "_attn_implementation" not in named,
    )


def of(name: str) -> Kind:
    """The trainer of this name, or at this path; raises `PosttrainError` where there is none."""
    if (found := find(name)) is None:
        from posttrain.config import trainer_names

        raise PosttrainError(trainer_names.unknown(name))
    return found


def _lineage(source: Source) -> list[Source]:
    return [
        one for one in source.lineage() if one.name not in BASE_CLASSES and not one.module.startswith("transformers.")
    ]


def _init(source: Source) -> ast.FunctionDef | None:
    return next((n for n in source.node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)


def parameters(source: Source) -> list[str]:
    """The parameters of a class's `__init__`; also its bases', where it passes further arguments on."""
    init = _init(source)
    inherited = [name for base in source.bases() if base.name not in BASE_CLASSES for name in parameters(base)]
    if init is None:
        return inherited
    own = [arg.arg for arg in (*init.args.args[1:], *init.args.kwonlyargs)]
    return own + (inherited if init.args.kwarg else [])


def _config(source: Source) -> Source | None:
    """The config class: as `args` is annotated, or else XConfig of XTrainer; a base's where it has neither."""
    init = _init(source)
    for arg in init.args.args if init else ():
        for node in ast.walk(arg.annotation) if arg.arg == "args" and arg.annotation else ():
            name = node.id if isinstance(node, ast.Name) else node.value if isinstance(node, ast.Constant) else None
            if isinstance(name, str) and name.endswith("Config") and (found := source.resolve_class(name)):
                return found
    if found := source.resolve_class(source.name.removesuffix("Trainer") + "Config"):
        return found
    return next((found for base in source.bases() if (found := _config(base))), None)


def _reads(lineage: list[Source], parameters: set[str]) -> str:
    """Which rows the trainer takes, judged by the columns that its source and its bases' sources read from a row."""
    asked, kept = set(), []
    for one in lineage:
        for node in ast.walk(one.tree):
            asked |= _columns_read(node)
            target = node.targets[0] if isinstance(node, ast.Assign) else None
            if isinstance(node, ast.Assign) and getattr(target, "attr", None) == "_signature_columns":
                kept.append({n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant)})
    if {"reward_funcs", "rollout_worker"} & parameters:
        return "prompts"
    for columns in kept:
        # The columns hold a prompt and no answer, so the policy answers it.
        if "prompt" in columns and not columns & {"completion", "chosen", "messages"}:
            return "advised" if "privileged_context" in columns else "prompts"
    if "teacher_model" in parameters:
        return "messages"
    if {"completion", "label"} <= asked:
        return "labels"
    if {"chosen", "rejected"} <= asked:
        return "triples" if "reference" in asked else "pairs"
    return "text"


def _columns_read(node: ast.AST) -> set[str]:
    """The columns that code reads from a row: row["x"], "x" in row, row.get("x")."""
    found: list[ast.expr] = []
    if isinstance(node, ast.Subscript):
        found = [node.slice]
    elif isinstance(node, ast.Compare):
        found = [node.left]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
        found = node.args[:1]
    return {n.value for n in found if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def _maps(node: ast.AST, function: str) -> bool:
    """Whether this is dataset.map(function, ...)."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "map"):
        return False
    return any(isinstance(given, ast.Name) and given.id == function for given in node.args)


def is_ppo(run: Run) -> bool:
    """Whether the run's trainer keeps PPO's roles on the policy's base."""
    return of(run.trainer.kind).is_a("PPOTrainer")


def shows_row_tools(trainer: TrainerConfig) -> bool:
    """Whether each prompt can be rendered with the tools of its row: by GRPO and RLOO, unless they have their own."""
    own = trainer.tools or trainer.environment or trainer.rollout
    return of(trainer.kind).is_a("GRPOTrainer", "RLOOTrainer") and not own


def value_adapter(run: Run) -> bool:
    """Whether the run trains a value function that is a separate adapter."""
    return is_ppo(run) and run.trainer.args.get("value_mode", "adapter") == "adapter"
