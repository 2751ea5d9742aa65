"""Other arguments of a trainer: a teacher, tools, an environment, a rollout, callbacks.

Tools, environment, rollout and callbacks are the user's own code, and run with the rights of the training.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from posttrain.config import classes, code, options, trainer_names, trainers
from posttrain.config.schema import Run
from posttrain.errors import PosttrainError, RewardError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from posttrain.runs.lineage import Source

# Setting -> the trainer's parameter that takes it.
PARAMETERS = {"tools": "tools", "environment": "environment_factory", "rollout": "rollout_func"}
# Keys that a rollout must return, each a list with an entry per prompt.
ROLLED_OUT = ("prompt_ids", "completion_ids", "logprobs")


def check(run: Run) -> Iterator[str]:
    """Everything wrong with these arguments that can be known without a model; imports the user's own modules."""
    kind = trainers.of(run.trainer.kind)
    for setting, parameter in PARAMETERS.items():
        given = getattr(run.trainer, setting)
        if given and parameter not in kind.parameters:
            able = [name for name in trainer_names.names() if parameter in trainers.of(name).parameters]
            yield f"trainer.{setting}: {kind.name} takes none; choose trainer={' or '.join(able)}"
        for path in given if isinstance(given, list) else [given] if given else []:
            try:
                wrong = _misfit(setting, code.load(path))
            except ValueError as error:
                wrong = str(error)
            if wrong:
                yield f"trainer.{setting}={path}: {wrong}"
    names = [path.rpartition(".")[2] for path in run.trainer.tools if isinstance(path, str)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        yield f"trainer.tools: several are called {twice}, by which the policy calls them; keep one"
    teacher = run.trainer.teacher
    yield from options.check(options.QUANTIZATION, teacher.quantization, "trainer.teacher.quantization")
    if kind.has_teacher and not teacher.model:
        yield f"trainer.teacher.model: {kind.name} learns from a teacher; set it to a hub id, a folder or a RUN"
    if teacher.model and not kind.has_teacher:
        able = [name for name in trainer_names.names() if trainers.of(name).has_teacher]
        yield f"trainer.teacher.model: {kind.name} has no teacher; choose trainer={' or '.join(able)}"
    yield from [wrong for entry in run.trainer.callbacks if (wrong := _check_callback(entry, run))]


def check_template(run: Run, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `PosttrainError` where tool calls cannot be parsed from the policy's answers."""
    from trl.chat_template_utils import add_response_schema

    known = getattr(tokenizer, "response_template", None) or getattr(tokenizer, "response_schema", None)
    if known is not None:
        return
    try:
        add_response_schema(copy.copy(tokenizer))
    except ValueError:
        setting = "tools" if run.trainer.tools else "environment"
        raise PosttrainError(
            f"trainer.{setting}: TRL cannot read calls of tools from the chat template of model.path={run.model.path}; "
            "set model.chat_template to one that it can, such as trl:qwen2_5 or trl:qwen3"
        ) from None


def _check_callback(entry: Any, run: Run) -> str | None:
    try:
        path, args = _callback(entry)
    except ValueError as error:
        return f"trainer.callbacks: {error}"
    source = classes.find(path)
    if source is None:
        return f"trainer.callbacks={path}: no such class (package.module.Class, importable from here)"
    lineage = {one.name for one in source.lineage()}
    if "BEMACallback" in lineage and run.peft.method != "none":
        return f"trainer.callbacks={path}: it averages all weights of a model, and an adapter is trained; set peft=none"
    if "EarlyStoppingCallback" in lineage and not run.trainer.args.get("metric_for_best_model"):
        return (
            f"trainer.callbacks={path}: watches a metric; set trainer.args.metric_for_best_model=eval_loss, or another"
        )
    known = trainers.parameters(source)
    wrong = [name for name in args if name not in known]
    return f"trainer.callbacks.{path}.{wrong[0]}: takes {', '.join(known) or 'no arguments'}" if wrong else None


def _callback(entry: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, dict) and len(entry) == 1 and isinstance(args := next(iter(entry.values())), dict):
        return next(iter(entry)), args
    raise ValueError(f"expected package.module.Class or {{package.module.Class: {{arg: value}}}}, got {entry!r}")


def _misfit(setting: str, function: Any) -> str | None:
    """Why the trainer could not use it: a rollout is called with prompts and trainer, an environment with nothing."""
    if setting == "rollout" and (wrong := code.misfit(function, [], None)):
        return f"is called as f(prompts, trainer): {wrong}"
    if setting == "environment" and (wrong := code.misfit(function)):
        return f"is called without arguments: {wrong}"
    if setting == "environment" and isinstance(function, type) and not hasattr(function, "reset"):
        return "has no method reset, which begins each rollout"
    return None


def check_code(run: Run) -> None:
    """Raise `PosttrainError` for errors that show only when the trainer, its callbacks and tools are imported.

    `check` only reads the source of trainer and callbacks; importing them takes some seconds.
    """
    errors = []
    if "." in run.trainer.kind:
        try:
            code.load(trainers.of(run.trainer.kind).path)
        except ValueError as error:
            errors.append(f"trainer.kind={run.trainer.kind}: {error}")
    for entry in run.trainer.callbacks:
        path, args = _callback(entry)
        try:
            wrong = _no_callback(code.load(path), args)
        except ValueError as error:
            wrong = str(error)
        if wrong:
            errors.append(f"trainer.callbacks={path}: {wrong}")
    for path in run.trainer.tools:
        from transformers.utils import get_json_schema

        try:
            get_json_schema(code.load(path))
        except Exception as error:  # Transformers' own errors for a docstring or type hints without a schema
            errors.append(f"trainer.tools={path}: {first_line(error)}")
    if errors:
        raise PosttrainError("\n".join(errors))


def _no_callback(cls: Any, args: dict[str, Any]) -> str | None:
    from transformers import TrainerCallback

    if not (isinstance(cls, type) and issubclass(cls, TrainerCallback)):
        return "is no class of transformers.TrainerCallback"
    known = code.parameters(cls)
    given = {**args, "trainer": None} if "trainer" in known else args
    if wrong := code.misfit(cls, **given):
        return wrong
    plain = {name: known[name].annotation for name in args if known[name].annotation in (bool, int, float, str)}
    found = ((name, options.check_type(options.Option(kind), args[name])) for name, kind in plain.items())
    return next((f"{name}={args[name]!r}: {wrong}" for name, wrong in found if wrong), None)


def user_callbacks(run: Run, trainer: Any = None) -> list[Any]:
    """The user's callbacks: without `trainer`, those that take none; with it, those that take one."""
    made = []
    for entry in run.trainer.callbacks:
        path, args = _callback(entry)
        cls = code.load(path)
        wants = "trainer" in inspect.signature(cls).parameters
        if wants == (trainer is not None):
            try:
                made.append(cls(**({"trainer": trainer} if wants else {}), **args))
            except Exception as error:  # the class's own code
                raise PosttrainError(f"trainer.callbacks={path}: {code.error_line(error)}") from error
    return made


def constructor_arguments(run: Run, dtype: str) -> dict[str, Any]:
    """Parameter of the trainer -> argument; the teacher is loaded in `dtype`, or in the type it was trained in."""
    found: dict[str, Any] = {}
    for setting, parameter in PARAMETERS.items():
        if given := getattr(run.trainer, setting):
            found[parameter] = [code.load(path) for path in given] if isinstance(given, list) else code.load(given)
    if run.trainer.rollout:
        found["rollout_func"] = _guarded_rollout(run.trainer.rollout, found["rollout_func"])
    if run.trainer.teacher.model:
        found["teacher_model"] = _teacher(run, dtype)
    return found


def _guarded_rollout(path: str, rollout: Callable[..., Any]) -> Callable[..., Any]:
    """`rollout`, with errors and results of a wrong form raised as `RewardError`."""

    @functools.wraps(rollout)
    def guarded(prompts: list[Any], trainer: Any) -> Any:
        try:
            found = rollout(prompts, trainer)
        except PosttrainError:
            raise
        except Exception as error:
            raise RewardError(f"trainer.rollout={path}: {code.error_line(error)}") from error
        if not isinstance(found, dict) or not found.keys() >= set(ROLLED_OUT):
            given = f"a dict with {', '.join(found) or 'nothing'}" if isinstance(found, dict) else type(found).__name__
            raise RewardError(f"trainer.rollout={path}: returned {given}; return a dict with {', '.join(ROLLED_OUT)}")
        return found

    return guarded


def teacher_source(run: Run) -> Source:
    """The source of the teacher's weights."""
    from posttrain.runs import lineage

    teacher = run.trainer.teacher
    source = lineage.source(str(teacher.model), teacher.revision, "trainer.teacher.model")
    return replace(source, quantization=teacher.quantization or source.quantization)


def teacher_size(run: Run) -> tuple[Any, int, dict[str, Any]]:
    """The teacher's config, its number of parameters, counted from that, and its quantization."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    source = teacher_source(run)
    trust = bool(source.options.get("trust_remote_code"))
    known = AutoConfig.from_pretrained(source.base, revision=source.revision, trust_remote_code=trust)
    with torch.device("meta"):
        total = AutoModelForCausalLM.from_config(known, trust_remote_code=trust).num_parameters()
    return known, total, source.quantization


def check_teacher(run: Run, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `PosttrainError` unless the teacher has the student's vocabulary."""
    from posttrain.models import weights

    key = f"trainer.teacher.model={run.trainer.teacher.model}"
    source = teacher_source(run)
    weights.check_model(source, "trainer.teacher.model", scores=False)
    if trainers.of(run.trainer.kind).has("use_uld_loss"):
        return  # this trainer aligns the tokens of two tokenizers
    if weights.tokenizer(source).get_vocab() != tokenizer.get_vocab():
        raise PosttrainError(
            f"{key}: its tokens are not those of model.path={run.model.path}, so there is no distribution to compare; "
            "choose a teacher of the same family, or trainer=gold, which aligns two tokenizers"
        )


def _teacher(run: Run, dtype: str) -> Any:
    from peft import PeftModel

    from posttrain.models import weights

    source = teacher_source(run)
    model = weights.load(source, dtype=dtype if source.dtype == "auto" else None)
    if isinstance(model, PeftModel) and not source.quantization:
        model = model.merge_and_unload()
    return model.requires_grad_(False)


def teacher_line(run: Run) -> str:
    """The plan's line on the teacher."""
    source = teacher_source(run)
    student = (run.model.path, run.model.revision, run.model.init_from, run.peft.quantization)
    if student == (source.name, source.revision, None, source.quantization):
        return f"{source.name}: the model that is trained, so nothing will change; set trainer.teacher.model=RUN"
    return source.name + (" in 4-bit" if source.quantization.get("load_in_4bit") else "")
