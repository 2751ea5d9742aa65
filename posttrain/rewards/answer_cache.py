"""A cache on disk for the answers of a language model."""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError

Conversation = list[dict[str, Any]]
SAMPLING: dict[str, Any] = {"temperature": 0.0, "max_tokens": 512}


class JudgeClient:
    """Answers conversations, from the cache if possible. `name` is the model's; `asked` and `cached` count answers."""

    def __init__(self, name: str, cache: bool = True):
        self.name = name
        self.asked = self.cached = 0
        self._cache = cache

    def ask(self, conversations: Sequence[Conversation], **sampling: Any) -> list[str]:
        """The answer to each conversation (messages with role and content), in their order; equal ones are asked once.

        `sampling` are options of the chat completions protocol, by default greedy and at most 512 tokens; None leaves
        one out. The same question gets the same cached answer even with a temperature; another `seed` gives another.
        Raises `PosttrainError` where the model gives no answer.
        """
        options = {name: value for name, value in {**SAMPLING, **sampling}.items() if value is not None}
        keys = [self._key(conversation, options) for conversation in conversations]
        answers = {key: answer for key in dict.fromkeys(keys) if (answer := self._read_cached(key)) is not None}
        missing = {key: c for key, c in zip(keys, conversations, strict=True) if key not in answers}
        self.cached += sum(key in answers for key in keys)
        self.asked += len(missing)
        if missing:
            names = list(missing)

            def keep(index: int, answer: str) -> None:
                answers[names[index]] = answer
                self._write_cached(names[index], answer)

            self._ask_model(list(missing.values()), options, keep)
        return [answers[key] for key in keys]

    def check_reachable(self) -> None:
        """Raise `PosttrainError` where it is certain that the model will not answer; no weights are loaded."""
        raise NotImplementedError

    def _ask_model(
        self, conversations: list[Conversation], sampling: dict[str, Any], keep: Callable[[int, str], None]
    ) -> None:
        """Ask, and pass each answer to `keep` as it comes, so that answers before a failure are kept."""
        raise NotImplementedError

    @property
    def identity(self) -> dict[str, Any]:
        """Everything an answer depends on besides the question."""
        raise NotImplementedError

    def _key(self, conversation: Conversation, sampling: dict[str, Any]) -> str:
        asked = {**self.identity, "messages": conversation, "sampling": sampling}
        return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()

    def _read_cached(self, key: str) -> str | None:
        if not self._cache:
            return None
        try:
            return str(json.loads(_file(key).read_text(encoding="utf-8"))["answer"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # not there, or cut short by a full disk

    def _write_cached(self, key: str, answer: str) -> None:
        if not self._cache:
            return
        file = _file(key)
        # Other processes and threads may write the same answer: each through its own file.
        temporary = file.with_name(f".{key}.{os.getpid()}.{threading.get_ident()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({"answer": answer}), encoding="ascii")  # it may hold half a character
            os.replace(temporary, file)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise PosttrainError(
                f"{file.parent}: an answer cannot be kept ({error.strerror}); set POSTTRAIN_CACHE to a folder that can "
                "be written, or cache=false"
            ) from error


def _file(key: str) -> Path:
    from posttrain.data.embedded.wheels import cache_dir

    return cache_dir() / "answers" / key[:2] / f"{key}.json"
