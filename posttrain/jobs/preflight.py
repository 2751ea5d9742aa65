"""All checks of the config that need no heavy import."""

import os
from collections.abc import Iterator
from dataclasses import asdict
from operator import attrgetter

from posttrain.config import checks, options, paths_and_secrets, ranges, trainers
from posttrain.config.alarms import AlarmsConfig
from posttrain.config.reserved_options import reserved_options
from posttrain.config.schema import Run
from posttrain.data import files
from posttrain.data.formats import SETTINGS
from posttrain.data.sampled import data_file
from posttrain.errors import PosttrainError

EMBEDDED_DATA = ("embedded:squad", "embedded:imdb", "embedded:arithmetic")
JOBS = ("train", "sample", "evaluate", "doctor", "pipeline")
CHOICES = {
    "engine": ("transformers", "continuous", "vllm"),
    "peft.method": ("none", "lora"),
    "model.dtype": ("auto", "float32", "bfloat16", "float16"),
    "tracking.backend": ("wandb", "trackio", "tensorboard", "mlflow", "comet", "none"),
    "tracking.mode": ("auto", "online", "offline", "disabled"),
    **{f"data.{name}": allowed for name, allowed in SETTINGS.items()},
}
# Options of trainers that no check compares with other settings (`config/combinations.py`).
UNCOMBINED = {
    *("beta", "learning_rate", "weight_decay", "max_grad_norm", "max_length", "max_steps", "num_train_epochs", "seed"),
    *("gradient_accumulation_steps", "per_device_eval_batch_size", "logging_steps", "eval_steps", "save_steps"),
}


def check(run: Run) -> None:
    """Raise `PosttrainError` with all errors in the config; takes at most a second, without heavy imports."""
    if wrong := checks.wrong_choice("job", run.job, JOBS):
        raise PosttrainError(wrong)
    if long := paths_and_secrets.long_names({k: v for k, v in asdict(run).items() if k not in ("stages", "common")}):
        raise PosttrainError("\n".join(long))
    if run.job == "pipeline":
        from posttrain.pipeline import plan

        errors = plan.errors(run, check)
    else:
        errors = [*_settings(run), *_parts(run)]
    if errors:
        from posttrain.config import masking

        raise PosttrainError(masking.masked(errors, asdict(run)))


def _settings(run: Run) -> Iterator[str]:
    """Errors in settings that every run has."""
    kind = trainers.of(run.trainer.kind)
    for key, allowed in CHOICES.items():
        if wrong := checks.wrong_choice(key, attrgetter(key)(run), allowed):
            yield wrong
    yield from options.check(kind.config, run.trainer.args, "trainer.args", reserved_options(kind))
    if run.engine != "transformers" or run.tracking.backend != "none":
        from posttrain.config import backends

        yield from backends.check(run)
    yield from _paths(run)
    yield from paths_and_secrets.check(run)
    yield from paths_and_secrets.secrets(asdict(run))
    yield from checks.models(run)
    if run.model.kwargs:
        from posttrain.models import model_kwargs

        yield from model_kwargs.set_elsewhere(run.model)
    settings = asdict(run)
    if run.data.mix:
        del settings["data"]["path"]  # the parts have one each
    yield from ranges.check_schema(settings)


def _parts(run: Run) -> Iterator[str]:
    """Errors in parts that a plain training does not have; each check is imported only for runs with that part."""
    kind, trains = trainers.of(run.trainer.kind), run.job == "train"
    if run.trainer.args.keys() - UNCOMBINED or run.peft.lora or run.peft.value or run.peft.quantization:
        from posttrain.config import combinations

        yield from combinations.check(run)
        if run.peft.quantization and run.peft.method == "none":
            yield "peft.quantization: a quantized model cannot be trained in full; choose peft=qlora"
    of_hub = (run.model.revision, run.trainer.teacher.revision, run.data.name, run.data.revision, run.data.mix)
    if any((*of_hub, run.data.args, run.data.eval_split)) or run.data.split != "train":
        from posttrain.config import hub_settings

        yield from hub_settings.check(run)
    if any(run.rewards.values()) or run.probe.win_by is not None or run.alarms != AlarmsConfig():
        from posttrain.config import probe_checks

        yield from probe_checks.check(run)
    if trains and kind.samples_completions:
        from posttrain.training import online

        yield from online.check(run)
    if trains and (run.trainer.has_objects or kind.has_teacher):
        from posttrain.training import trainer_arguments

        yield from trainer_arguments.check(run)
    if any(run.rewards.values()):
        from posttrain import rewards

        yield from rewards.check_run(run)
    if not trains:
        from posttrain.config import job_checks

        yield from job_checks.check(run)
    if run.job == "evaluate":
        from posttrain.jobs import benchmarks

        yield from benchmarks.check(run.evaluate)
    if run.probe.texts or run.probe.safety.harmful or run.probe.safety.harmless:
        from posttrain.probe import texts

        yield from texts.check_files(run.probe)
    if any((run.objective, run.trainer.args.get("metric_for_best_model"), run.alarms.over_optimisation.proxy)):
        from posttrain.config import objective

        yield from objective.check(run.objective)
        yield from objective.unmeasured(run) if trains or run.job in objective.OF_JOBS else ()
    if run.data.streaming:
        from posttrain.config.given_options import GivenOptions
        from posttrain.data import stream

        steps = int(GivenOptions(run.trainer.args).number("max_steps", -1))
        yield from stream.check(run.data, run.trainer.kind, steps, run.job)


def _paths(run: Run) -> Iterator[str]:
    if run.data.mix:
        from posttrain.data import mix

        yield from mix.check(run.data)
    local = {"data.path": run.data.path, "data.eval_path": run.data.eval_path}
    for name, part in run.data.mix.items():
        local |= {f"data.mix.{name}.{key}": part.get(key) for key in ("path", "eval_path") if isinstance(part, dict)}
    for key, value in local.items():
        if value == "" or (value is None and key != "data.path"):
            continue
        if isinstance(value, str) and value.startswith("embedded:"):
            if value not in EMBEDDED_DATA:
                yield f"{key}={value}: choose from {', '.join(EMBEDDED_DATA)}"
            continue
        if wrong := files.check(value):
            yield f"{key}={'null' if value is None else value}: {wrong}"
            continue
        try:
            data_file(value)
        except PosttrainError as error:
            yield f"{key}={error}"
    template = run.model.chat_template
    if template and template.startswith("trl:"):
        from posttrain.models import chat_templates

        yield from chat_templates.unknown_template(template)
        template = None
    for key, path, what in (("init_from", run.model.init_from, "run directory"), ("chat_template", template, "file")):
        if path and not os.path.exists(os.path.expanduser(path)):
            from posttrain.config.suggestions import near_path

            yield f"model.{key}={path}: no such {what}{near_path(path)}"
