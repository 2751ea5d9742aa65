"""Sampling from a model, and log-probabilities of given completions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from posttrain.data.prompts import common_prefix_length
from posttrain.models.shared_within import prefilling_once, shared_within
from posttrain.models.tokens import token_ids as token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The most that `log_probs` computes at a time, unless one sequence is longer: tokens, and positions with logits (1024
# positions of 128,256 tokens in bfloat16: 0.26 GB).
TOKENS, POSITIONS = 8192, 1024


# Options that a model's generation config may set, as Qwen's does. They would change the model's distribution, which
# is what is measured here, or switch the cache off.
OWN_DISTRIBUTION: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_p": None,
    "typical_p": 1.0,
    "use_cache": True,
}


@dataclass(frozen=True)
class Generated:
    """One completion: token ids of the prompt and of the completion (with EOS), its text, and whether it ended by EOS.

    With tools or an environment, `own` is 1 for tokens of the policy and 0 for other tokens, `messages` are the
    completion's turns, and `scores` the rewards of the environment.
    """

    prompt_ids: list[int]
    ids: list[int]
    text: str
    ended: bool
    own: list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    scores: dict[str, float | None] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Tokens that the policy drew."""
        return len(self.ids) if self.own is None else sum(self.own)


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    do_sample: bool = True,
    temperature: float = 1.0,
    top_p: float = 1.0,
    progress: Callable[[list[Generated]], None] | None = None,
    step: Callable[[int], None] | None = None,
) -> list[Generated]:
    """One completion for each of the prompts `encoded` (lists of token ids), in their order.

    `model` may be an engine (posttrain.models.engines), which gets all prompts at once. Otherwise `batch_size`
    sequences are drawn at a time, of similar length, so that little is padding; a prompt that is in a batch several
    times is read once. Greedy without `do_sample`. Random numbers come from torch's global generator; `progress` gets
    each batch as it is drawn, `step` how many of the batches x `max_new_tokens` passes are done.
    """
    eos = eos_ids(model, tokenizer)
    settings = {
        "do_sample": do_sample,
        "temperature": temperature if do_sample else None,
        "top_p": top_p if do_sample else None,
        "top_k": 0 if do_sample else None,
        "max_new_tokens": max_new_tokens,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": list(eos),
        **OWN_DISTRIBUTION,
    }
    drawn: dict[int, Generated] = {}

    def keep(part: list[int], rows: list[list[int]]) -> None:
        for i, row in zip(part, rows, strict=True):
            end = next((n + 1 for n, token in enumerate(row) if token in eos), None)
            text = str(tokenizer.decode(row[:end], skip_special_tokens=True))
            drawn[i] = Generated(encoded[i], row[:end], text, end is not None)
        if progress is not None:
            progress([drawn[i] for i in part])

    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    if hasattr(model, "draw") and order:
        keep(order, model.draw([encoded[i] for i in order], batch_size, settings))
        if step is not None:
            step(-(-len(order) // batch_size) * max_new_tokens)
        return [drawn[i] for i in range(len(encoded))]
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        prompts = {"input_ids": [encoded[i] for i in part]}
        batch = tokenizer.pad(prompts, padding_side="left", return_tensors="pt").to(model.device)
        criteria = None if step is None else [_pass_counter(step)]
        with prefilling_once(model):
            output = model.generate(**batch, **settings, stopping_criteria=criteria)
        new = output[:, batch["input_ids"].shape[1] :]
        if step is not None:  # a batch that ended early counts all of its passes
            step(max_new_tokens - new.shape[1])
        keep(part, new.tolist())
    return [drawn[i] for i in range(len(encoded))]


def _pass_counter(step: Callable[[int], None]) -> Callable[..., torch.Tensor]:
    """A stopping criterion for Transformers that never stops, and counts the passes."""

    def stop(ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        step(1)
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    return stop


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]], options: Mapping[str, Any] | None = None
) -> list[list[int]]:
    """Token ids of each row's `prompt`; a conversation ends with the generation prompt.

    `options` are variables of the chat template (`trainer.args.chat_template_kwargs`); the row's own win.
    """
    return [token_ids(tokenizer, row["prompt"], True, row, options) for row in rows]


