"""Questions to a language model: one behind an OpenAI-compatible endpoint, or one loaded here. Answers are kept."""

import math
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError, first_line
from posttrain.rewards.answer_cache import SAMPLING, Conversation, JudgeClient
from posttrain.rewards.endpoint import Endpoint, check_endpoint

__all__ = ["Endpoint", "JudgeClient", "Local", "check_args", "check_endpoint", "open_judge"]

ENDPOINT_OPTIONS = ("key_env", "concurrency", "timeout", "retries", "backoff")
LOCAL_OPTIONS = ("batch_size",)


def check_args(args: dict[str, Any], key: str) -> list[str]:
    """Errors in the args of a reward that say where a model answers and how it is asked."""
    errors = []
    if args.get("endpoint") is not None and (wrong := check_endpoint(args["endpoint"])):
        errors.append(f"{key}.endpoint={args['endpoint']}: {wrong}")
    for name, least in (("concurrency", 1), ("batch_size", 1), ("retries", 0), ("max_tokens", 1)):
        value = args.get(name, least)
        if value is None and name == "max_tokens":  # is left out of the request
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            errors.append(f"{key}.{name}={value}: expected a whole number of at least {least}")
    for name in ("timeout", "backoff"):
        value = args.get(name, 1)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            errors.append(f"{key}.{name}={value}: expected a number of seconds above 0")
    if not isinstance(args.get("cache", True), bool):
        errors.append(f"{key}.cache={args['cache']}: expected true or false")
    if not isinstance(args.get("key_env", ""), str):
        errors.append(f"{key}.key_env={args['key_env']}: expected the name of an environment variable")
    if not isinstance(sampling := args.get("sampling") or {}, dict):
        errors.append(f"{key}.sampling={sampling}: expected options of the protocol, as {{seed: 1}}")
    elif args.get("endpoint") is None:
        try:
            _generation({name: value for name, value in sampling.items() if value is not None})
        except PosttrainError as error:
            errors.append(f"{key}.sampling.{error}")
        except (TypeError, ValueError) as error:
            errors.append(f"{key}.sampling={sampling}: {error}")
    return errors


def open_judge(model: str, endpoint: str | None = None, **options: Any) -> JudgeClient:
    """A client for `model` at the base URL `endpoint` (e.g. http://127.0.0.1:8000/v1), or for a run, folder or hub id.

    Options of an endpoint: `key_env` (the environment variable that holds its key), `concurrency`, `timeout` and
    `backoff` in seconds, `retries`; of a local model: `batch_size`; of both: `cache`. Those of the other are not read.
    """
    unread = LOCAL_OPTIONS if endpoint else ENDPOINT_OPTIONS
    options = {name: value for name, value in options.items() if name not in unread}
    return Endpoint(model, endpoint, **options) if endpoint else Local(model, **options)


class Local(JudgeClient):
    """A model that is loaded here, at the first question that is not in the cache."""

    def __init__(self, model: str, batch_size: int = 8, cache: bool = True):
        from posttrain.runs import lineage

        super().__init__(model, cache)
        self.source = lineage.source(model, key="model")
        if self.source.scores:
            raise PosttrainError(f"model={model}: a reward model, which answers nothing; give one that generates")
        self.batch_size = batch_size
        self._loaded: tuple[Any, Any] | None = None

    @cached_property
    def identity(self) -> dict[str, Any]:
        from posttrain.runs import lineage
        from posttrain.runs.content import content

        return {"model": content(Path(os.path.expanduser(self.name))), "base": lineage.weights_location(self.source)}

    def check_reachable(self) -> None:
        from posttrain.models import weights

        weights.check_model(self.source, "model", scores=False)
        self._tokenizer()

    def _ask_model(
        self, conversations: list[Conversation], sampling: dict[str, Any], keep: Callable[[int, str], None]
    ) -> None:
        import torch

        from posttrain.models.generate import encode_prompts, generate

        model, tokenizer = self._load()
        new, temperature, top_p, seed = _generation(sampling)
        encoded = encode_prompts(tokenizer, [{"prompt": conversation} for conversation in conversations])
        self._check_fit(model, max(map(len, encoded)), new)
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        # A training that asks keeps its random state.
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            for start in range(0, len(encoded), self.batch_size):
                drawn = generate(
                    model,
                    tokenizer,
                    encoded[start : start + self.batch_size],
                    max_new_tokens=new,
                    batch_size=self.batch_size,
                    do_sample=temperature > 0,
                    temperature=temperature,
                    top_p=top_p,
                )
                for offset, one in enumerate(drawn):
                    keep(start + offset, one.text)

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from posttrain.models import weights

            tokenizer = self._tokenizer()
            self._loaded = weights.load(self.source), tokenizer
        return self._loaded

    def _tokenizer(self) -> Any:
        from posttrain import hub
        from posttrain.models import weights

        try:
            tokenizer = weights.tokenizer(self.source)
        except (OSError, ValueError) as error:
            why = hub.explain(error, self.source.base, "model") or f"has no tokenizer: {first_line(error)}"
            raise PosttrainError(f"model={self.name}: {why}") from error
        if not tokenizer.chat_template:
            raise PosttrainError(f"model={self.source.name}: has no chat template; take an instruct model")
        return tokenizer

    def _check_fit(self, model: Any, longest: int, new: int) -> None:
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if context and longest + new > context:
            raise PosttrainError(
                f"model={self.source.name}: the longest question and its answer take {longest + new} tokens, and its "
                f"context is {context}; lower max_tokens, or take a model with a longer one"
            )


def _generation(sampling: dict[str, Any]) -> tuple[int, float, float, int]:
    """(new tokens, temperature, top_p, seed) of the protocol's options; raises `PosttrainError` for any other."""
    known = ("max_tokens", "max_completion_tokens", "temperature", "top_p", "seed")
    if unknown := sorted(sampling.keys() - {*known}):
        raise PosttrainError(f"{unknown[0]}: a local model does not take it; it takes {', '.join(known)}")
    given = {**SAMPLING, **sampling}  # null leaves an option out of a request; here it stands for the default
    new = given.get("max_completion_tokens") or given["max_tokens"]
    return int(new), float(given["temperature"]), float(given.get("top_p", 1.0)), int(given.get("seed", 0))
