"""The Hugging Face hub: the commit in the cache, and failed downloads explained with the fix."""

import sys
import threading
from pathlib import Path

# A hub that did not answer is not asked again for this long, so that not every job of a sweep waits a minute.
PAUSE_SECONDS = 300.0


def cached_commit(path: str, revision: str | None) -> str | None:
    """The commit of the model `path` that the local cache holds; `None` for a local folder."""
    from huggingface_hub import try_to_load_from_cache

    if Path(path).exists() or path.startswith("embedded:"):
        return None
    cached = try_to_load_from_cache(path, "config.json", revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else None


def explain(error: BaseException, path: str, what: str) -> str | None:
    """Why the hub did not give the `what` ("model", "data set") at `path`; `None` for an error of another kind."""
    from httpx2 import TransportError
    from huggingface_hub import errors

    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    text = " ".join(str(e) for e in chain)

    def any_of(*classes: type[BaseException]) -> bool:
        return any(isinstance(e, classes) for e in chain)

    # Phrases of the libraries, since a path may hold any word. `datasets` hides the cause: only the message tells a
    # gated data set from a missing one.
    if any_of(errors.GatedRepoError) or "' is a gated dataset on the Hub" in text:
        return f"gated on the hub; accept its terms on the page of {path}, then run `hf auth login`"
    if any_of(errors.RevisionNotFoundError):
        return f"the hub has no such revision of {path}"
    if any_of(errors.RepositoryNotFoundError) or type(error).__name__ == "DatasetNotFoundError":
        return f"no such {what} on the hub, nor a local folder; check the spelling, or log in if it is private"
    if any_of(errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, ConnectionError, TransportError):
        _pause()
        return (
            "not in the local cache, and the hub cannot be reached; check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        )
    if "`trust_remote_code=True`" in text:
        return "brings its own code, which would run here; read it, then set model.trust_remote_code=true"
    if "valid model identifier" in text or "not a local folder" in text:
        return f"no such {what} on the hub, nor a local folder; check the spelling, or log in if it is private"
    return None


def _pause() -> None:
    """Use the local cache only, without asking the hub, for `PAUSE_SECONDS`."""
    from huggingface_hub import constants

    def switch(offline: bool) -> None:
        for module in filter(None, (constants, sys.modules.get("datasets.config"))):
            vars(module)["HF_HUB_OFFLINE"] = offline

    if not constants.is_offline_mode():
        switch(True)
        again = threading.Timer(PAUSE_SECONDS, switch, [False])
        again.daemon = True
        again.start()


def cannot_load(error: BaseException, path: str) -> str:
    """Why the model at `path` cannot be loaded: `explain`, or else the first line of the error."""
    return (
        explain(error, path, "model")
        or f"cannot be loaded: {next(iter(str(error).splitlines()), type(error).__name__)}"
    )
