"""Cosine similarity of embeddings, by an OpenAI-compatible endpoint or an encoder loaded here."""

import math
from collections.abc import Callable
from typing import Any

from posttrain.errors import PosttrainError, first_line
from posttrain.rewards.endpoint import Endpoint

Embed = Callable[[list[str]], list[list[float]]]
BATCH = 32


def open_embedder(model: str, endpoint: str | None = None, **options: Any) -> Embed:
    """A function from texts to vectors: of `model` at the base URL `endpoint`, or of that folder or hub id.

    `options` are those of `Endpoint`; a model that is loaded here reads none.
    """
    return _served(Endpoint(model, endpoint, **options)) if endpoint else _local(model)


def check_reachable(model: str, endpoint: str | None = None, key_env: str = "OPENAI_API_KEY") -> None:
    """Raise `PosttrainError` where it is certain that no embeddings will come; no weights are loaded."""
    if endpoint:
        return Endpoint(model, endpoint, key_env).check_reachable()
    from transformers import AutoConfig

    from posttrain import hub

    try:
        AutoConfig.from_pretrained(model, trust_remote_code=False)
    except Exception as error:
        raise PosttrainError(f"embeddings={model}: {hub.cannot_load(error, model)}") from error


def cosines(embed: Embed, pairs: list[tuple[str, str]]) -> list[float]:
    """The cosine of each pair's embeddings, in [-1, 1]; equal texts are embedded once."""
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    vectors: dict[str, list[float]] = {}
    for start in range(0, len(texts), BATCH):
        part = texts[start : start + BATCH]
        vectors |= dict(zip(part, embed(part), strict=True))
    return [_cosine(vectors[first], vectors[second]) for first, second in pairs]


def _cosine(first: list[float], second: list[float]) -> float:
    lengths = math.hypot(*first) * math.hypot(*second)
    return sum(a * b for a, b in zip(first, second, strict=True)) / lengths if lengths else 0.0


def _served(endpoint: Endpoint) -> Embed:
    def embed(texts: list[str]) -> list[list[float]]:
        # An endpoint takes no empty text.
        body = {"model": endpoint.model, "input": [text or " " for text in texts]}
        response = endpoint.request("embeddings", body)
        try:
            rows = sorted(response.json()["data"], key=lambda row: row["index"])
            vectors = [[float(value) for value in row["embedding"]] for row in rows]
            if len(vectors) != len(texts) or {len(vector) for vector in vectors} != {len(vectors[0]) or 1}:
                raise ValueError
            return vectors
        except (ValueError, KeyError, TypeError):
            raise PosttrainError(f"endpoint={endpoint.url}: answered something other than embeddings") from None

    return embed


def _local(model: str) -> Embed:
    """The mean of an encoder's last states over the tokens of a text (Reimers and Gurevych 2019, Sentence-BERT)."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        encoder: Any = AutoModel.from_pretrained(model, use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise PosttrainError(f"embeddings={model}: cannot be loaded: {first_line(error)}") from error
    encoder.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"  # so that no position moves

    def embed(texts: list[str]) -> list[list[float]]:
        # A text without a token has no mean.
        shown = [text or " " for text in texts]
        batch = tokenizer(shown, padding=True, truncation=True, return_tensors="pt").to(encoder.device)
        with torch.no_grad():
            states = encoder(**batch).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1)
        return ((states * mask).sum(1) / mask.sum(1)).tolist()

    return embed
