"""The exact text that each trainer learns from, of ten published data sets' shapes, on four families' templates.

The rows are written in the shapes of the sets' cards. Each golden file has, for each trainer that can learn from them
and each template, the sequences and what is learnt of them; `refused` is what is said of a row that a template cannot
write. The doctor's sequences are compared with it for every pair, and so are the batches of two steps of training: here
on one template a set, on all of them with `-m slow`. Record anew, once a change is known to be meant:
`RECORD_GOLDEN=1 pytest tests/data/test_golden_text.py`.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import PosttrainError
from tests.data.test_cases import learnt, loaded, write
from tests.helpers import template_models

FOLDER = Path(__file__).parents[1] / "golden" / "data"
FAMILIES = ("qwen3", "llama31", "gemma", "mistral")
KINDS = ("sft", "reward", "dpo", "kto")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


HERMES = 'You are a function calling AI model. <tools>[{"name": "stock"}]</tools>'
HERMES_CALL = '<tool_call>\n{"name": "stock", "arguments": {"symbol": "TSLA"}}\n</tool_call>'
WEATHER = {"name": "weather", "description": "w", "parameters": {"type": "object", "properties": {}}}
OPENAI_CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
SETS: dict[str, dict[str, Any]] = {
    "ultrafeedback": {
        "source": "evol_instruct",
        "instruction": "Name a fruit.",
        "models": ["a", "b"],
        "completions": [
            {"response": "Apple.", "overall_score": 8.5, "model": "a"},
            {"response": "A car.", "overall_score": 2.0, "model": "b"},
        ],
    },
    "ultrafeedback_binarized": {
        "prompt": "Name a fruit.",
        "prompt_id": "f0",
        "chosen": [user("Name a fruit."), said("Apple.")],
        "rejected": [user("Name a fruit."), said("A car.")],
        "messages": [user("Name a fruit."), said("Apple.")],
        "score_chosen": 8.5,
        "score_rejected": 2.0,
    },
    "hh": {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: 2+2?\n\nAssistant: 4",
        "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: 2+2?\n\nAssistant: 5",
    },
    "orca_dpo_pairs": {"system": "", "question": "2+2?", "chosen": "4", "rejected": "5"},
    "sharegpt_tools": {
        "conversations": [
            {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
            {"from": "observation", "value": "4 C"},
            {"from": "gpt", "value": "It is 4 C."},
        ],
        "tools": json.dumps([WEATHER]),
    },
    "openai_chat": {
        "messages": [
            user("Weather?"),
            {"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "4 C"},
            said("5 C.", weight=0),
            user("No."),
            said("4 C.", weight=1),
        ],
        "tools": [{"type": "function", "function": WEATHER}],
    },
    "hermes_function_calling": {
        "id": "1",
        "conversations": [
            {"from": "system", "value": HERMES},
            {"from": "human", "value": "TSLA?"},
            {"from": "gpt", "value": HERMES_CALL},
            {"from": "tool", "value": '<tool_response>\n{"price": 1}\n</tool_response>'},
            {"from": "gpt", "value": "1 dollar."},
        ],
    },
    "tulu_mixture": {
        "id": "1",
        "messages": [user("Hi"), said("Hello."), user("2+2?"), said("4")],
        "source": "ai2-adapt-dev/oasst1_converted",
    },
    "gsm8k": {"question": "2+2?", "answer": "It is 2+2.\n#### 4"},
    "kto_mix": {"prompt": [user("2+2?")], "completion": [said("4")], "label": True},
    "reasoning": {
        "messages": [user("2+2?"), said("<think>\nTwo and two.\n</think>\n\n4")],
        "generations": ["x"],
    },
}
COLUMNS = {"gsm8k": {"prompt": "question", "completion": "answer"}}


def sequences(name: str, kind: str, family: str) -> Any:
    settings: dict[str, Any] = {"columns": COLUMNS[name], "conversational": True} if name in COLUMNS else {}
    try:
        return learnt(write(SETS[name]), kind, family, **settings)
    except PosttrainError as error:
        return {"refused": str(error).splitlines()[-1].strip()}


@pytest.mark.parametrize("name", SETS)
def test_the_text_is_that_recorded(name: str):
    found = {f"{kind}, {family}": sequences(name, kind, family) for kind in KINDS for family in FAMILIES}
    # Trainers that do not learn from such rows at all, whatever the template.
    found = {key: value for key, value in found.items() if "refused" not in value or "line 1" in value["refused"]}
    assert found
    file = FOLDER / f"{name}.json"
    if os.environ.get("RECORD_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    assert json.loads(json.dumps(found)) == json.loads(file.read_text())


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a tiny model, for each family's tokenizer."""
    made: dict[str, str] = {}

    def model(family: str) -> str:
        if family not in made:
            from transformers import LlamaConfig, LlamaForCausalLM

            tokenizer = template_models.tokenizer(family)
            sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
            config = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
            made[family] = str(tmp_path_factory.mktemp(family))
            LlamaForCausalLM(config).save_pretrained(made[family])
        return made[family]

    return model


