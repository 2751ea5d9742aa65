"""A trained reward model as a TRL reward function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from posttrain.errors import PosttrainError, first_line
from posttrain.models import weights
from posttrain.models.shared_within import shared_within
from posttrain.models.tokens import token_ids as token_ids
from posttrain.rewards import calibration as calibrations
from posttrain.rewards.text import Completion
from posttrain.runs import lineage


class RewardModel:
    """Scores prompt and completion as token ids, tokenized as `trl.RewardTrainer` tokenizes its training pairs.

    `path` is a finished run directory (adapter or full) or a hub id. `RewardTrainer` ends plain text with EOS, and so
    does this class. TRL's own scoring leaves EOS out, which changes the scores (in one case from -8.4 to -5.3).


    `scale` is none, zscore or temperature (by the stored calibration), or batch (zero mean, unit variance in each
    call); `length_penalty` is the reward subtracted per token of the completion, or "fitted"; `calibration` is the
    folder with the calibration, by default the run itself.

    With `shared` it loads no weights: `share` adds its adapter to the base of a policy. `beside` is another reward
    model, an adapter on the same base; this adapter is then added to that base.
    """

    def __init__(
        self,
        path: str,
        batch_size: int = 16,
        max_length: int | None = None,
        dtype: str = "auto",
        shared: bool = False,
        scale: str = "none",
        length_penalty: float | str | None = None,
        calibration: str | None = None,
        beside: RewardModel | None = None,
    ):
        self.source = lineage.source(path, key="reward model")
        self.model: Any = None
        self.adapter: str | None = None
        try:
            self.tokenizer = weights.tokenizer(self.source)
            if not shared:
                self._load(dtype, beside)
        except (OSError, ValueError) as error:
            raise PosttrainError(f"reward model {path}: cannot be loaded: {first_line(error)}") from error
        self.batch_size = batch_size
        self.max_length = max_length
        self.adjust = calibrations.adjustment(path, scale, length_penalty, calibration)
        self.__name__ = "reward_model"

    def share(self, policy: Any, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        """Score with this adapter and head on the base of `policy`, a `PeftModel`; no second base in memory."""
        assert self.source.adapter is not None
        self.model = _OnBase(policy, self.source.adapter, self.tokenizer.pad_token_id, autocast)

    def __call__(
        self, /, completions: list[Completion], prompts: list[Completion], **columns: Any
    ) -> list[float | None]:
        """One score per completion; `prompts` and `completions` are strings or lists of messages."""
        settings: list[str] = [name for name in ("tools", "chat_template_kwargs") if name in columns]
        rows: list[Any] = [{name: columns[name][n] for name in settings} for n in range(len(prompts))]
        tokens = list(map(self.ids, prompts, completions, rows))
        lengths = [0] * len(tokens)
        if self.adjust.penalty is not None:
            lengths = list(map(self.length, prompts, tokens, rows))
        return list(self.adjust(self._scores(tokens, [repr(prompt) for prompt in prompts]), lengths))

    @torch.no_grad()
    def _scores(self, tokens: list[list[int]], prompts: list[str] | None = None) -> list[float]:
        """The unadjusted score of each sequence of token ids, in batches of similar length, a prompt's together."""
        if self.adapter is not None:  # others on its base may have another token to pad with, too
            self.model.set_adapter(self.adapter, inference_mode=True)
            self.model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        prompts = prompts or [""] * len(tokens)
        longest: dict[str, int] = {}
        for prompt, ids in zip(prompts, tokens, strict=True):
            longest[prompt] = max(longest.get(prompt, 0), len(ids))
        order = sorted(range(len(tokens)), key=lambda i: (longest[prompts[i]], prompts[i], len(tokens[i])))
        scores = [0.0] * len(tokens)
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            batch = self.tokenizer.pad(
                {"input_ids": [tokens[i] for i in part]}, padding_side="right", return_tensors="pt"
            ).to(self.model.device)
            with shared_within(self.model):
                logits = self.model(**batch, use_cache=False).logits[:, 0].float().tolist()
            for i, score in zip(part, logits, strict=True):
                scores[i] = score
        return scores

    def ids(self, prompt: Any, completion: Any, row: Mapping[str, Any] | None = None) -> list[int]:
        eos, whole = self.tokenizer.eos_token, prompt + completion
        if isinstance(whole, str) and not whole.endswith(eos):
            whole += eos
        return token_ids(self.tokenizer, whole, row=row)[: self.max_length]

    def length(self, prompt: Any, whole: list[int], row: Mapping[str, Any] | None = None) -> int:
        """The number of tokens of the completion in `whole`, the ids of prompt and completion from `ids`."""
        return max(len(whole) - len(token_ids(self.tokenizer, prompt, True, row)), 0)

    def _load(self, dtype: str, beside: RewardModel | None) -> None:
        if beside is None:
            # Loaded with the dtype and quantization that it was trained on, since these change its scores.
            self.model = weights.load(self.source, dtype=None if dtype == "auto" else dtype, scores=True)
            self.model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
            return
        self.model, name = beside.model, f"reward_{len(beside.model.peft_config)}"
        self.model.load_adapter(self.source.adapter, adapter_name=name)
        self.model.eval()
        self.adapter, beside.adapter = name, beside.adapter or "default"


class AdjustedScore:
    """PPO's reward function for an adapter on the policy's base, whose scores go through `adjust`."""

    def __init__(self, function: Any, adjust: calibrations.Adjustment):
        self.function, self.adjust = function, adjust
        self.__name__ = function.__name__

    def __call__(self, /, prompts: list[Any], completion_ids: list[list[int]], **columns: Any) -> list[float]:
        scores = self.function(prompts=prompts, completion_ids=completion_ids, **columns)
        return self.adjust(scores, [len(ids) for ids in self.function.completions(prompts, completion_ids)])


class _OnBase:
    """A reward adapter and its head on the base of a policy, with the interface of a sequence classifier."""

    def __init__(self, policy: Any, folder: str, pad: int, autocast: Callable[[], AbstractContextManager[Any]]):
        from posttrain.ppo.roles import load_reward

        active = policy.active_adapter
        self.policy, self.pad, self.autocast = policy, pad, autocast
        self.head = load_reward(policy, folder)
        policy.set_adapter(active)  # freezes the new one

    @property
    def device(self) -> Any:
        return self.policy.device

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> Any:
        from transformers.modeling_outputs import SequenceClassifierOutput
        from trl.trainer.utils import use_adapter

        from posttrain.ppo.rewards import head_score
        from posttrain.ppo.roles import REWARD

        training = self.policy.training
        self.policy.eval()  # no dropout in scores
        try:
            with use_adapter(self.policy, REWARD), self.autocast():
                body = self.policy.get_base_model().base_model
                scores = head_score(body, self.head, input_ids, attention_mask, self.pad)
        finally:
            self.policy.train(training)
        return SequenceClassifierOutput(logits=scores.unsqueeze(1))
