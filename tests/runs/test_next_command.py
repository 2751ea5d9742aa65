"""The commands that a finished run, a sampled data set and annotations suggest: each of them has to train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.config import composition, recipes
from posttrain.config.recipe_list import purposes
from posttrain.runs import card, summary
from posttrain.runs.directory import RunDirectory
from posttrain.runs.next_command import FAMILIES, training_command


def finished(name: str = "one", **record: object) -> RunDirectory:
    folder = Path("outputs") / name
    folder.mkdir(parents=True)
    record = {"status": "finished", "job": "train", "command": "posttrain", "adapter": {"r": 8}, **record}
    (folder / "run.json").write_text(json.dumps(record))
    return RunDirectory(folder)


def following(directory: RunDirectory) -> str:
    return summary.next_steps(directory, directory.record() or {})[-1].removeprefix("next     ")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["sft", "dpo", "reward", "ppo"])
def test_a_family_trains_the_model_that_its_suggestions_count_on(kind, family):
    assert f"{kind}_{family}" in purposes()
    assert composition.compose([f"+recipe={kind}_{family}"]).model.path == FAMILIES[family]


@pytest.mark.parametrize(
    ("kind", "record", "expected"),
    [
        ("sft", {"recipe": "sft_qwen"}, "posttrain +recipe=dpo_qwen model.init_from=outputs/one"),
        ("reward", {"recipe": "reward_qwen"}, "posttrain +recipe=ppo_qwen reward=rm reward.rm.model=outputs/one"),
        (
            "sft",
            {"recipe": "sft_qwen", "command": "posttrain +recipe=sft_qwen data.path=chats.jsonl"},
            "posttrain +recipe=dpo_qwen probe=default data.path=PAIRS model.init_from=outputs/one",
        ),
        (
            "reward",
            {"recipe": "reward_llama", "model": {"path": "ORG/OTHER"}, "quantization": {"load_in_4bit": True}},
            "posttrain trainer=ppo peft=qlora model.path=ORG/OTHER data.path=PROMPTS reward=rm "
            "reward.rm.model=outputs/one",
        ),
        (
            "sft",
            {"recipe": None, "model": {"path": "ORG/OTHER"}},
            "posttrain trainer=dpo peft=lora model.path=ORG/OTHER data.path=PAIRS model.init_from=outputs/one",
        ),
    ],
)
def test_the_next_step_keeps_the_base_and_the_rows_of_the_run(kind, record, expected):
    run = finished(**{"trainer": kind, "model": {"path": "Qwen/Qwen3-8B"}, **record})
    assert following(run) == expected


def test_sampled_rows_train_the_model_that_they_came_from():
    parent = finished(recipe="sft_smollm2", model={"path": "embedded:tiny"})
    said = training_command("dpo", str(parent.path), "sft_smollm2", "outputs/rows")
    assert said == (
        "posttrain trainer=dpo peft=lora model.path=embedded:tiny data.path=outputs/rows model.init_from=outputs/one"
    )
    said = training_command("sft", "Qwen/Qwen3-8B", "grpo_qwen", "rows")
    assert said == "posttrain +recipe=sft_qwen probe=default data.path=rows"


def test_steps_of_a_run_quote_its_folder_once():
    finished("other", trainer="dpo")
    run = finished("it's one", trainer="dpo", adapter=None)
    assert summary.next_steps(run, run.record() or {}) == [
        """talk     posttrain chat 'outputs/it'"'"'s one'""",
        "compare  posttrain report outputs",
        """use      posttrain export 'outputs/it'"'"'s one'""",
    ]


def test_every_model_of_the_package_has_its_licence_in_the_card():
    for option in recipes.groups()["model"]:
        path = composition.compose([f"model={option}"]).model.path
        assert path == "embedded:tiny" or path in card.LICENCES
