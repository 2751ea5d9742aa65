"""Every format people have: told from its rows, converted, trained on; and what is said of a row that does not fit.

The files in tests/formats have the shape of each format's public documentation; NAME.broken.jsonl is NAME.jsonl with
one row that does not fit.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.schema import DataConfig
from posttrain.data.loading import LEARNT, load
from posttrain.errors import PosttrainError
from tests.helpers.runs import rows as json_rows

FILES = Path(__file__).parent / "formats"
TOOL_CALL = [{"type": "function", "function": {"name": "get_current_weather", "arguments": {"location": "Paris"}}}]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


# file -> format, trainer, what the rows become (TRL's columns, in order), and what the error says of its broken twin.
CASES: dict[str, tuple[str, str, list[dict[str, Any]], str]] = {
    "trl": (
        "trl",
        "sft",
        [{"prompt": "The sky is", "completion": " blue."}],
        "line 2, completion: expected text or a list of messages, got 7",
    ),
    "trl_conversational": (
        "trl",
        "sft",
        [{"messages": [user("Hello, how are you?"), said("I'm doing great. How can I help you today?")]}],
        "line 2, messages[0]: expected a message with role and content (or from and value), got {'speaker': 'user'",
    ),
    "alpaca": (
        "alpaca",
        "sft",
        [
            {
                "prompt": [user("Give three tips for staying healthy.")],
                "completion": [said("Eat, move and sleep well.")],
            },
            {
                "prompt": [user("Identify the odd one out.\n\nTwitter, Instagram, Telegram")],
                "completion": [said("Telegram")],
            },
        ],
        "line 3, output: is empty",
    ),
    "sharegpt": (
        "sharegpt",
        "sft",
        [
            {"messages": [user("Who are you?"), said("An assistant."), user("Since when?"), said("Today.")]},
            {"messages": [{"role": "system", "content": "Be kind."}, user("Hi"), said("Hello.")]},
            {
                "messages": [
                    user("Weather in Paris?"),
                    said("", tool_calls=TOOL_CALL),
                    {"role": "tool", "content": '{"temperature": 20}'},
                    said("20 degrees."),
                ]
            },
        ],
        "line 1, conversations[0].from: expected human, gpt, system or tool, got 'narrator'",
    ),
    "openai": (
        "openai",
        "sft",
        [
            {
                "messages": [
                    {"role": "system", "content": "Marv is a factual chatbot that is also sarcastic."},
                    user("What's the capital of France?"),
                    said("Paris", weight=0),
                    user("Can you be more sarcastic?"),
                    said("Paris, as if everyone doesn't know that already.", weight=1),
                ]
            },
            {
                "messages": [
                    user("What's the weather like in Boston today?"),
                    said(
                        "",
                        tool_calls=[
                            {
                                "id": "call_id",
                                "type": "function",
                                "function": {"name": "get_current_weather", "arguments": {"location": "Boston"}},
                            }
                        ],
                    ),
                    {"role": "tool", "content": "21.0", "tool_call_id": "call_id"},
                    said("It is 21 degrees."),
                ]
            },
        ],
        "line 1, messages[2].weight: expected 0 or 1, got 0.5",
    ),
    "openai_preference": (
        "openai_preference",
        "dpo",
        [
            {
                "prompt": [user("Hello, can you tell me how cold San Francisco is today?")],
                "chosen": [said("Today in San Francisco, it is not quite cold as expected.")],
                "rejected": [said("It is not particularly cold in San Francisco today.")],
            }
        ],
        "line 2, preferred_output: expected a list of messages, got 'About 384,400 km.'",
    ),
    "openai_rft": (
        "openai_rft",
        "grpo",
        [{"prompt": [user("Where does our company have offices?")]}],
        "line 3, messages[1].role: the last message must be the user's",
    ),
    "hh": (
        "hh",
        "reward",
        [
            {
                "prompt": [
                    user("What kind of noises did dinosaurs make?"),
                    said("Nobody knows for sure."),
                    user("Do you have a guess?"),
                ],
                "chosen": [said("Perhaps like birds.")],
                "rejected": [said("Humans roar.")],
            }
        ],
        "line 2, chosen[0]: the last message is the user's; nothing is answered",
    ),
    "ultrafeedback": (
        "ultrafeedback",
        "dpo",
        [
            {"prompt": [user("Name a fruit.")], "chosen": [said("Apple.")], "rejected": [said("Fruit.")]},
            {"prompt": [user("Name a fruit.")], "chosen": [said("Apple.")], "rejected": [said("A car.")]},
            {"prompt": [user("Name a fruit.")], "chosen": [said("Fruit.")], "rejected": [said("A car.")]},
            {"prompt": [user("Count to three.")], "chosen": [said("1 2 3")], "rejected": [said("1 2")]},
        ],
        "line 3, completions[0].overall_score: expected a number, got 'N/A'",
    ),
    "ultrafeedback_binarized": (
        "trl",
        "dpo",
        [{"prompt": [user("Name a fruit.")], "chosen": [said("Apple.")], "rejected": [said("A car.")]}],
        "line 1, chosen[1].content: an assistant turn is empty",
    ),
    "rankings": (
        "rankings",
        "reward",
        [
            {
                "prompt": [user("What is the capital of France?")],
                "chosen": [said("Paris.")],
                "rejected": [said(answer)],
            }
            for answer in ("Lyon.", "A city.")
        ],
        "line 1, ranks[1]: expected a number, got 'second'",
    ),
    "ratings": (
        "ratings",
        "dpo",
        [
            {"prompt": "Name a fruit.", "chosen": "Apple.", "rejected": "A car."},
            {"prompt": "Name a colour.", "chosen": "Red.", "rejected": "Two."},
        ],
        "line 4, rating: expected a number, got 'poor'",
    ),
    "thumbs": (
        "ratings",
        "kto",
        [
            {"prompt": "Name a colour.", "completion": "Red.", "label": True},
            {"prompt": "Name a colour.", "completion": "Two.", "label": False},
        ],
        "line 2, completion: is missing",
    ),
}


def config(name: str, **settings: Any) -> DataConfig:
    return DataConfig(path=str(FILES / f"{name}.jsonl"), eval_size=0, **settings)


def trl_only(row: dict[str, Any]) -> dict[str, Any]:
    columns = ("messages", "prompt", "completion", "chosen", "rejected", "label")
    return {name: row[name] for name in columns if name in row}


@pytest.mark.parametrize("name", CASES)
def test_rows_become_what_the_trainer_takes(name: str):
    format_, kind, expected, _ = CASES[name]
    data = load(config(name), kind)
    part = data.source["parts"][""]
    assert (part["format"], part["detected"]) == (format_, True)
    found = [trl_only(row) for row in data.train]
    if kind == "kto":  # shuffled, so that neighbours differ
        assert all(row in found for row in expected)
    else:
        assert found[: len(expected)] == expected
    said = data.describe()["columns"]
    assert said.startswith(", ".join(name for name in LEARNT if name in data.first.column_names))
    assert (f"; read as {format_}: " in said) == (format_ != "trl")


@pytest.mark.parametrize("name", CASES)
def test_a_row_that_does_not_fit_is_named(name: str):
    _, kind, _, message = CASES[name]
    with pytest.raises(PosttrainError) as error:
        load(config(f"{name}.broken"), kind)
    assert f"{name}.broken.jsonl, {message}" in str(error.value)
    assert "data.on_error=skip" in str(error.value)
    whole, rest = load(config(name), kind), load(config(f"{name}.broken", on_error="skip"), kind)
    assert rest.source["parts"][""]["skipped"] == 1
    assert len(rest.train) < len(whole.train)
    (skipped,) = rest.skipped
    (entry,) = json_rows(skipped.path)
    field = message.split(", ", 1)[1].split(":")[0]
    assert message.startswith(f"line {entry['line']}, ")
    assert entry["field"] == field
    assert Path(entry["file"]).name == f"{name}.broken.jsonl"
    assert entry["row"] == json_rows(FILES / f"{name}.broken.jsonl")[entry["line"] - 1]


def test_the_format_can_be_named(tmp_path: Path):
    path = tmp_path / "d.jsonl"  # without a weight this is TRL's own
    path.write_text(json.dumps({"messages": [user("Hi"), said("Hello.")]}) + "\n")
    assert load(DataConfig(path=str(path), eval_size=0), "sft").source["parts"][""]["format"] == "trl"
    named = load(DataConfig(path=str(path), eval_size=0, format="openai"), "sft")
    assert named.source["parts"][""]["detected"] is False
    assert named.describe()["columns"].startswith("messages (conversations); read as openai (data.format): ")


@pytest.mark.parametrize(
    ("name", "kind", "serves"),
    [
        ("alpaca", "dpo", "alpaca; they serve sft, grpo, rloo, ppo"),
        ("sharegpt", "kto", "sharegpt; they serve sft, grpo, rloo, ppo"),
        ("openai_rft", "sft", "openai_rft; they serve grpo, rloo, ppo"),
    ],
)
def test_a_format_that_the_trainer_cannot_learn_from(name: str, kind: str, serves: str):
    with pytest.raises(PosttrainError, match=f"trainer.kind={kind}: does not learn from rows of the format {serves}"):
        load(config(name), kind)


def test_pairs_of_a_prompt_weigh_one_together():
    data = load(config("ultrafeedback"), "dpo")
    assert data.train["weight"][:] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1.0])
    assert data.describe()["pairs"] == "weighted by their column weight, 0.333 to 1 in the first rows"
    one = load(config("ultrafeedback", pairs="one"), "dpo")
    assert [row["prompt"][0]["content"] for row in one.train] == ["Name a fruit.", "Count to three."]
    assert one.train["weight"][:] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "kind", "threshold", "expected"),
    [
        ("ratings", "kto", 4, {"Apple.": True, "A car.": False, "Red.": True, "Two.": False, "1 2 3": True}),
        ("ultrafeedback", "kto", 8, {"Apple.": True, "A car.": False, "Fruit.": False, "Red.": True, "Blue.": True}),
        ("ultrafeedback", "kto", None, {"Apple.": True, "A car.": False, "1 2 3": True, "1 2": False}),
    ],
)
def test_ratings_become_labels(name: str, kind: str, threshold: float | None, expected: dict[str, bool]):
    data = load(config(name, threshold=threshold), kind)
    answers = [row["completion"] for row in data.train]
    texts = [answer if isinstance(answer, str) else answer[0]["content"] for answer in answers]
    labels = dict(zip(texts, data.train["label"], strict=True))
    assert labels.items() >= expected.items()


def test_demonstrations_are_the_best_answers():
    best = load(config("ultrafeedback"), "sft").train
    assert [row["completion"][0]["content"] for row in best] == ["Apple.", "Red.", "1 2 3"]
    assert load(config("ratings", threshold=5), "sft").train["completion"][:] == ["Apple."]
    assert set(load(config("thumbs"), "sft").train["completion"]) == {"Apple.", "Red."}


def test_ratings_need_a_threshold_where_one_decides():
    with pytest.raises(PosttrainError, match=r"data\.threshold: kto needs to know which .* from 1 to 5"):
        load(config("ratings"), "kto")


def test_prompts_of_ratings_and_fields_for_the_reward():
    assert load(config("ratings"), "grpo").train["prompt"][:] == ["Name a fruit.", "Name a colour.", "Count."]
    graded = load(config("openai_rft"), "grpo").train
    assert graded[1] == {
        "prompt": [{"role": "system", "content": "Answer yes or no."}, user("Is water wet?")],
        "compliant": False,
        "explanation": "water",
    }


def test_whole_prompts_of_ratings_are_held_out():
    data = load(DataConfig(path=str(FILES / "ratings.jsonl"), eval_size=2), "dpo")
    assert data.eval is not None
    assert not set(data.train["prompt"]) & set(data.eval["prompt"])


NATURAL = {
    "trl": "sft",
    "trl_conversational": "sft",
    "alpaca": "sft",
    "sharegpt": "sft",
    "openai": "sft",
    "openai_preference": "dpo",
    "openai_rft": "grpo",
    "hh": "reward",
    "ultrafeedback": "dpo",
    "ultrafeedback_binarized": "dpo",
    "rankings": "reward",
    "ratings": "kto",
}


@pytest.mark.parametrize("name", NATURAL)
def test_a_run_on_every_format(name: str, train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    kind = NATURAL[name]
    shutil.copy(FILES / f"{name}.jsonl", tmp_path / "rows.jsonl")
    more = {
        "grpo": ("reward=length", "trainer.args.max_completion_length=4", "trainer.args.num_generations=2"),
        "kto": ("data.threshold=4",),
    }
    if name in ("sharegpt", "openai"):
        more["sft"] = ("data.on_error=skip",)  # calls of tools, which the template of the model leaves out
    directory = train(
        f"trainer={kind}",
        *("data.path=rows.jsonl", "data.eval_size=0", "trainer.args.max_steps=1", "peft=none"),
        *("trainer.args.per_device_train_batch_size=2", "trainer.args.save_strategy=no"),
        *more.get(kind, ()),
    )
    record = directory.record()
    assert (record["status"], record["steps"]) == ("finished", 1)
    assert record["data"]["parts"][""]["format"] == CASES[name][0]
    format_, said = CASES[name][0], capsys.readouterr().out
    assert (f"read as {format_}" in " ".join(said.split())) == (format_ != "trl")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("-9223372036854775809", "holds the number -9223372036854775809, which does not fit 64 bits; write it as text"),
        ("12345678901234567890", "holds the number 12345678901234567890, which does not fit 64 bits; write it as text"),
        ("NaN", "is not JSON: NaN is no number there; write null"),
        ('"\\ud800"', "holds half of a surrogate pair"),
        ("1}, {", "is not JSON: more after the object at column 9: ', {}'"),
    ],
)
def test_what_arguments_of_calls_hold_can_be_kept(given: str, said: str):
    """They are text in a row of JSON, so the reader of rows has not seen their numbers."""
    call = {"type": "function", "function": {"name": "f", "arguments": f'{{"a": {given}}}'}}
    asked = [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    Path("d.jsonl").write_text(json.dumps({"messages": asked}) + "\n")
    with pytest.raises(PosttrainError) as error:
        load(DataConfig(path="d.jsonl", eval_size=0), "sft")
    assert f"d.jsonl, line 1, messages[1].tool_calls[0].function.arguments: {said}" in str(error.value)


SAID = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]


@pytest.mark.parametrize(
    ("file", "text", "kind", "said"),
    [
        ("d.csv", 'messages\n"[{""role"": ""user""}]"\n', "sft", "messages[0].content: is missing"),
        ("d.csv", "text;n\na;1\n", "sft", "columns are separated by commas; the header is 'text;n'"),
        (
            "d.jsonl",
            {"messages": [{"role": "Human", "content": "a"}, {"role": "gpt", "content": "b"}]},
            "sft",
            "messages[0].role: expected system, user, assistant or tool, got 'Human'",
        ),
        (
            "d.jsonl",
            {"prompt": "a", "completion": "b", "label": 4.5},
            "kto",
            "label holds 4.5, and is read as true or false, 1 or 0 (of numbers: 'data.columns={rating: label}'",
        ),
    ],
)
def test_what_is_nearly_right_is_told_the_fix(file: str, text: Any, kind: str, said: str):
    Path(file).write_text(text if isinstance(text, str) else json.dumps(text) + "\n")
    with pytest.raises(PosttrainError) as error:
        load(DataConfig(path=file, eval_size=0), kind)
    assert said in str(error.value)


def test_conversations_of_role_and_content():
    """As LMSYS-Chat-1M and WildChat have them."""
    turns = [{"role": "user", "content": "a", "toxic": False}, {"role": "assistant", "content": "b", "toxic": False}]
    Path("d.jsonl").write_text(json.dumps({"conversation": turns}) + "\n" + json.dumps({"conversation": SAID}) + "\n")
    data = load(DataConfig(path="d.jsonl", eval_size=0), "sft")
    made = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert data.train["messages"][:] == [made, made]


def test_thumbs_of_any_tone():
    thumbs = ("\U0001f44d\U0001f3fd", "\U0001f44d\ufe0f", "\U0001f44e\U0001f3ff", "\U0001f44e")
    rows = [{"prompt": f"{n}?", "completion": "a", "thumb": thumb} for n, thumb in enumerate(thumbs)]
    Path("d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load(DataConfig(path="d.jsonl", eval_size=0), "kto").train
    assert {row["prompt"]: row["label"] for row in found} == {"0?": True, "1?": True, "2?": False, "3?": False}


def test_large_whole_numbers_among_fractions():
    Path("d.jsonl").write_text('{"text": "a", "n": 0.5}\n{"text": "b", "n": 9007199254740993}\n{"text": "c"}\n')
    assert load(DataConfig(path="d.jsonl", eval_size=0), "sft").train["n"][:] == [0.5, 2.0**53, None]
