"""The model card of a finished run."""

from pathlib import Path
from typing import Any

from posttrain.config import trainers
from posttrain.config.schema import Run
from posttrain.data.files import built_in, resolve
from posttrain.runs import metrics

# Licences of the models in conf/model, as the hub names them; another base's stands on its page.
LICENCES = {
    "embedded:smollm2": "apache-2.0",
    "meta-llama/Llama-3.1-8B-Instruct": "llama3.1",
    "meta-llama/Llama-3.2-1B-Instruct": "llama3.2",
    **dict.fromkeys(("Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B"), "apache-2.0"),
}
# The hub's model that an embedded one was made from. Its weights are not quite the same.
HUB_IDS = {"embedded:smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}


def hub_id(base: str) -> str | None:
    """The id under which the base `base` is on the hub; `None` for a folder and what exists only here."""
    if base.startswith(("embedded:", ".", "/", "~")) or Path(base).is_dir():
        return HUB_IDS.get(base)
    return base


def base_note(base: str) -> str | None:
    """A note on a base that other machines do not get from the hub as it is; `None` where none is needed."""
    if base in HUB_IDS:
        return (
            f"The base was `{base}`: {HUB_IDS[base]} from a 4-bit GGUF file, dequantized. Elsewhere an adapter loads "
            f"on {HUB_IDS[base]} itself, whose weights differ a little; a merged export has the exact weights."
        )
    if hub_id(base) is None:
        return f"The base `{base}` exists only where it was trained: an adapter on it loads nowhere else."
    return None


def write_card(
    folder: Path, run: Run, record: dict[str, Any], logged: Path, form: str = "", drift: list[str] | None = None
) -> None:
    """`README.md`: base, data, method, hyperparameters, held-out metrics before and after, and usage that generates.

    `logged` is the run's `metrics.jsonl`. `form` is adapter, full or merged, by default what was trained; `drift` has
    the figures of a merge, a line each.
    """
    from huggingface_hub import ModelCard, ModelCardData

    form = form or ("adapter" if run.peft.method == "lora" else "full")
    base = record.get("base", {}).get("path", run.model.path)
    data = record["data"]["path"]
    local = bool(run.data.mix) or not isinstance(run.data.path, str) or bool(resolve(data)) or Path(data).exists()
    card = ModelCardData(
        base_model=hub_id(base),
        base_model_relation={"adapter": "adapter", "full": "finetune", "merged": "finetune"}[form],
        license=LICENCES.get(base),
        datasets=None if local or built_in(data) else [data],
        library_name="peft" if form == "adapter" else "transformers",
        pipeline_tag="text-classification" if trainers.of(run.trainer.kind).scores else "text-generation",
        tags=["posttrain", "trl", run.trainer.kind],
    )
    what = {"adapter": "A LoRA adapter on", "full": "Fine-tuned from", "merged": "A LoRA adapter merged into"}[form]
    note = base_note(base) if form == "adapter" else None
    source = record["data"]
    text = f"""---
{card.to_yaml()}
---

# {record["name"]}

{what} `{base}`{f" at revision `{record['model']['commit']}`" if record["model"].get("commit") else ""}, \
trained by `{run.trainer.kind}` with [TRL](https://github.com/huggingface/trl) {record["versions"]["trl"]}.
{f"{chr(10)}{note}{chr(10)}" if note else ""}
- Data: `{data}`{f" ({source['name']})" if source["name"] else ""}, split `{source["split"]}`, \
fingerprint `{source["fingerprint"]}`. Trained on: {source["train_rows"]} rows; held out: {source["held_out_rows"]} \
({source["held_out"]}).
- Steps: {record["steps"]}, seed {record["seed"]}; {record["precision"]}.
- Command: `{record["command"]}`
- Licence: {f"`{LICENCES[base]}`, that of the base" if base in LICENCES else "that of the base; see its page"}.

## Hyperparameters

| option | value |
|---|---|
{_options(run)}

Other options that decide the result have the defaults of TRL {record["versions"]["trl"]}.

## Held out, before and after

{_before_after(logged)}
{drift_section(drift)}
## Use

{usage(trainers.of(run.trainer.kind).scores, form, folder, record.get("quantization") or {})}
"""
    ModelCard(text).save(folder / "README.md")


def _options(run: Run) -> str:
    """The options of the trainer and of LoRA that the run sets."""
    given = {**run.trainer.args, **{f"peft.{key}": value for key, value in run.peft.lora.items()}}
    if run.peft.method == "none":
        given = dict(run.trainer.args)
    given |= {f"quantization.{key}": value for key, value in run.peft.quantization.items()}
    return "\n".join(f"| {key} | {value} |" for key, value in sorted(given.items()) if value is not None)


def _before_after(logged: Path) -> str:
    """The held-out metrics that describe the model, as a table."""
    rows = [f"| {' | '.join(row)} |" for row in metrics.before_and_after(logged)]
    return "\n".join(["| metric | before | after |", "|---|---|---|", *rows]) if rows else "No rows were held out."


def drift_section(drift: list[str] | None) -> str:
    if drift is None:
        return ""
    lines = "\n".join(f"- {line[0].upper()}{line[1:]}." for line in drift)
    return f"\n## The merge\n\nThe saved weights against the adapter on the base that it was trained on:\n\n{lines}\n"


def usage(scores: bool, form: str, folder: Path, quantization: dict[str, Any]) -> str:
    kind = "SequenceClassification" if scores else "CausalLM"
    auto = f"AutoPeftModelFor{kind}" if form == "adapter" else f"AutoModelFor{kind}"
    module = "peft" if form == "adapter" else "transformers"
    labels = ", num_labels=1" if scores else ""
    imports, options, after = "AutoTokenizer", "", ""
    if form == "adapter" and quantization:
        imports = "AutoTokenizer, BitsAndBytesConfig"
        settings = ", ".join(f"{key}={value!r}" for key, value in quantization.items())
        options = f", quantization_config=BitsAndBytesConfig({settings})"
    if form == "adapter" and (folder / "generation_config.json").is_file():
        imports += ", GenerationConfig"
        after = '\nmodel.generation_config = GenerationConfig.from_pretrained("path/to/this/folder")'
    return f"""```python
from {module} import {auto}
from transformers import {imports}

model = {auto}.from_pretrained("path/to/this/folder"{labels}{options})
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder"){after}
{_call(scores, folder)}
```"""


def _call(scores: bool, folder: Path) -> str:
    """Example code that scores or generates an answer, with the chat template if the tokenizer has one."""
    chat = (folder / "chat_template.jinja").is_file()
    asked = '{"role": "user", "content": "What is the capital of France?"}'
    extra = ", add_special_tokens=False" if chat else ""
    if scores:
        conversation = f"[{asked}, " + '{"role": "assistant", "content": "Paris."}]'
        text = (
            f"tokenizer.apply_chat_template({conversation}, tokenize=False)"
            if chat
            else '"The capital of France is Paris."'
        )
        return f"""
inputs = tokenizer({text}, return_tensors="pt"{extra})
print(model(**inputs).logits.item())"""
    text = f"tokenizer.apply_chat_template([{asked}], tokenize=False, add_generation_prompt=True)"
    return f"""
prompt = {text if chat else '"The capital of France is"'}
inputs = tokenizer(prompt, return_tensors="pt"{extra})
output = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""
