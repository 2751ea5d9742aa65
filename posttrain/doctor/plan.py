"""The input of the doctor: the tokenizer and the rows that training would get."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from posttrain.data.loading import Data


@dataclass
class Plan:
    """The tokenizer and the rows of the training."""

    tokenizer: PreTrainedTokenizerBase
    data: Data
    notes: dict[str, str] = field(default_factory=dict)
