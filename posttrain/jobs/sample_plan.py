"""The inputs of job=sample: model, tokenizer and prompts in batches, found before weights load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posttrain.config.schema import Run
from posttrain.errors import PosttrainError
from posttrain.runs.lineage import Source

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


# Prompts are sorted by length within windows of this many batches, longest first, so that a lack of memory shows early.
WINDOW_BATCHES = 64
# Batches that an engine gets at once; it replaces a completion that has ended by the next prompt.
ENGINE_BATCHES = 8


@dataclass
class Plan:
    """Everything but the weights. `batches` hold indices of `prompts`, whose token ids are `encoded`."""

    source: Source
    tokenizer: PreTrainedTokenizerBase
    prompts: Dataset
    encoded: list[list[int]]
    batches: list[list[int]]
    data: dict[str, Any]


def prepare(run: Run) -> Plan:
    """Find model, tokenizer and prompts; raises `PosttrainError` for what does not fit together."""
    from posttrain import rewards
    from posttrain.data.held_out import load_prompts
    from posttrain.jobs import common
    from posttrain.models import engines, tokenizers, weights
    from posttrain.models.generate import encode_prompts

    source = common.model_source(run)
    key = "model.init_from" if run.model.init_from else "model.path"
    context = weights.check_model(source, key, scores=False)
    engines.check_source(run.engine, source, key)
    tokenizer = common.tokenizer(run, source)
    prompts, data = load_prompts(run.data, run.trainer.kind, run.sample.split)
    if run.sample.prompts is not None:
        prompts = prompts.select(range(min(run.sample.prompts, len(prompts))))
    tokenizers.check_template(tokenizer, prompts[0], run.model)
    errors = rewards.column_errors(run.reward, "reward", prompts)
    if errors := errors + rewards.check_reachable(run.reward, "reward"):
        raise PosttrainError("\n".join(errors))
    encoded = encode_prompts(tokenizer, prompts, run.trainer.args.get("chat_template_kwargs"))
    common.check_context("sample.max_new_tokens", run.sample.max_new_tokens, max(map(len, encoded)), context)
    size = run.sample.batch_size * (1 if run.engine == "transformers" else ENGINE_BATCHES)
    plan = batches([len(ids) for ids in encoded], max(size // run.sample.n, 1))
    return Plan(source, tokenizer, prompts, encoded, plan, data)


def batches(lengths: list[int], size: int, window: int = WINDOW_BATCHES) -> list[list[int]]:
    """Indices in batches of `size`: sorted by length, longest first, within windows of `window` batches."""
    result = []
    for start in range(0, len(lengths), size * window):
        part = sorted(range(start, min(start + size * window, len(lengths))), key=lambda i: -lengths[i])
        result += [part[i : i + size] for i in range(0, len(part), size)]
    return result
