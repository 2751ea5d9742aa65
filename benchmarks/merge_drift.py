"""How far merging moves a model, by the type and the weights it merges into: the table of docs/export.md.

python benchmarks/merge_drift.py RUN   (a LoRA run that is not quantized; its adapter is also put on an NF4 base)
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain.jobs.train import quiet_libraries
from posttrain.models import drift
from posttrain.models.merge import merge
from posttrain.runs import lineage

NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}


# The adapter's base, its quantization and type; the weights that it is merged into; the type that is saved.
CASES: tuple[tuple[str, dict[str, Any], str, str, str], ...] = (
    ("bfloat16", {}, "bfloat16", "trained", "bfloat16"),
    ("bfloat16", {}, "bfloat16", "trained", "float32"),
    ("float32", {}, "float32", "trained", "bfloat16"),
    ("float32", {}, "float32", "trained", "float32"),
    ("NF4", NF4, "bfloat16", "trained", "bfloat16"),
    ("NF4", NF4, "bfloat16", "original", "bfloat16"),
)


def rows(source: lineage.Source, cases: Sequence[tuple[Any, ...]] = CASES) -> Iterator[dict[str, Any]]:
    """The drift of `source` merged in each of the ways of `cases`."""
    for name, quantization, dtype, into, output in cases:
        with tempfile.TemporaryDirectory() as folder:
            origin = replace(source, quantization=quantization, dtype=dtype)
            found = merge(origin, Path(folder) / "merged", output, list(drift.BUILT_IN), float("inf"), into)
        figures = {"mean": found.mean, "largest": found.largest, "effect": found.effect}
        yield {"adapter_on": name, "merged_into": into, "saved_as": output, **figures}


def main() -> None:
    quiet_libraries()
    print("| adapter on | merged into | saved as | mean KL | largest | effect |\n|---|---|---|---|---|---|")
    for row in rows(lineage.source(sys.argv[1])):
        print("| " + " | ".join(f"{x:.2g}" if isinstance(x, float) else x for x in row.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
