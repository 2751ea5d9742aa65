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
    text = render(
        *("card.md.jinja", folder, form, trainers.of(run.trainer.kind).scores),
        card=card.to_yaml(),
        record=record,
        base=base,
        kind=run.trainer.kind,
        note=base_note(base) if form == "adapter" else None,
        licence=LICENCES.get(base),
        options=_options(run),
        measured=metrics.before_and_after(logged),
        drift=drift,
        quantization=record.get("quantization"),
    )
    ModelCard(text).save(folder / "README.md")


def render(
    template: str, folder: Path, form: str, scores: bool, quantization: dict[str, Any] | None = None, **values: Any
) -> str:
    """A card for the model in `folder` by one of the templates beside this file."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("posttrain.runs", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    loaded = quantization if form == "adapter" and quantization else {}
    return environment.get_template(template).render(
        **values,
        form=form,
        scores=scores,
        has_template=(folder / "chat_template.jinja").is_file(),
        own_generation=form == "adapter" and (folder / "generation_config.json").is_file(),
        quantization=", ".join(f"{key}={value!r}" for key, value in loaded.items()),
    )


def _options(run: Run) -> list[tuple[str, Any]]:
    """The options of the trainer and of LoRA that the run sets."""
    given = {**run.trainer.args, **{f"peft.{key}": value for key, value in run.peft.lora.items()}}
    if run.peft.method == "none":
        given = dict(run.trainer.args)
    given |= {f"quantization.{key}": value for key, value in run.peft.quantization.items()}
    return [(key, value) for key, value in sorted(given.items()) if value is not None]
