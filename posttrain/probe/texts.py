"""The probe's other inputs: texts by domain, harmful and harmless prompts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config.schema import DataConfig, ProbeConfig
from posttrain.data import files
from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ProbeTexts:
    """Token ids of texts by domain, and prompts by the name of their set."""

    texts: dict[str, list[list[int]]] = field(default_factory=dict)
    safety: dict[str, list[Any]] = field(default_factory=dict)


def check_files(config: ProbeConfig) -> Iterator[str]:
    """The local files that the probe reads."""
    paths = {
        "probe.texts": config.texts if config.texts != "embedded:texts" else None,
        "probe.safety.harmful": config.safety.harmful,
        "probe.safety.harmless": config.safety.harmless,
    }
    for key, value in paths.items():
        if value and value.startswith("embedded:"):
            yield f"{key}={value}: " + ("choose embedded:texts, or a file" if "texts" in key else "expected a file")
        elif value and not Path(os.path.expanduser(value)).is_file():
            yield f"{key}={value}: no such file"
        elif value and files.kind(Path(value)) is None:
            yield f"{key}={value}: expected a .jsonl, .json, .csv or .parquet file"


def load(config: ProbeConfig, tokenizer: PreTrainedTokenizerBase, conversational: bool) -> ProbeTexts:
    """Read what the config names; raises `PosttrainError` for a file without the columns.

    `conversational`: text prompts become a user turn, as the run's own prompts are.
    """
    texts: dict[str, list[list[int]]] = {}
    rows = _rows(config.texts, "probe.texts", ("text", "domain")) if config.texts else ()
    for number, row in enumerate(rows, 1):
        if not isinstance(row["text"], str):
            raise PosttrainError(
                f"probe.texts={config.texts}: row {number}, column text: expected text, got {row['text']!r:.80}"
            )
        if row["domain"] is None:
            raise PosttrainError(f"probe.texts={config.texts}: row {number}, column domain: expected a name, got null")
        domain = texts.setdefault(str(row["domain"]), [])
        # The first token is given and not predicted, so a text needs two.
        if len(domain) < config.text_rows and len(ids := tokenizer(row["text"])["input_ids"][: config.text_tokens]) > 1:
            domain.append(ids)
    if config.texts and not any(texts.values()):
        raise PosttrainError(f"probe.texts={config.texts}: no text in it is longer than one token")
    safety = {}
    for name, path in (("harmful", config.safety.harmful), ("harmless", config.safety.harmless)):
        if path:
            prompts = _rows(path, f"probe.safety.{name}", ("prompt",))["prompt"][: config.safety.prompts]
            turns = next((number for number, p in enumerate(prompts, 1) if not isinstance(p, str)), None)
            if turns and not tokenizer.chat_template:
                raise PosttrainError(
                    f"probe.safety.{name}={path}: row {turns}, column prompt: is a conversation, and the model has no "
                    "chat template; give the prompt as text, or set model.chat_template"
                )
            safety[name] = [
                [{"role": "user", "content": p}] if conversational and isinstance(p, str) else p for p in prompts
            ]
    return ProbeTexts({name: found for name, found in texts.items() if found}, safety)


def _rows(path: str, key: str, columns: tuple[str, ...]) -> Any:
    from posttrain.data.embedded import wheels
    from posttrain.data.reading import read

    file = str(wheels.texts()) if path == "embedded:texts" else path
    checked = tuple(name for name in columns if name == "prompt")  # texts are checked here
    rows = read(DataConfig(path=file, format="trl"), key, None, checked).rows
    if missing := [name for name in columns if name not in rows.column_names]:
        raise PosttrainError(
            f"{key}={path}: has no column {missing[0]!r}; it needs {' and '.join(columns)}, and has "
            f"{', '.join(rows.column_names) or 'none'}"
        )
    if not len(rows):
        raise PosttrainError(f"{key}={path}: has no rows")
    return rows
