"""Reward models as TRL reward functions, which score the generated tokens themselves.

TRL's RLOO decodes completions without special tokens and tokenizes the text again for the reward model. The reward
model then never sees the EOS that `RewardTrainer` trained it on.
"""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl.data_utils import apply_chat_template, is_conversational

from .forward import apply_head, split_rows
from .roles import REWARD, Roles

Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Token ids and attention mask, (b, L), padded on the right, to scores, (b,)."""


def chat_tail(tokenizer: PreTrainedTokenizerBase, eos_token_ids: list[int], **template_kwargs: Any) -> list[int]:
    """Token ids that the chat template puts after the EOS of an assistant's turn, e.g. a newline.

    `RewardTrainer` renders them, generation stops before them, and the score is read at the last token.
    """
    if not tokenizer.chat_template:
        return []
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, **template_kwargs)
    ids = tokenizer(text=text, add_special_tokens=False)["input_ids"]
    ends = [i for i, token in enumerate(ids) if token in eos_token_ids]
    return list(ids[ends[-1] + 1 :]) if ends else []


def last_token(input_ids: torch.Tensor, pad_token_id: int) -> torch.Tensor:
    """Index of the token that Transformers' sequence classifiers score, (b,): the last one that is not the pad token.

    Where the pad token is the EOS token, this is the token before EOS, in training as here.
    """
    indices = torch.arange(input_ids.size(1), device=input_ids.device)
    return ((input_ids != pad_token_id) * indices).argmax(1)


@torch.no_grad()
def score_sequences(
    sequences: list[list[int]], score: Score, pad_token_id: int, context: "RewardContext"
) -> list[float]:
    """Score token sequences in batches of similar length; the scores come back in the order of the sequences."""
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    scores = [0.0] * len(sequences)
    for start in range(0, len(order), context.batch_size):
        batch = order[start : start + context.batch_size]
        lengths = torch.tensor([[len(sequences[i])] for i in batch], device=context.device)
        for group in split_rows(lengths):
            rows = batch[group]
            tensors = [torch.tensor(sequences[i]) for i in rows]
            input_ids = pad_sequence(tensors, True, pad_token_id).to(context.device)
            mask = pad_sequence([torch.ones_like(t) for t in tensors], True, 0).to(context.device)
            for i, value in zip(rows, score(input_ids, mask).float().tolist(), strict=True):
                scores[i] = value
    return scores


@dataclass
class RewardContext:
    """The trainer's parts that scoring needs.

    Args:
        tokenizer: the policy's.
        eos_token_ids: tokens that end a completion.
        chat_template_kwargs: extra variables of the chat template.
        batch_size: sequences scored at once, on `device`.
    """

    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: list[int]
    chat_template_kwargs: dict[str, Any]
    batch_size: int
    device: torch.device

    def ended(self, completion_ids: list[int]) -> bool:
        return completion_ids[-1] in self.eos_token_ids


class TokenReward:
    """A reward model with the policy's vocabulary, as a TRL reward function: it scores the token ids themselves.

    Conversational completions that ended get the [`chat_tail`] of the reward model's own tokenizer.
    """

    def __init__(self, name: str, score: Score, tokenizer: PreTrainedTokenizerBase, context: RewardContext):
        self.__name__ = name
        self.score = score
        self.pad_token_id = tokenizer.pad_token_id
        self.context = context
        self.tail = chat_tail(tokenizer, context.eos_token_ids, **context.chat_template_kwargs)

    def __call__(
        self, prompts: list[Any], prompt_ids: list[list[int]], completion_ids: list[list[int]], **_: Any
    ) -> list[float]:
        completions = self.completions(prompts, completion_ids)
        sequences = [[*prompt, *completion] for prompt, completion in zip(prompt_ids, completions, strict=True)]
        return score_sequences(sequences, self.score, self.pad_token_id, self.context)

    def completions(self, prompts: list[Any], completion_ids: list[list[int]]) -> list[list[int]]:
        """Token ids of the completions as the reward model scores them."""
        tail = self.tail if is_conversational({"prompt": prompts[0]}) else []
        return [[*ids, *(tail if self.context.ended(ids) else [])] for ids in completion_ids]


class TextReward:
    """A reward model with another vocabulary: completions reach it as text, with its own EOS where they ended."""

    def __init__(self, name: str, score: Score, tokenizer: PreTrainedTokenizerBase, context: RewardContext):
        self.__name__ = name
        self.score = score
        self.tokenizer = tokenizer
        self.context = context

    def __call__(
        self,
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[list[int]],
        tools: list[Any] | None = None,
        **_: Any,
    ) -> list[float]:
        chat = is_conversational({"prompt": prompts[0]})
        if chat:
            own = [json.loads(t) if isinstance(t, str) else t for t in tools or [None] * len(prompts)]
            settings = self.context.chat_template_kwargs
            texts = [
                apply_chat_template({"messages": p + c}, self.tokenizer, tools=t, **settings)["text"]
                for p, c, t in zip(prompts, completions, own, strict=True)
            ]
        else:
            eos = self.tokenizer.eos_token or ""
            texts = [
                p + c + (eos if self.context.ended(ids) else "")
                for p, c, ids in zip(prompts, completions, completion_ids, strict=True)
            ]
        # As RewardTrainer tokenizes: the tokenizer adds its special tokens to plain text; a chat template has them.
        sequences = self.tokenizer(text=texts, add_special_tokens=not chat)["input_ids"]
        return score_sequences(sequences, self.score, self.tokenizer.pad_token_id, self.context)


def reward_function(
    name: str, model: nn.Module, tokenizer: PreTrainedTokenizerBase, context: RewardContext
) -> TokenReward | TextReward:
    """A full sequence-classification model as a reward function."""

    def score(input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return model(input_ids=input_ids, attention_mask=mask).logits[:, 0]

    shared = tokenizer.get_vocab() == context.tokenizer.get_vocab()
    return (TokenReward if shared else TextReward)(name, score, tokenizer, context)


def adapter_tokenizer(folder: str | Path, default: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer saved next to a reward adapter, with its pad token and chat template; else the policy's."""
    if not (Path(folder) / "tokenizer_config.json").is_file():
        return default
    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    if tokenizer.get_vocab() != default.get_vocab():
        raise ValueError(
            f"reward_adapter={str(folder)!r} was trained with another vocabulary than the policy's: use one tokenizer "
            "for both."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def head_score(
    body: Callable[..., Any], head: nn.Linear, input_ids: torch.Tensor, mask: torch.Tensor, pad_token_id: int
) -> torch.Tensor:
    """Score of each sequence, (b,): the head on the hidden state of its last token, as sequence classifiers have it.

    `body` gives hidden states, (b, L, H); `input_ids` and `mask` are (b, L), padded on the right.
    """
    hidden = body(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state
    scores = apply_head(head, hidden)
    return scores.gather(1, last_token(input_ids, pad_token_id).to(scores.device).unsqueeze(1)).squeeze(1)


def adapter_score(roles: Roles, pad_token_id: int, autocast: Callable[[], AbstractContextManager]) -> Score:
    """Scores by the reward adapter on the shared base."""

    def score(input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        assert roles.reward_head is not None
        training = roles.base.training
        roles.base.eval()  # the policy may be trained with dropout, and scores are without
        try:
            with roles.use(REWARD), autocast():
                return head_score(roles.base.base_model, roles.reward_head, input_ids, mask, pad_token_id)
        finally:
            roles.base.train(training)

    return score
