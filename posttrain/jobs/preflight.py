"""Everything that can be checked in the config without a heavy import."""

import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from posttrain.config import checks, combinations, options, paths_and_secrets, ranges, trainers
from posttrain.config.reserved_options import reserved_options
from posttrain.config.schema import Run, TrackingConfig
from posttrain.config.trainers import Kind
from posttrain.data import files
from posttrain.data.formats import NAMES
from posttrain.data.sampled import data_file
from posttrain.errors import PosttrainError, near_path

RESERVED_LORA = {
    "task_type": "it follows the trainer",
    "inference_mode": "it would train nothing",
    "runtime_config": "it is for loading, and no training reads it",
    "arrow_config": "it routes between adapters that are trained already",
}
EMBEDDED_DATA = ("embedded:squad", "embedded:imdb", "embedded:arithmetic")
ENGINES = ("transformers", "continuous", "vllm")
JOBS = ("train", "sample", "evaluate", "doctor", "pipeline")
CHOICES = {
    "engine": ENGINES,
    "peft.method": ("none", "lora"),
    "model.dtype": ("auto", "float32", "bfloat16", "float16"),
    "tracking.backend": ("wandb", "trackio", "tensorboard", "mlflow", "comet", "none"),
    "tracking.mode": ("auto", "online", "offline", "disabled"),
    "data.format": NAMES,
    "data.on_error": ("stop", "skip"),
    "data.pairs": ("all", "one"),
    "data.stopping_strategy": ("first_exhausted", "all_exhausted"),
}


def check(run: Run) -> None:
    """Raise `PosttrainError` with all that is wrong in the config; a second at most, nothing heavy is imported."""
    if wrong := checks.wrong_choice("job", run.job, JOBS):
        raise PosttrainError(wrong)
    if long := paths_and_secrets.long_names({k: v for k, v in asdict(run).items() if k not in ("stages", "common")}):
        raise PosttrainError("\n".join(long))
    if errors := _pipeline(run) if run.job == "pipeline" else [*_settings(run), *_parts(run)]:
        raise PosttrainError("\n".join(errors))


def _pipeline(run: Run) -> list[str]:
    from posttrain.pipeline import plan

    errors = list(dict.fromkeys(paths_and_secrets.check(run) + paths_and_secrets.secrets(asdict(run))))
    try:
        plan.check(run, check)
    except PosttrainError as error:
        # The settings that stages take over from the pipeline have one message, the pipeline's.
        own = tuple(f".{line}" for line in errors)
        lines = str(error).splitlines()
        errors += [line for line in lines if line not in errors and not line.endswith(own or ("\n",))]
    return errors


def _settings(run: Run) -> Iterator[str]:
    """Errors in settings that every run has."""
    kind = trainers.of(run.trainer.kind)
    for key, allowed in CHOICES.items():
        if wrong := checks.wrong_choice(key, _value(run, key), allowed):
            yield wrong
    yield from options.check(kind.config, run.trainer.args, "trainer.args", reserved_options(kind))
    if not kind.evaluates and run.trainer.args.get("eval_strategy", "no") != "no":
        yield f"trainer.args.eval_strategy: {kind.name} has no loss on held-out rows; the probe measures it"
    if kind.is_a("KTOTrainer") and run.trainer.args.get("per_device_train_batch_size", 8) == 1:
        yield (
            "trainer.args.per_device_train_batch_size=1: kto estimates its KL from the other rows of a micro-batch; "
            "set at least 2, and fewer gradient_accumulation_steps"
        )
    yield from options.check_smoothing(kind.name, kind.lineage, run.trainer.args)
    yield from options.check(options.LORA, run.peft.lora, "peft.lora", RESERVED_LORA)
    yield from options.check(options.LORA, run.peft.value, "peft.value", RESERVED_LORA)
    yield from combinations.check(run)
    yield from _engine(run, kind)
    yield from _initialisation(run)
    if run.peft.value and not trainers.value_adapter(run):
        yield "peft.value: options of PPO's value adapter, for trainer=ppo with value_mode=adapter"
    yield from options.check(options.QUANTIZATION, run.peft.quantization, "peft.quantization")
    if run.peft.quantization and run.peft.method == "none":
        yield "peft.quantization: a quantized model cannot be trained in full; choose peft=qlora"
    yield from _paths(run)
    yield from paths_and_secrets.check(run)
    yield from paths_and_secrets.secrets(asdict(run))
    yield from _tracker(run.tracking)
    yield from checks.models(run)
    yield from checks.probe(run)
    settings = asdict(run)
    if run.data.mix:
        del settings["data"]["path"]  # the parts have one each
    yield from ranges.check_schema(settings)


