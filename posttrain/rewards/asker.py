"""Questions to a language model: one behind an OpenAI-compatible endpoint, or one loaded here. Answers are kept."""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    import httpx2

Conversation = list[dict[str, Any]]
SAMPLING: dict[str, Any] = {"temperature": 0.0, "max_tokens": 512}
LONGEST_WAIT = 60.0


def open_asker(model: str, endpoint: str | None = None, **options: Any) -> Asker:
    """Who answers: `model` at the base URL `endpoint` (such as http://127.0.0.1:8000/v1), or a run, folder or hub id.

    Options of an endpoint: `key_env` (the environment variable that holds its key), `concurrency`, `timeout` and
    `backoff` in seconds, `retries`; of a local model: `batch_size`; of both: `cache`.
    """
    return Endpoint(model, endpoint, **options) if endpoint else Local(model, **options)


class Asker:
    """Answers conversations, from the cache where it can. `name` says who answers; `asked` and `cached` count."""

    def __init__(self, name: str, cache: bool = True):
        self.name = name
        self.asked = self.cached = 0
        self._cache = cache

    def ask(self, conversations: Sequence[Conversation], **sampling: Any) -> list[str]:
        """The answer to each conversation (messages with role and content), in their order; equal ones are asked once.

        `sampling` are options of the chat completions protocol, by default greedy and at most 512 tokens; None leaves
        one out. With a temperature, too, the same question gets the same kept answer: vary `seed` for another.
        Raises `PosttrainError` where no answer can be had.
        """
        options = {name: value for name, value in {**SAMPLING, **sampling}.items() if value is not None}
        keys = [self._key(conversation, options) for conversation in conversations]
        answers = {key: answer for key in dict.fromkeys(keys) if (answer := self._kept(key)) is not None}
        missing = {key: c for key, c in zip(keys, conversations, strict=True) if key not in answers}
        self.cached += sum(key in answers for key in keys)
        self.asked += len(missing)
        if missing:
            names = list(missing)

            def keep(index: int, answer: str) -> None:
                answers[names[index]] = answer
                self._keep(names[index], answer)

            self._fresh(list(missing.values()), options, keep)
        return [answers[key] for key in keys]

    def _fresh(
        self, conversations: list[Conversation], sampling: dict[str, Any], keep: Callable[[int, str], None]
    ) -> None:
        """Ask, and give each answer to `keep` as it comes, so that what was answered before a failure is kept."""
        raise NotImplementedError

    @property
    def identity(self) -> dict[str, Any]:
        """What an answer depends on beside the question."""
        raise NotImplementedError

    def _key(self, conversation: Conversation, sampling: dict[str, Any]) -> str:
        asked = {**self.identity, "messages": conversation, "sampling": sampling}
        return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()

    def _kept(self, key: str) -> str | None:
        if not self._cache:
            return None
        try:
            return str(json.loads(_file(key).read_text(encoding="utf-8"))["answer"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # not there, or cut short by a full disk

    def _keep(self, key: str, answer: str) -> None:
        if not self._cache:
            return
        file = _file(key)
        # Other processes and threads may write the same answer: each through a file of its own.
        half = file.with_name(f".{key}.{os.getpid()}.{threading.get_ident()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            half.write_text(json.dumps({"answer": answer}, ensure_ascii=False), encoding="utf-8")
            os.replace(half, file)
        except OSError as error:
            half.unlink(missing_ok=True)
            raise PosttrainError(
                f"{file.parent}: an answer cannot be kept ({error.strerror}); set POSTTRAIN_CACHE to a folder that can "
                "be written, or cache=false"
            ) from error


def _file(key: str) -> Path:
    from posttrain.assets import cache_dir

    return cache_dir() / "answers" / key[:2] / f"{key}.json"


class Endpoint(Asker):
    """A model behind an endpoint that speaks OpenAI's chat completions protocol (OpenAI, vLLM, llama.cpp, Ollama)."""

    def __init__(
        self,
        model: str,
        endpoint: str,
        key_env: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 5,
        backoff: float = 1.0,
        cache: bool = True,
    ):
        super().__init__(f"{model} at {endpoint}", cache)
        if wrong := check_endpoint(endpoint):
            raise PosttrainError(f"endpoint={endpoint}: {wrong}")
        self.model, self.key_env = model, key_env
        self.url = endpoint.rstrip("/").removesuffix("/chat/completions")
        self.concurrency, self.timeout, self.retries, self.backoff = concurrency, timeout, retries, backoff

    @property
    def identity(self) -> dict[str, Any]:
        return {"model": self.model, "endpoint": self.url}

    def reach(self, seconds: float = 5.0) -> None:
        """Raise `PosttrainError` where nothing answers at the endpoint, or it does not take the key."""
        import httpx2

        try:
            with self._client(seconds) as client:
                response = client.get(f"{self.url}/models")
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        if response.status_code in (401, 403):
            raise self._refused(response)

    def _fresh(
        self, conversations: list[Conversation], sampling: dict[str, Any], keep: Callable[[int, str], None]
    ) -> None:
        stop = threading.Event()

        def one(client: httpx2.Client, index: int) -> None:
            if stop.is_set():
                return
            try:
                keep(index, self._post(client, {"model": self.model, "messages": conversations[index], **sampling}))
            except BaseException:
                stop.set()
                raise

        with self._client(self.timeout) as client, ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(one, client, index) for index in range(len(conversations))]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            finally:
                stop.set()  # after Ctrl-C, too, nothing further is asked
                pool.shutdown(wait=True, cancel_futures=True)

    def _client(self, seconds: float) -> httpx2.Client:
        import httpx2

        key = os.environ.get(self.key_env)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx2.Client(headers=headers, timeout=httpx2.Timeout(seconds, connect=min(seconds, 10.0)))

    def _post(self, client: httpx2.Client, body: dict[str, Any]) -> str:
        """One answer; busy and failing servers are asked again, after waits that double."""
        import httpx2

        for attempt in range(self.retries + 1):
            last = attempt == self.retries
            try:
                response = client.post(f"{self.url}/chat/completions", json=body)
            except httpx2.TransportError as error:
                if last:
                    raise self._unreachable(error) from error
                self._wait(attempt, None)
                continue
            if response.status_code == 200:
                return self._content(response)
            if last or not (response.status_code in (408, 409, 429) or response.status_code >= 500):
                raise self._refused(response)
            self._wait(attempt, response.headers.get("retry-after"))
        raise AssertionError("unreachable")

    def _wait(self, attempt: int, asked: str | None) -> None:
        seconds = float(asked) if asked and asked.replace(".", "", 1).isdigit() else self.backoff * 2**attempt
        # Not all at the same moment again.
        time.sleep(min(seconds, LONGEST_WAIT) * random.uniform(1.0, 1.25))

    def _content(self, response: httpx2.Response) -> str:
        try:
            message = response.json()["choices"][0]["message"]
            return str(message.get("content") or "")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise PosttrainError(
                f"endpoint={self.url}: answered something other than a chat completion "
                f"({self._said(response)!r}); is this the base URL of an OpenAI-compatible API, up to and with /v1?"
            ) from None

    def _unreachable(self, error: Exception) -> PosttrainError:
        why = "no answer in time" if "Timeout" in type(error).__name__ else str(error) or type(error).__name__
        return PosttrainError(
            f"endpoint={self.url}: cannot be reached ({why}); start the server, or correct the base URL, which ends "
            "with /v1 for most"
        )

    def _refused(self, response: httpx2.Response) -> PosttrainError:
        status, where = response.status_code, f"endpoint={self.url}"
        if status in (401, 403):  # what it says may repeat the key
            known = "was not taken" if os.environ.get(self.key_env) else "is not set"
            return PosttrainError(
                f"{where}: {status}, no access; the environment variable {self.key_env} {known}; put the endpoint's "
                "key there, or name another variable with key_env"
            )
        if status == 404:
            return PosttrainError(
                f"{where}: 404 for the model {self.model}: {self._said(response)}; the endpoint has no such model, or "
                "the base URL lacks /v1"
            )
        mend = "lower concurrency, or ask again later" if status == 429 else "see what the server says"
        return PosttrainError(f"{where}: {status} from {self.model}: {self._said(response)}; {mend}")

    def _said(self, response: httpx2.Response) -> str:
        """The server's message in a line, without the key should it repeat it."""
        try:
            said = response.json()["error"]
            text = str(said["message"] if isinstance(said, dict) else said)
        except (ValueError, KeyError, TypeError):
            text = response.text
        if key := os.environ.get(self.key_env):
            text = text.replace(key, "***")
        return " ".join(text.split())[:200]


class Local(Asker):
    """A model that is loaded here, at the first question that is not in the cache."""

    def __init__(self, model: str, batch_size: int = 8, cache: bool = True):
        from posttrain import lineage

        super().__init__(model, cache)
        self.source = lineage.source(model, key="model")
        if self.source.scores:
            raise PosttrainError(f"model={model}: a reward model, which answers nothing; give one that generates")
        self.batch_size = batch_size
        self._loaded: tuple[Any, Any] | None = None

    @property
    def identity(self) -> dict[str, Any]:
        from posttrain import lineage

        return {"model": lineage.place(self.source), "adapter": _digest(self.source.adapter)}

    def _fresh(
        self, conversations: list[Conversation], sampling: dict[str, Any], keep: Callable[[int, str], None]
    ) -> None:
        import torch

        from posttrain.generate import encode_prompts, generate

        model, tokenizer = self._load()
        new, temperature, top_p, seed = _generation(sampling)
        encoded = encode_prompts(tokenizer, [{"prompt": conversation} for conversation in conversations])
        self._check_fit(model, max(map(len, encoded)), new)
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        # The random state of a training that asks goes on as if nothing had been asked.
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
            from posttrain import lineage

            tokenizer = lineage.tokenizer(self.source)
            if not tokenizer.chat_template:
                raise PosttrainError(f"model={self.source.name}: has no chat template; take an instruct model")
            self._loaded = lineage.load(self.source), tokenizer
        return self._loaded

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
    new = sampling.get("max_completion_tokens") or sampling["max_tokens"]
    return int(new), float(sampling["temperature"]), float(sampling.get("top_p", 1.0)), int(sampling.get("seed", 0))


def _digest(adapter: str | None) -> str | None:
    from posttrain.rundir import files_digest

    return adapter and files_digest([*Path(adapter).glob("*.safetensors")])


def check_endpoint(endpoint: Any) -> str | None:
    """What is wrong with a base URL, as it is written."""
    if not isinstance(endpoint, str) or not endpoint.startswith(("http://", "https://")):
        return "expected a base URL such as http://127.0.0.1:8000/v1"
    if "@" in endpoint.split("/")[2]:
        return "holds a password, which would be stored; put the key into the environment, and name it with key_env"
    return None
