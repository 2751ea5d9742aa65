"""How far merging moves a model, by the type and the weights it merges into: the table of docs/export.md.

python benchmarks/merge_drift.py RUN   (a LoRA run that is not quantized; its adapter is also put on an NF4 base)
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

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


def main() -> None:
    quiet_libraries()
    source = lineage.source(sys.argv[1])
    prompts = list(drift.BUILT_IN)
    print("| adapter on | merged into | saved as | mean KL | largest | effect |\n|---|---|---|---|---|---|")
    for name, quantization, dtype, into, output in (
        ("bfloat16", {}, "bfloat16", "trained", "bfloat16"),
        ("bfloat16", {}, "bfloat16", "trained", "float32"),
        ("float32", {}, "float32", "trained", "bfloat16"),
        ("float32", {}, "float32", "trained", "float32"),
        ("NF4", NF4, "bfloat16", "trained", "bfloat16"),
        ("NF4", NF4, "bfloat16", "original", "bfloat16"),
    ):
        with tempfile.TemporaryDirectory() as folder:
            origin = replace(source, quantization=quantization, dtype=dtype)
            found = merge(origin, Path(folder) / "merged", output, prompts, float("inf"), into)
        figures = " | ".join(f"{x:.2g}" for x in (found.mean, found.largest, found.effect))
        print(f"| {name} | {into} | {output} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
