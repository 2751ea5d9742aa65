"""A trained reward model as a TRL reward function."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from posttrain.errors import PosttrainError
from posttrain.rewards.text import Completion
from posttrain.tokens import ids as token_ids


class RewardModel:
    """Scores prompt and completion as token ids, just as `trl.RewardTrainer` tokenized its training pairs.

    `path` is a finished run directory (adapter or full) or a hub id. Text without EOS, which TRL's own scoring of
    non-conversational data would give the model, scores differently from what it was trained on (some -8.4 became
    -5.3), so EOS is appended here as `RewardTrainer` does.

    With `shared` it loads no weights: `share` puts its adapter onto the base of a policy.
    """

    def __init__(
        self,
        path: str,
        batch_size: int = 16,
        max_length: int | None = None,
        dtype: str = "auto",
        shared: bool = False,
    ):
        from transformers import AutoTokenizer

        from posttrain.models import locate

        self.folder = locate(path)
        self.model: Any = None
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
            if not shared:
                self.model = _load(path, dtype)
        except (OSError, ValueError) as error:
            raise PosttrainError(f"reward model {path}: cannot be loaded: {str(error).splitlines()[0]}") from error
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if not shared:
            if self.model.config.num_labels != 1:
                raise PosttrainError(
                    f"reward model {path}: has {self.model.config.num_labels} outputs, a reward has one"
                )
            self.model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        self.batch_size = batch_size
        self.max_length = max_length
        self.__name__ = "reward_model"

    def share(self, policy: Any, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        """Score with this adapter and head on the base of `policy`, a `PeftModel`; no second base in memory."""
        self.model = _OnBase(policy, self.folder, self.tokenizer.pad_token_id, autocast)

    @torch.no_grad()
    def __call__(self, completions: list[Completion], prompts: list[Completion], **columns: Any) -> list[float | None]:
        """One score per completion; `prompts` and `completions` are strings or lists of messages."""
        tokens = [self.ids(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        scores: list[float | None] = [None] * len(tokens)
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            batch = self.tokenizer.pad(
                {"input_ids": [tokens[i] for i in part]}, padding_side="right", return_tensors="pt"
            ).to(self.model.device)
            logits = self.model(**batch).logits[:, 0].float().tolist()
            for i, score in zip(part, logits, strict=True):
                scores[i] = score
        return scores

    def ids(self, prompt: Any, completion: Any) -> list[int]:
        eos, whole = self.tokenizer.eos_token, prompt + completion
        if isinstance(whole, str) and not whole.endswith(eos):
            whole += eos
        return token_ids(self.tokenizer, whole)[: self.max_length]


class _OnBase:
    """A reward adapter and its head on the base of a policy, called as a sequence classifier is."""

    def __init__(self, policy: Any, folder: str, pad: int, autocast: Callable[[], AbstractContextManager[Any]]):
        from posttrain.ppo.roles import load_reward

        active = policy.active_adapter
        self.policy, self.pad, self.autocast = policy, pad, autocast
        self.head = load_reward(policy, folder)
        policy.set_adapter(active)  # freezes the new one

    @property
    def device(self) -> Any:
        return self.policy.device

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        from transformers.modeling_outputs import SequenceClassifierOutput
        from trl.trainer.utils import use_adapter

        from posttrain.ppo.forward import apply_head
        from posttrain.ppo.rewards import last_token
        from posttrain.ppo.roles import REWARD

        training = self.policy.training
        self.policy.eval()  # no dropout in scores
        try:
            with use_adapter(self.policy, REWARD), self.autocast():
                body = self.policy.get_base_model().base_model
                hidden = body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        finally:
            self.policy.train(training)
        scores = apply_head(self.head, hidden)
        return SequenceClassifierOutput(logits=scores.gather(1, last_token(input_ids, self.pad).unsqueeze(1)))


def _load(path: str, dtype: str) -> Any:
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoModelForSequenceClassification

    from posttrain import lineage

    origin = lineage.source(path, key="reward model")
    if origin.run is not None:  # on the weights it was trained on: their type and quantization decide its scores
        return lineage.load(origin, dtype=None if dtype == "auto" else dtype)
    auto: Any = AutoPeftModelForSequenceClassification if origin.adapter else AutoModelForSequenceClassification
    kwargs = {} if origin.adapter else {"use_safetensors": True}
    model = auto.from_pretrained(origin.adapter or origin.base, num_labels=1, dtype=dtype, **kwargs)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
