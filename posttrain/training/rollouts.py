"""Sampling for the probe with tools, an environment or a rollout function, by the trainer itself.

TRL's trainer renders prompts with tools, calls the tools, resets environments and samples again. So a measurement lets
the trainer sample, and takes the completions that it would train on.
"""

import asyncio
import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from posttrain.models.generate import Generated


class _Drawn(Exception):
    """Ends the trainer's work on a batch once its completions are there."""


def needed(trainer: Any) -> bool:
    """Whether completions of this trainer are more than one turn of the policy (tools, environment, rollout)."""
    return bool(getattr(trainer, "tools", None) or getattr(trainer, "rollout_func", None)) and hasattr(
        trainer, "_generate_and_score_completions"
    )


def draw(
    trainer: Any,
    rows: Sequence[dict[str, Any]],
    batch_size: int,
    do_sample: bool = True,
    progress: Callable[[list[Generated]], None] | None = None,
) -> list[Generated]:
    """One completion of up to `trainer.args.max_completion_length` tokens for each of the `rows`, in their order.

    They are sampled at temperature 1, unless the user's own rollout samples. Rewards of an environment are in
    `Generated.scores`.
    """
    found: list[Generated] = []
    with _measured(trainer, do_sample):
        for start in range(0, len(rows), batch_size):
            part = _draw(trainer, [dict(row) for row in rows[start : start + batch_size]])
            if progress is not None:
                progress(part)
            found += part
    return found


def _draw(trainer: Any, rows: list[dict[str, Any]]) -> list[Generated]:
    generate, kept = trainer._generate, []

    def once(prompts: list[Any]) -> None:
        kept.extend(generate(prompts))
        raise _Drawn

    trainer.model.eval()  # TRL's continuous batching leaves it in training mode
    trainer._generate = once
    try:
        trainer._generate_and_score_completions(rows)
    except _Drawn:
        pass
    finally:
        del trainer._generate
    prompts, completions, masks, messages, *_ = kept
    scores = _environment_scores(trainer)
    tokenizer, ends = trainer._tokenizer, set(trainer.eos_token_ids)
    return [
        Generated(
            prompt,
            ids,
            str(tokenizer.decode(ids, skip_special_tokens=True)),
            bool(ids) and ids[-1] in ends,
            masks[i] if masks is not None else None,
            messages[i] if isinstance(messages[i], list) else None,
            {name: values[i] for name, values in scores.items()},
        )
        for i, (prompt, ids) in enumerate(zip(prompts, completions, strict=True))
    ]


def _environment_scores(trainer: Any) -> dict[str, list[Any]]:
    """The rewards of environments with `get_reward` for the rollouts that they have just seen."""
    if not getattr(trainer, "environments", None):
        return {}
    found = {}
    for name, function in zip(trainer.reward_func_names, trainer.reward_funcs, strict=True):
        # The function that TRL makes of an environment's `get_reward` has the environment's class as a default.
        if "_env_type" not in getattr(getattr(function, "__code__", None), "co_varnames", ()):
            continue
        values = function(environments=trainer.environments)
        if inspect.isawaitable(values):
            values = asyncio.run_coroutine_threadsafe(_awaited(values), trainer.async_loop).result()
        found[name] = list(values)
    return found


async def _awaited(values: Any) -> Any:
    return await values


@contextmanager
def _measured(trainer: Any, do_sample: bool) -> Iterator[None]:
    """In the block, sampling changes none of the trainer's metrics and does not wait for other processes."""
    config, metrics = trainer.generation_config, copy.deepcopy(trainer._metrics["eval"])
    trainer.generation_config = copy.deepcopy(config)
    changed = {"temperature": 1.0, "top_p": 1.0, "top_k": 0} if do_sample else dict.fromkeys(("temperature", "top_p"))
    trainer.generation_config.update(do_sample=do_sample, **changed)
    trainer.accelerator.gather = lambda tensor: tensor
    try:
        yield
    finally:
        del trainer.accelerator.gather
        trainer.generation_config = config
        trainer._metrics["eval"] = metrics
