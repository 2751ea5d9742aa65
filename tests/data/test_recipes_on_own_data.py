"""Data of one's own on every recipe, in every form that its trainer learns from."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import trainers
from posttrain.config.recipes import ROOT
from posttrain.data.formats import ACCEPTS, NAMES
from posttrain.data.loading import load
from tests.helpers.runs import compose

ASKED, SAID, BAD = ({"role": r, "content": c} for r, c in (("user", "2+2?"), ("assistant", "4"), ("assistant", "5")))
FORMS: dict[str, dict[str, Any]] = {
    "text": {"text": "2+2? 4"},
    "prompt": {"prompt": "2+2?"},
    "prompt_conversational": {"prompt": [ASKED]},
    "completion": {"prompt": "2+2?", "completion": " 4"},
    "completion_conversational": {"prompt": [ASKED], "completion": [SAID]},
    "messages": {"messages": [ASKED, SAID]},
    "pairs": {"prompt": "2+2?", "chosen": " 4", "rejected": " 5"},
    "pairs_conversational": {"prompt": [ASKED], "chosen": [SAID], "rejected": [BAD]},
    "pairs_implicit": {"chosen": [ASKED, SAID], "rejected": [ASKED, BAD]},
    "labels": {"prompt": "2+2?", "completion": " 4", "label": True},
    "alpaca": {"instruction": "2+2?", "input": "", "output": "4"},
    "sharegpt": {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
    "openai": {"messages": [ASKED, {**SAID, "weight": 1}]},
    "openai_preference": {"input": {"messages": [ASKED]}, "preferred_output": [SAID], "non_preferred_output": [BAD]},
    "openai_rft": {"messages": [ASKED], "answer": "4"},
    "message_pairs": {"chosen_messages": [ASKED, SAID], "rejected_messages": [ASKED, BAD]},
    "labelled_messages": {"messages": [ASKED, SAID], "label": True},
    "ms_swift": {"query": "2+2?", "response": "4"},
    "ms_swift_preference": {"messages": [ASKED, SAID], "rejected_response": "5"},
    "hh": {side: f"\n\nHuman: 2+2?\n\nAssistant: {n}" for side, n in (("chosen", 4), ("rejected", 5))},
    "rankings": {"prompt": "2+2?", "completions": ["4", "5"], "ranks": [1, 2]},
    "orca": {"system": "Be brief.", "question": "2+2?", "chosen": "4", "rejected": "5"},
    "ratings": {"prompt": "2+2?", "completion": "4", "thumb": "up"},
    "ultrafeedback": {
        "instruction": "2+2?",
        "completions": [{"response": "4", "overall_score": 5}, {"response": "5", "overall_score": 1}],
    },
}
# What trainers read (`Kind.reads`) that learn from forms which are none of `ACCEPTS`, as docs/data.md has them.
ALL = ("text", "pairs", "labels", "prompts")
SERVES = {
    **dict.fromkeys(("alpaca", "sharegpt", "openai", "ms_swift"), ("text", "prompts")),
    **dict.fromkeys(("openai_preference", "message_pairs", "ms_swift_preference", "hh", "orca"), ALL),
    **dict.fromkeys(("ultrafeedback", "rankings"), ALL),
    "openai_rft": ("prompts",),
    "labelled_messages": ("labels", "text", "prompts"),
    "ratings": ("text", "labels", "prompts"),
}
# But for pipelines, whose stages have recipes of their own.
RECIPES = [p.stem for p in sorted((ROOT / "recipes").glob("*.yaml")) if "job: pipeline" not in p.read_text()]


def serves(form: str, reads: str) -> bool:
    if form in SERVES:
        return reads in SERVES[form]
    return any(set(needed) <= set(FORMS[form]) for needed in ACCEPTS[reads])


def test_all_documented_forms_are_among_them():
    documented = re.findall(r"(?m)^\| `(\w+)` \|.*\|.*\|.*\|$", (ROOT / "docs" / "data.md").read_text())
    assert {*documented} - {"trl"} == {*SERVES} == {*NAMES} - {"auto", "trl"}
    assert FORMS.keys() >= {*documented} - {"trl"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_documented_form_on_every_recipe(recipe: str):
    run, _ = compose(f"+recipe={recipe}", "data.path=mine.jsonl", "data.eval_size=0")
    kind, seen = run.trainer.kind, 0
    for form, row in FORMS.items():
        if serves(form, trainers.of(kind).reads):
            Path("mine.jsonl").write_text((json.dumps(row) + "\n") * 2)
            seen += 1
            data = load(run.data, kind)
            assert len(data.train), form
            assert data.source["parts"][""]["format"] == (form if form in SERVES else "trl")
    assert seen > 2


def test_what_the_command_itself_names_stays():
    run, _ = compose("+recipe=grpo_llama", "data.path=mine.jsonl", "data.columns={prompt: q}")
    assert run.data.columns == {"prompt": "q"}
    assert (run.data.conversational, run.data.name, run.data.eval_split) == (False, None, None)
    assert run.data.max_eval_rows == 256, "a size holds for any data"
    kept, _ = compose("+recipe=grpo_reasoning_smollm2", "data.path=reasoning_gym:leg_counting")
    assert kept.data.args["size"] == 500
    assert compose("+recipe=grpo_llama")[0].data.columns == {"prompt": "question"}
