"""The model card of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.config import Run


def write_card(folder: Path, run: Run, record: dict[str, Any]) -> None:
    """`README.md`: what the model is, from what, on which data, with which metrics, and how to load it."""
    from huggingface_hub import ModelCard, ModelCardData

    base = run.model.path
    data = run.data.path
    local = base.startswith(("embedded:", ".", "/", "~"))
    card = ModelCardData(
        base_model=None if local else base,
        datasets=None if data.startswith("embedded:") or Path(data).exists() else [data],
        library_name="peft" if run.peft.method == "lora" else "transformers",
        pipeline_tag="text-classification" if run.trainer.kind == "reward" else "text-generation",
        tags=["posttrain", "trl", run.trainer.kind],
    )
    rows = [f"| {name} | {value:.4g} |" for name, value in sorted(record["metrics"].items())]
    what = "a LoRA adapter on" if run.peft.method == "lora" else "fine-tuned from"
    source = record["data"]
    text = f"""---
{card.to_yaml()}
---

# {record["name"]}

{what.capitalize()} `{base}`{f" at revision `{record['model']['commit']}`" if record["model"].get("commit") else ""}, \
trained by `{run.trainer.kind}` with [TRL](https://github.com/huggingface/trl) {record["versions"]["trl"]}.

- Data: `{data}`{f" ({source['name']})" if source["name"] else ""}, split `{source["split"]}`, \
{source["train_rows"]} rows, fingerprint `{source["fingerprint"]}`; held out: {source["held_out_rows"]} rows \
({source["held_out"]}).
- Steps: {record["steps"]}, seed {record["seed"]}; {record["precision"]}.
- Command: `{record["command"]}`

## Metrics at the end

| metric | value |
|---|---|
{chr(10).join(rows)}

## Use

```python
{_usage(run)}
```
"""
    ModelCard(text).save(folder / "README.md")


def _usage(run: Run) -> str:
    kind = "SequenceClassification" if run.trainer.kind == "reward" else "CausalLM"
    auto = f"AutoPeftModelFor{kind}" if run.peft.method == "lora" else f"AutoModelFor{kind}"
    module = "peft" if run.peft.method == "lora" else "transformers"
    labels = ", num_labels=1" if run.trainer.kind == "reward" else ""
    return f"""from {module} import {auto}
from transformers import AutoTokenizer

model = {auto}.from_pretrained("path/to/this/folder"{labels})
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")"""
