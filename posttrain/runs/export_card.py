"""The model card of what is exported from a run."""

from pathlib import Path

from posttrain.runs import card
from posttrain.runs.lineage import Source


def describe(folder: Path, source: Source, drift: list[str] | None = None) -> None:
    """`README.md` of an export of `source`; `drift` has the figures of a merge, a line each."""
    form = "merged" if drift else "adapter" if source.adapter else "full"
    if source.run is None:
        from huggingface_hub import ModelCard

        made = {"merged": "An adapter merged into", "adapter": "A LoRA adapter on", "full": "A copy of"}[form]
        use = card.render("use.md.jinja", folder, form, source.scores, drift=drift)
        ModelCard(f"---\ntags: [posttrain]\n---\n\n{made} `{source.base}`.\n\n{use}").save(folder / "README.md")
        return
    from posttrain.config.parse import parse
    from posttrain.runs import stored_config

    run = parse(stored_config.load(source.run.path))
    card.write_card(folder, run, source.record, source.run.metrics, form, drift)
