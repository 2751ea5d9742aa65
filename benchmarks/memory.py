"""The memory table of the README: which size of Llama 3 trains on which GPU, by arithmetic, not by measurement.

    python benchmarks/memory.py

Counted: weights, gradients and AdamW's moments, the activations that gradient checkpointing keeps and those of the one
layer that is computed again, the key-value cache while sampling, PPO's value adapter, full fine-tuning's reference, and
CUDA itself (1 GB). Not counted: the logits of a pass, which TRL computes piece by piece. A GPU fits with 10% to spare.
"""

from __future__ import annotations

from dataclasses import dataclass

# Tokens of a training pass, answers that are sampled at once, and tokens of such an answer with its prompt.
TOKENS, ANSWERS, LENGTH = 8192, 32, 700
SIZES = (12, 16, 24, 40, 48, 80)  # GB of common GPUs
SPARE = 1.0  # GB that CUDA takes
HEADROOM = 1.1  # for fragmentation
METHODS = ("SFT, reward", "DPO, KTO", "GRPO, RLOO", "PPO")


@dataclass(frozen=True)
class Model:
    """Sizes of an architecture: weights of linear layers and of embeddings in billions, LoRA weights a unit of rank."""

    linear: float
    embedding: float
    layers: int
    hidden: int
    intermediate: int
    kv: int  # key and value numbers a layer and token
    rank: float  # millions of LoRA weights on all linear layers, a unit of rank


LLAMA = {
    "1B": Model(0.973, 0.263, 16, 2048, 8192, 1024, 0.704),
    "3B": Model(2.819, 0.394, 28, 3072, 8192, 2048, 1.519),
    "8B": Model(6.980, 1.051, 32, 4096, 14336, 2048, 2.621),
}


def gigabytes(model: Model, peft: str, method: str, rank: int = 16) -> float:
    """Peak memory of a run, in GB."""
    weights = model.linear + model.embedding
    adapter = model.rank * rank / 1000 * 16  # float32 weight, gradient and two moments
    if peft == "full":
        used = weights * 16 + (weights * 4 if method != "SFT, reward" else 0)  # the reference is a copy
    else:
        used = adapter + (model.linear * 0.52 + model.embedding * 2 if peft == "QLoRA" else weights * 2)
    used += TOKENS * model.hidden * model.layers * 2 / 1e9
    used += TOKENS * model.intermediate * 2 * 8 / 1e9
    if method in METHODS[2:]:
        used += ANSWERS * LENGTH * model.layers * model.kv * 2 / 1e9
    return used + (adapter if method == "PPO" and peft != "full" else 0) + SPARE


def table() -> str:
    """The table in Markdown: GB, and the smallest common GPU that has them."""
    lines = ["| Llama 3 | trained as | " + " | ".join(METHODS) + " |", "|---|---|" + "---|" * len(METHODS)]
    for name, model in LLAMA.items():
        for peft in ("QLoRA", "LoRA", "full"):
            cells = [_cell(gigabytes(model, peft, method)) for method in METHODS]
            lines.append(f"| {name} | {peft} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(used: float) -> str:
    fits = next((f"{size} GB" for size in SIZES if used * HEADROOM <= size), "several GPUs")
    return f"{used:.0f} GB: {fits}"


if __name__ == "__main__":
    print(table())
