"""A trained reward model as a TRL reward function."""

from __future__ import annotations

from typing import Any

import torch

from posttrain.errors import PosttrainError
from posttrain.rewards.text import Completion
from posttrain.tokens import ids


class RewardModel:
    """Scores prompt and completion as token ids, just as `trl.RewardTrainer` tokenized its training pairs.

    `path` is a finished run directory (adapter or full) or a hub id. Text without EOS, which TRL's own scoring of
    non-conversational data would give the model, scores differently from what it was trained on (some -8.4 became
    -5.3), so EOS is appended here as `RewardTrainer` does.
    """

    def __init__(self, path: str, batch_size: int = 16, max_length: int | None = None, dtype: str = "auto"):
        from transformers import AutoTokenizer

        from posttrain.models import locate

        folder = locate(path)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            self.model = _load(path, dtype)
        except (OSError, ValueError) as error:
            raise PosttrainError(f"reward model {path}: cannot be loaded: {str(error).splitlines()[0]}") from error
        if self.model.config.num_labels != 1:
            raise PosttrainError(f"reward model {path}: has {self.model.config.num_labels} outputs, a reward has one")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        self.batch_size = batch_size
        self.max_length = max_length
        self.__name__ = "reward_model"

    @torch.no_grad()
    def __call__(self, completions: list[Completion], prompts: list[Completion], **columns: Any) -> list[float | None]:
        """One score per completion; `prompts` and `completions` are strings or lists of messages."""
        tokens = [self._ids(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
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

    def _ids(self, prompt: Any, completion: Any) -> list[int]:
        eos, whole = self.tokenizer.eos_token, prompt + completion
        if isinstance(whole, str) and not whole.endswith(eos):
            whole += eos
        return ids(self.tokenizer, whole)[: self.max_length]


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
