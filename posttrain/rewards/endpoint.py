"""Questions to a language model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
import random
import re
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from posttrain.errors import PosttrainError
from posttrain.rewards.answer_cache import Conversation, JudgeClient

if TYPE_CHECKING:
    import httpx2

LONGEST_WAIT = 60.0


def _pause(stop: threading.Event, seconds: float) -> None:
    stop.wait(seconds)


def check_endpoint(endpoint: Any) -> str | None:
    """The error in a base URL, as it is written."""
    wrong = "expected a base URL such as http://127.0.0.1:8000/v1"
    if not isinstance(endpoint, str) or not re.match(r"https?://[^/?#]", endpoint) or set(endpoint) & set("?# "):
        return wrong
    if "@" in endpoint.split("/")[2]:
        return "holds a password, which would be stored; put the key into the environment, and name it with key_env"
    try:
        place = urlsplit(endpoint)
        (place.hostname or "").encode("idna")
        return wrong if place.port == 0 else None
    except ValueError as error:
        return f"{error}; {wrong}"


def key_header(key_env: str) -> dict[str, str]:
    """The header with the key in the environment variable `key_env`, or none; raises `PosttrainError` for no key."""
    key = (os.environ.get(key_env) or "").strip()
    if not (key.isascii() and (key.isprintable() or not key)):  # libraries would repeat it in their errors
        raise PosttrainError(f"key_env={key_env}: the environment variable holds characters that no key has; set it")
    return {"Authorization": f"Bearer {key}"} if key else {}


class Endpoint(JudgeClient):
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

    def _read_cached(self, key: str) -> str | None:
        """An empty answer may be a failure of the server, such as a content of null: it is asked again."""
        return super()._read_cached(key) or None

    def check_reachable(self, seconds: float = 5.0) -> None:
        """Raise `PosttrainError` where nothing answers at the endpoint, or it does not take the key."""
        import httpx2

        try:
            with self._client(seconds) as client:
                response = client.get(f"{self.url}/models")
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        if response.status_code in (401, 403):
            raise self._refused(response)

    def _ask_model(
        self, conversations: list[Conversation], sampling: dict[str, Any], keep: Callable[[int, str], None]
    ) -> None:
        stop = threading.Event()

        def one(client: httpx2.Client, index: int) -> None:
            if stop.is_set():
                return
            try:
                body = {"model": self.model, "messages": conversations[index], **sampling}
                keep(index, self._content(self._post(client, "chat/completions", body, stop)))
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

        return httpx2.Client(
            headers=key_header(self.key_env), timeout=httpx2.Timeout(seconds, connect=min(seconds, 10.0))
        )

    def request(self, path: str, body: dict[str, Any]) -> httpx2.Response:
        """The response to one request at `path` below the base URL; raises `PosttrainError` where there is none."""
        with self._client(self.timeout) as client:
            return self._post(client, path, body, threading.Event())

    def _post(self, client: httpx2.Client, path: str, body: dict[str, Any], stop: threading.Event) -> httpx2.Response:
        """A response; busy and failing servers are asked again, after waits that double, until `stop` is set."""
        import httpx2

        for attempt in range(self.retries + 1):
            last = attempt == self.retries or stop.is_set()
            try:
                response = client.post(f"{self.url}/{path}", json=body)
            except httpx2.RequestError as error:
                if last:
                    raise self._unreachable(error) from error
                self._wait(attempt, None, stop)
                continue
            if response.status_code == 200:
                return response
            if last or not (response.status_code in (408, 409, 429) or response.status_code >= 500):
                raise self._refused(response)
            self._wait(attempt, response.headers.get("retry-after"), stop)
        raise AssertionError("unreachable")

    def _wait(self, attempt: int, asked: str | None, stop: threading.Event) -> None:
        seconds = float(asked) if asked and asked.replace(".", "", 1).isdigit() else self.backoff * 2**attempt
        # A random factor, so that threads do not ask again at the same moment.
        _pause(stop, min(seconds, LONGEST_WAIT) * random.uniform(1.0, 1.25))

    def _content(self, response: httpx2.Response) -> str:
        try:
            message = response.json()["choices"][0]["message"]
            return str(message.get("content") or "")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise PosttrainError(
                f"endpoint={self.url}: answered something other than a chat completion "
                f"({self._server_message(response)!r}); is this the base URL of an OpenAI-compatible API, up to "
                "and with /v1?"
            ) from None

    def _unreachable(self, error: Exception) -> PosttrainError:
        why = "no answer in time" if "Timeout" in type(error).__name__ else str(error) or type(error).__name__
        return PosttrainError(
            f"endpoint={self.url}: cannot be reached ({why}); start the server, or correct the base URL, which ends "
            "with /v1 for most"
        )

    def _refused(self, response: httpx2.Response) -> PosttrainError:
        status, where = response.status_code, f"endpoint={self.url}"
        if status in (401, 403):  # the server's message may repeat the key
            known = "was not taken" if os.environ.get(self.key_env) else "is not set"
            return PosttrainError(
                f"{where}: {status}, no access; the environment variable {self.key_env} {known}; put the endpoint's "
                "key there, or name another variable with key_env"
            )
        if status == 404:
            return PosttrainError(
                f"{where}: 404 for the model {self.model}: {self._server_message(response)}; the endpoint has no such "
                "model, or the base URL lacks /v1"
            )
        fix = "lower concurrency, or ask again later" if status == 429 else "see what the server says"
        return PosttrainError(f"{where}: {status} from {self.model}: {self._server_message(response)}; {fix}")

    def _server_message(self, response: httpx2.Response) -> str:
        """The server's message in one line, with the key removed."""
        try:
            error = response.json()["error"]
            text = str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, KeyError, TypeError):
            text = response.text
        if key := (os.environ.get(self.key_env) or "").strip():
            text = text.replace(key, "***")
        return " ".join(text.split())[:200]
