"""Standard benchmarks in job=evaluate: tasks of lm-eval, with its prompts, answers and metrics.

lm-eval defines the tasks (arc_easy, gsm8k, hellaswag, ...) and asks the model. This module turns its scores of single
questions into metrics with intervals, and into paired differences between two models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain import extras
from posttrain.config.schema import EvaluateConfig
from posttrain.config.suggestions import did_you_mean
from posttrain.errors import PosttrainError
from posttrain.probe.intervals import Metric, mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Bootstrap samples of lm-eval's own standard errors, where a metric has no closed form.
RESAMPLES = 1000


@dataclass
class Scores:
    """`metrics` by `tasks/TASK/METRIC`; `results` are lm-eval's own results, with standard errors."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """Notes on numbers that have no interval here, since they are no mean over questions (a text's perplexity)."""
        return [
            f"{task}: {key.split(',')[0]} {value:.4g}, by lm-eval"
            for task, found in self.results.items()
            for key, value in found.items()
            if isinstance(value, float) and "_stderr" not in key and _name(task, key) not in self.metrics
        ]


def check(settings: EvaluateConfig) -> Iterator[str]:
    """Errors in the settings; nothing heavy is imported."""
    for name in ("task_path", "num_fewshot", "limit", "apply_chat_template"):
        if getattr(settings, name) and not settings.tasks:
            yield f"evaluate.{name}: only read with evaluate.tasks; set that, or leave it out"
    if settings.tasks and extras.missing_modules("lm_eval"):
        yield f"evaluate.tasks: needs lm-eval, which is not installed; {extras.install_command('lm-eval')}"
    if settings.task_path and not Path(settings.task_path).expanduser().is_dir():
        yield f"evaluate.task_path={settings.task_path}: no such folder"


def manager(settings: EvaluateConfig) -> Any:
    """lm-eval's tasks and those in the folder `task_path`; raises `PosttrainError` where one of `tasks` is missing."""
    tasks = _index(settings.task_path and str(Path(settings.task_path).expanduser()))
    for name in settings.tasks:
        if name not in tasks.all_tasks:
            hint = did_you_mean(name, tasks.all_tasks, 3, "see lm-eval's list: lm-eval ls tasks")
            raise PosttrainError(f"evaluate.tasks={name}: lm-eval has no such task; {hint}")
    return tasks


@lru_cache(maxsize=4)
def _index(place: str | None) -> Any:
    """The index of all tasks; it takes some seconds, since lm-eval has thousands."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=place)


def run(model: Any, tokenizer: PreTrainedTokenizerBase, settings: EvaluateConfig, batch_size: int) -> Scores:
    """Run the tasks; raises `PosttrainError` where one cannot be loaded or needs something that is not allowed."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    asked = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    try:
        found = lm_eval.simple_evaluate(
            model=asked,
            tasks=list(settings.tasks),
            task_manager=manager(settings),
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            apply_chat_template=settings.apply_chat_template,
            bootstrap_iters=RESAMPLES,
        )
    except (OSError, ValueError, AssertionError, ConnectionError) as error:
        lines = str(error).strip().splitlines()
        raise PosttrainError(f"evaluate.tasks: {lines[0] if lines else type(error).__name__}") from error
    scores = Scores(results=found["results"])
    for task, rows in found["samples"].items():
        for key, value in found["results"][task].items():
            metric, _, chosen = key.partition(",")
            values = [row.get(metric) for row in rows if row.get("filter", "none") == chosen]
            if not values or not all(isinstance(one, (int, float)) for one in values):
                continue
            if isinstance(value, float) and abs(sum(values) / len(values) - value) < 1e-9:
                scores.metrics[_name(task, key)] = mean([float(one) for one in values], list(range(len(values))))
    return scores


def _name(task: str, key: str) -> str:
    metric, _, chosen = key.partition(",")
    return f"tasks/{task}/{metric}" + ("" if chosen in ("", "none") else f"/{chosen}")