def consumed(name: str, kind: str, family: str, model: str) -> set[tuple[str, str]]:
    """(All text, text that is learnt) of the batches that two steps of the trainer itself consume."""
    from posttrain.training import build
    from posttrain.training.parts import Parts

    settings: dict[str, Any] = {"columns": COLUMNS[name], "conversational": True} if name in COLUMNS else {}
    rows = loaded(write(SETS[name]), kind, family, **settings)[0].train
    tokenizer, steps, batch = template_models.tokenizer(family), 2, 2
    args = {
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "max_length": None,
        "gradient_checkpointing": False,
    }
    args |= {"output_dir": "out", "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    args |= {"use_cpu": True, "bf16": False, "model_init_kwargs": {}, "learning_rate": 1e-3}
    given = Parts(
        model=model,
        args=args,
        tokenizer=tokenizer,
        train=rows.select([n % len(rows) for n in range(steps * batch)]),
        eval=None,
        lora=None,
        quantization=None,
        callbacks=[],
        rewards={},
        reward_weights=[],
        share_prompts=False,
    )
    trainer = build.build(kind, given)
    batches, step = [], trainer.training_step

    def recorded(model: Any, inputs: Any, *more: Any) -> Any:
        batches.append(dict(inputs))
        return step(model, inputs, *more)

    trainer.training_step = recorded
    trainer.train()
    assert len(batches) == steps
    return {one for inputs in batches for one in _sequences(tokenizer, inputs)}


def _sequences(tokenizer: Any, batch: dict[str, Any]) -> list[tuple[str, str]]:
    """The sequences of a batch: what is no padding, and what the loss is taken on (a score: the last token)."""
    found = []
    for number, (ids, real) in enumerate(zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)):
        if "labels" in batch:
            trained = batch["labels"][number] != -100
        elif "completion_mask" in batch:
            trained = batch["completion_mask"][number].bool()
        else:
            trained = real & (real.cumsum(0) == real.sum())
        found.append((tokenizer.decode(ids[real]), tokenizer.decode(ids[trained])))
    return found


def check_two_steps(name: str, families: tuple[str, ...], models: Any) -> None:
    golden = json.loads((FOLDER / f"{name}.json").read_text())
    found = {}
    for pair, expected in golden.items():
        kind, family = pair.split(", ")
        if family in families and "refused" not in expected:
            found[pair] = (consumed(name, kind, family, models(family)), {tuple(one) for one in expected})
    assert found
    for pair, (theirs, expected) in found.items():
        assert theirs == expected, pair


@pytest.mark.parametrize("name", SETS)
def test_two_steps_consume_that_text(name: str, models: Any):
    """On one template a set; those that it cannot write are left to the first that can."""
    golden = json.loads((FOLDER / f"{name}.json").read_text())
    able = [f for f in FAMILIES if any(p.endswith(f) and "refused" not in e for p, e in golden.items())]
    check_two_steps(name, (able[list(SETS).index(name) % len(able)],), models)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_two_steps_consume_that_text_on_every_template(name: str, models: Any):
    check_two_steps(name, FAMILIES, models)
