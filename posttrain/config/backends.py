"""Checks of the engine that draws completions and of the tracker: packages, and what each of them refuses."""

import os
from collections.abc import Iterator

from posttrain import extras
from posttrain.config import combinations, trainers
from posttrain.config.schema import Run, TrackingConfig


def check(run: Run) -> Iterator[str]:
    """Everything wrong with `engine` and `tracking`."""
    yield from _engine(run)
    yield from _tracker(run.tracking)


def _engine(run: Run) -> Iterator[str]:
    """Errors of `engine=vllm`: the package, or a training whose vLLM the probe cannot use."""
    if run.engine != "vllm" or run.job == "doctor":
        return
    kind = trainers.of(run.trainer.kind)
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


# The values of tracking.mode that a tracker knows, besides `auto`.
MODES = {"wandb": ("auto", "online", "offline", "disabled"), "comet": ("auto", "online", "offline")}


def _tracker(settings: TrackingConfig) -> list[str]:
    """Trackers that are extras and not installed, and names that one does not take."""
    backend = settings.backend
    module = {"trackio": "trackio", "tensorboard": "tensorboard", "mlflow": "mlflow", "comet": "comet_ml"}.get(backend)
    if backend == "wandb" and (refused := set(settings.project) & set("/\\#?%:")):
        # W&B says so when the run begins, and training goes on without it.
        return [f"tracking.project={settings.project}: W&B takes no {' '.join(sorted(refused))} in it"]
    modes = MODES.get(backend, ("auto",))
    if settings.mode not in modes:
        fix = "set tracking=none" if settings.mode == "disabled" else "leave it out"
        return [f"tracking.mode={settings.mode}: {backend} has {', '.join(modes)}; {fix}"]
    if module is None:
        return []
    missing = extras.missing_modules(module)
    return [f"tracking.backend={backend}: not installed; {extras.install_command(backend)}"] if missing else []
