"""Messages for a config that does not fit the schema: unknown keys, wrong types, missing values."""

from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from posttrain.config import hints
from posttrain.config.schema import RewardConfig, Run
from posttrain.errors import first_line

# The types of the schema in words.
TYPE_WORDS = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "dict": "settings, {KEY: VALUE}",
}


@cache
def _structured(cls: Any) -> Any:
    """The OmegaConf schema of a dataclass, made once; merging copies it."""
    return OmegaConf.structured(cls)


def take_known(cls: Any, plain: dict[Any, Any], path: str, errors: list[str]) -> dict[Any, Any]:
    """The part of `plain` that fits the dataclass `cls`; everything else adds a message to `errors`."""
    try:
        OmegaConf.merge(_structured(cls), plain)
        return plain
    except OmegaConfBaseException:
        pass
    known = {f.name: f for f in fields(cls)}
    fit = {}
    for key, value in plain.items():
        where = f"{path}{key}"
        if key not in known:
            errors.append(unknown_key(where))
        elif (group := _group(known[key])) is not None:
            if isinstance(value, dict):
                fit[key] = take_known(group, value, f"{where}.", errors)
            elif where.startswith("alarms") and value is None:  # would keep the defaults
                errors.append(f"{where}=null: an alarm is switched off with alarms.NAME.action=off")
            elif value is not None:  # a group that is left out: peft=null
                errors.append(f"{where}={value}: expected settings below it, such as {where}.{fields(group)[0].name}")
        elif _fits(cls, key, value):
            fit[key] = value
        else:
            errors.append(f"{where}={value}: expected {_type_in_words(known[key])}")
    return fit


def _group(f: Any) -> Any:
    """The dataclass that a field holds, where it holds one."""
    return f.default_factory if isinstance(f.default_factory, type) and is_dataclass(f.default_factory) else None


def _fits(cls: Any, key: str, value: Any) -> bool:
    try:
        OmegaConf.merge(_structured(cls), {key: value})
    except OmegaConfBaseException:
        return False
    return True


def _type_in_words(f: Any) -> str:
    base, _, none = str(f.type).partition(" | ")
    name = next((text for start, text in TYPE_WORDS.items() if base.startswith(start)), base)
    return f"{name}, or null" if none else name


def unknown_key(key: str) -> str:
    """The message for a key that the schema does not have."""
    parent, _, name = key.rpartition(".")
    cls: Any = Run
    for part in filter(None, parent.split(".")):
        known = [f.name for f in fields(cls)] if cls else []
        if known and part not in known:
            return f"{key}: unknown key; {hints.nearest(part, known)}"
        cls = next((_group(f) for f in fields(cls) if f.name == part), None) if cls else None
    if parent.partition(".")[0] == "reward" or parent.startswith(("probe.rewards.", "probe.gold.")):
        cls = RewardConfig
    known = [f.name for f in fields(cls)] if cls else []
    if parent in ("", "trainer", "peft") and (hint := hints.for_key(name, _options(parent))):
        return f"{key}: unknown key; {hint}"
    return f"{key}: unknown key; {hints.nearest(name, known)}"


def _options(parent: str) -> dict[str, set[str]]:
    """Place -> the options known there, for a key that was given without its place, such as `beta=0.1`."""
    from posttrain.config import options

    trainer = {"trainer.args": {n for cls in ("PPOConfig", "DPOConfig", "GRPOConfig") for n in options.options_of(cls)}}
    lora = {"peft.lora": {*options.options_of("LoraConfig")}}
    return {"trainer": trainer, "peft": lora}.get(parent, trainer | lora)


def unresolved(merged: Any, plain: Any, path: str) -> list[str]:
    """Messages for the values of `plain` whose `${...}` cannot be resolved in the config."""
    if isinstance(plain, (dict, list)):
        inner = plain.items() if isinstance(plain, dict) else enumerate(plain)
        return [
            line for key, value in inner for line in unresolved(merged, value, f"{path}.{key}" if path else str(key))
        ]
    if not isinstance(plain, str) or "${" not in plain:
        return []
    try:
        OmegaConf.select(merged, path)
    except OmegaConfBaseException as error:
        return [f"{path}={plain}: {first_line(error)}"]
    return []


def missing(merged: Any, keys: list[str]) -> list[str]:
    """Messages for required values that are not set: in a pipeline that is run with another job, or in one run."""
    if merged.stages:
        return [_pipeline_of_another_job(merged)]
    return [f"{key}: required, and not set; {_fix_missing(key)}" for key in keys]


def _pipeline_of_another_job(merged: Any) -> str:
    stages = [stage for stage in merged.stages.values() if isinstance(stage, DictConfig)]
    recipes = dict.fromkeys(stage.recipe for stage in stages if stage.get("recipe"))
    taken = ", ".join(f"+recipe={name}" for name in recipes)
    return f"job={merged.job}: this is a pipeline, of {', '.join(merged.stages)}; take the recipe of one stage: {taken}"


def _fix_missing(key: str) -> str:
    return {
        "trainer.kind": "choose +recipe=NAME, or trainer=sft|reward|dpo|grpo|rloo|kto|ppo (more: see --help)",
        "model.path": "choose +recipe=NAME or model=NAME, or set model.path=HUB_ID_OR_FOLDER",
        "data.path": "choose +recipe=NAME or data=NAME, or set data.path=HUB_ID_OR_FILE",
    }.get(key, f"set {key}=VALUE")
