"""The sizes of an architecture, as far as memory and time of a training depend on them."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """Sizes of an architecture. `queries`, `keys`: total widths of a token's queries and keys over all heads."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    queries: int
    keys: int
    vocabulary: int
    total: int
    trained: int
    tied: bool

    @property
    def embedding(self) -> int:
        """Weights of the embedding and the head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)


def of_config(known: Any, parameters: tuple[int, int]) -> Sizes:
    """The sizes in a model's own config; `parameters` are (all, trained)."""
    text = known.get_text_config()
    hidden = text.hidden_size
    heads = getattr(text, "num_attention_heads", None) or 1
    head = getattr(text, "head_dim", None) or hidden // heads
    inner = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * hidden
    experts = getattr(text, "num_experts_per_tok", None)
    return Sizes(
        layers=text.num_hidden_layers,
        hidden=hidden,
        intermediate=inner * experts if isinstance(experts, int) and experts else inner,
        heads=heads,
        queries=heads * head,
        keys=(getattr(text, "num_key_value_heads", None) or heads) * head,
        vocabulary=text.vocab_size,
        total=parameters[0],
        trained=parameters[1],
        tied=bool(getattr(text, "tie_word_embeddings", False)),
    )