def eos_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every token at which generation stops."""
    ids = model.generation_config.eos_token_id
    found = set(ids if isinstance(ids, list) else [ids]) | {tokenizer.eos_token_id}
    return found - {None}


def pad_batch(
    sequences: Sequence[tuple[list[int], list[int]]], pad: int, device: Any
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Ids and mask, both (batch, prompt + completion), and the number of completion positions.

    Padded on both sides, so that all completions of the (prompt ids, completion ids) begin in the same column.
    """
    width = max(len(prompt) for prompt, _ in sequences)
    completion = max(len(answer) for _, answer in sequences)
    rows, masks = [], []
    for prompt, answer in sequences:
        left, right = width - len(prompt), completion - len(answer)
        rows.append([pad] * left + prompt + answer + [pad] * right)
        masks.append([0] * left + [1] * (len(prompt) + len(answer)) + [0] * right)
    return torch.tensor(rows, device=device), torch.tensor(masks, device=device), completion


def completion_logits(model: Any, ids: torch.Tensor, mask: torch.Tensor, completion: int) -> torch.Tensor:
    """Logits (batch, completion, vocabulary) that predict the last `completion` positions."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    out = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=completion + 1, use_cache=False
    )
    return out.logits[:, :-1]


@torch.no_grad()
def log_probs(
    model: Any,
    sequences: Sequence[tuple[list[int], list[int]]],
    pad: int,
    progress: Callable[[int], None] | None = None,
) -> list[float]:
    """log p(completion | prompt) in nats of each (prompt ids, completion ids), summed over the completion's tokens.

    Batches are of similar length and bounded by `TOKENS` and `POSITIONS`, and answers to one prompt are together, so
    that it is computed once; `progress` gets the number of sequences of each batch as it is done.
    """
    result = [0.0] * len(sequences)
    longest: dict[tuple[int, ...], int] = {}
    for prompt, answer in sequences:
        longest[tuple(prompt)] = max(longest.get(tuple(prompt), 0), len(prompt) + len(answer))
    order = sorted(range(len(sequences)), key=lambda i: (longest[tuple(sequences[i][0])], sequences[i]))
    while order:
        part = _next_batch(order, sequences)
        ids, mask, completion = pad_batch([sequences[i] for i in part], pad, model.device)
        with shared_within(model):
            logits = completion_logits(model, ids, mask, completion)
        for row, i in enumerate(part):
            tokens = torch.tensor(sequences[i][1], device=model.device)
            log_p = logits[row, : len(tokens)].float().log_softmax(-1)
            result[i] = float(log_p.gather(-1, tokens[:, None]).double().sum())
        if progress is not None:
            progress(len(part))
    return result


def _next_batch(order: list[int], sequences: Sequence[tuple[list[int], list[int]]]) -> list[int]:
    """Take the next batch from the end of `order`, longest first, so that a lack of memory shows at once."""
    part = [order.pop()]
    prompt, completion = map(len, sequences[part[0]])
    while order:
        prompt = max(prompt, len(sequences[order[-1]][0]))
        completion = max(completion, len(sequences[order[-1]][1]))
        rows = len(part) + 1
        if rows * (prompt + completion) > TOKENS or rows * completion > POSITIONS:
            break
        part.append(order.pop())
    return part


def encode_answer(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Any,
    answers: Sequence[Any],
    max_length: int | None = None,
    row: Mapping[str, Any] | None = None,
) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, completion ids) of each of the `answers` to one prompt, tokenized and cut as TRL trains on them.

    Text ends with EOS; the completion begins where prompt and whole diverge; `max_length` cuts the end. The completion
    is empty where the prompt alone fills `max_length`. `row` has the tools and options of its chat template.
    """
    start = token_ids(tokenizer, prompt, True, row)
    wholes = []
    for answer in answers:
        whole = prompt + answer
        if isinstance(whole, str) and not whole.endswith(str(tokenizer.eos_token)):
            whole += tokenizer.eos_token
        wholes.append(token_ids(tokenizer, whole, row=row)[:max_length])
    # The first token has nothing before it that could predict it.
    common = max(min(common_prefix_length(start, whole) for whole in wholes), 1)
    return [(whole[:common], whole[common:]) for whole in wholes]