def _parts(run: Run) -> Iterator[str]:
    """Errors in the parts that a plain training does not have; the check of each is imported where a run has it."""
    kind, trains = trainers.of(run.trainer.kind), run.job == "train"
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
        from posttrain.data import stream

        yield from stream.check(run.data, run.trainer.kind, run.trainer.args.get("max_steps", -1), run.job)


def _engine(run: Run, kind: Kind) -> Iterator[str]:
    """Errors of `engine=vllm`: the package, or a training whose vLLM the probe cannot use."""
    if run.engine != "vllm" or run.job == "doctor":
        return
    other = "engine=continuous"
    if not run.trainer.args.get("use_vllm"):
        yield from combinations.packages({"use_vllm": True}, "engine=vllm")
    if run.job == "train" and not (kind.has("use_vllm") and run.trainer.args.get("use_vllm")):
        able = f"set trainer.args.use_vllm=true, or {other}" if kind.has("use_vllm") else f"set {other}"
        yield (
            "engine=vllm: the probe measures the weights in training, and only a trainer that samples with vLLM gives "
            f"them to it; {able}"
        )
    elif run.job == "train" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        yield f"engine=vllm: with several processes the probe does not reach the trainer's vLLM; set {other}"


def _initialisation(run: Run) -> list[str]:
    """PiSSA, OLoRA and the like change the base weights, so a base without the adapter is no reference."""
    start = run.peft.lora.get("init_lora_weights", True)
    if run.peft.method == "none" or isinstance(start, bool) or start == "gaussian":
        return []
    if not trainers.of(run.trainer.kind).reference and not run.model.init_from:
        return []
    return [
        f"peft.lora.init_lora_weights={start}: changes the base weights, which are the reference of "
        f"{run.trainer.kind} and of the runs that start from it; leave it out, or choose gaussian"
    ]


def _tracker(settings: TrackingConfig) -> list[str]:
    """Trackers that are extras and not installed, and names that one does not take."""
    backend = settings.backend
    module = {"trackio": "trackio", "tensorboard": "tensorboard", "mlflow": "mlflow", "comet": "comet_ml"}.get(backend)
    if backend == "wandb" and (refused := set(settings.project) & set("/\\#?%:")):
        # W&B says so when the run begins, and training goes on without it.
        return [f"tracking.project={settings.project}: W&B takes no {' '.join(sorted(refused))} in it"]
    if module is None:
        return []
    from posttrain import extras

    missing = extras.missing_modules(module)
    return [f"tracking.backend={backend}: not installed; {extras.install_command(backend)}"] if missing else []


def _value(run: Run, key: str) -> Any:
    group, _, name = key.partition(".")
    return getattr(getattr(run, group), name) if name else getattr(run, group)


def _paths(run: Run) -> Iterator[str]:
    if run.data.mix:
        from posttrain.data import mix

        yield from mix.check(run.data)
    local = {"data.path": run.data.path, "data.eval_path": run.data.eval_path}
    for name, part in run.data.mix.items():
        local |= {f"data.mix.{name}.{key}": part.get(key) for key in ("path", "eval_path") if isinstance(part, dict)}
    for key, value in local.items():
        if not value and value != []:
            continue
        if isinstance(value, str) and value.startswith("embedded:"):
            if value not in EMBEDDED_DATA:
                yield f"{key}={value}: choose from {', '.join(EMBEDDED_DATA)}"
            continue
        if wrong := files.check(value):
            yield f"{key}={value}: {wrong}"
            continue
        try:
            data_file(value)
        except PosttrainError as error:
            yield f"{key}={error}"
    if run.model.init_from and not _exists(run.model.init_from):
        yield f"model.init_from={run.model.init_from}: no such run directory{near_path(run.model.init_from)}"
    template = run.model.chat_template
    if template and template.startswith("trl:"):
        yield from _template(template)
    elif template and not _exists(template):
        yield f"model.chat_template={template}: no such file{near_path(template)}"


def _template(value: str) -> list[str]:
    from posttrain.models import chat_templates

    known = chat_templates.templates()
    if value[len("trl:") :] in known:
        return []
    from posttrain.config import hints

    return [f"model.chat_template={value}: TRL brings no such template; {hints.nearest(value[len('trl:') :], known)}"]


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))
