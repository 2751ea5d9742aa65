"""Rows of every kind that people have and no documentation shows: learnt as they are, refused, or named in the plan."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from posttrain.config.schema import DataConfig, TrainerConfig
from posttrain.data.loading import load
from posttrain.errors import PosttrainError
from posttrain.models.generate import encode_prompts
from posttrain.training.build_steps import render_prompts_with_row_settings
from tests.data.test_cases import chat, learnt, loaded, write
from tests.helpers import template_models

USER, END = {"role": "user", "content": "q"}, "<|im_end|>\n"
CALL = {"function": {"name": "f", "arguments": "{}"}}
TOOLS = [{"name": "f", "parameters": {}}]
TEXT_PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


def said(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def pair(**more: Any) -> dict[str, Any]:
    return {"prompt": [USER], "chosen": [said("a")], "rejected": [said("b")], **more}


# row, trainer, what is trained on (of its first sequence, with Qwen 2.5's template), what stands in the whole text.
LEARNT: list[tuple[dict[str, Any], str, str, str]] = [
    # Reasoning under keys that are empty, or stand twice with the same.
    (chat({**USER, "reasoning_content": ""}, "a"), "sft", "a" + END, ""),
    (chat("q", said("a", reasoning="", thinking="R")), "sft", "<think>\nR\n</think>\n\na" + END, ""),
    (chat("q", said("<think>R</think>a", reasoning_content="R\n")), "sft", "<think>R</think>a" + END, ""),
    # Keys of one style with those of another.
    ({"conversations": [{"from": "human", "content": "q"}, {"role": "gpt", "value": "a"}]}, "sft", "a" + END, "q"),
    # Messages as JSON in a string, whatever their first key; one message alone.
    ({**TEXT_PAIR, "prompt": '[{"name": "x", "role": "user", "content": "Q!"}]'}, "dpo", "a" + END, "user\nQ!"),
    ({**TEXT_PAIR, "chosen": '{"role": "assistant", "content": "A!"}'}, "dpo", "A!" + END, "user\nq"),
    ({"messages": json.dumps([USER, said("a")])}, "sft", "a" + END, ""),
    # An image column of which every part is empty; another name of the mark.
    (chat("q", "a", image={"bytes": None, "path": None}), "sft", "a" + END, ""),
    (chat("q", said("b", training=False), "r", "a"), "sft", "a" + END, ""),
    # JSON that is a text of its own.
    (
        {"prompt": "q", "completion": '{"role": "engineer", "name": "x"}'},
        "sft",
        '{"role": "engineer", "name": "x"}<|im_end|>',
        "",
    ),
    ({"prompt": "q", "completion": "['a', 'b']"}, "sft", "['a', 'b']<|im_end|>", ""),
    (
        {"prompt": "q", "completion": '{"role": ["user"], "content": "x"}'},
        "sft",
        '{"role": ["user"], "content": "x"}<|im_end|>',
        "",
    ),
    # A system prompt and tools beside the turns reach every format.
    ({"messages": [USER, said("a")], "rejected_response": "b", "system": "SYS"}, "dpo", "a" + END, "SYS"),
    (
        {"chosen_messages": [USER, said("a")], "rejected_messages": [USER, said("b")], "system": "SYS"},
        "dpo",
        "a" + END,
        "SYS",
    ),
    (chat("q", said("a", weight=1), system="SYS"), "sft", "a" + END, "SYS"),
    (
        {"instruction": "q", "output": "a", "tools": json.dumps(TOOLS)},
        "sft",
        "a" + END,
        '{"type": "function", "function": {"name": "f"',
    ),
    (pair(functions=TOOLS), "kto", "a" + END, '{"type": "function", "function": {"name": "f"'),
    ({"query": "q", "response": "a", "tools": TOOLS}, "sft", "a" + END, '"name": "f"'),
    # Calls without ids, with arguments as text, none, or alone.
    (
        chat("q", said(None, tool_calls=CALL)),
        "sft",
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>' + END,
        "",
    ),
    (
        chat("q", said("", tool_calls=[{"function": {"name": "f", "arguments": ""}}])),
        "sft",
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>' + END,
        "",
    ),
    (chat("q", said("a", tool_calls=[], function_call={})), "sft", "a" + END, ""),
    # Marks as numbers with a point, parts of plain strings, media columns that hold nothing.
    (chat("q", said("a", weight=0.0), "r", said("b", weight=1.0)), "sft", "b" + END, ""),
    (chat({"role": "user", "content": ["Q", {"type": "text", "text": "!"}]}, "a"), "sft", "a" + END, "Q!"),
    (chat("q", "a", images={}, videos=[None], audios=""), "sft", "a" + END, ""),
]


@pytest.mark.parametrize(("row", "kind", "trained", "whole"), LEARNT)
def test_what_is_learnt_of_it(row: dict[str, Any], kind: str, trained: str, whole: str):
    rows = [row] if kind != "kto" else [row, row]
    found = learnt(write(*rows), kind, "qwen25")
    assert trained in [one for _, one in found]
    assert whole in found[0][0]


# row, trainer, what is said.
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    (chat("q", said("a", reasoning="R", thinking="S")), "sft", "different reasoning in reasoning and thinking"),
    (
        chat("q", said("<think>A</think>a", reasoning_content="B")),
        "sft",
        "different reasoning in reasoning_content and <th",
    ),
    (chat({**USER, "reasoning": "R"}, "a"), "sft", "messages[0]: only the assistant reasons"),
    (chat({**USER, "value": "OTHER"}, "a"), "sft", "messages[0]: has different texts in content and value"),
    (
        chat({"role": "system", "content": "s", "tools": TOOLS}, "q", "a"),
        "sft",
        "messages[0].tools: belongs to the row",
    ),
    (chat({**USER, "name": 3}, "a"), "sft", "messages[0].name: expected text, got 3"),
    (
        chat({"role": "system", "content": "s"}, said("a"), system="OTHER"),
        "sft",
        "system: differs from the system turn",
    ),
    (chat("q", "a", system=["s"]), "sft", "system: expected text"),
    *(
        ({"messages": [said("a")], "rejected_response": "b"}, kind, "line 1: has no turn before the answer")
        for kind in ("dpo", "grpo")
    ),
    ({"messages": [said("a")], "label": True}, "kto", "line 1: has no turn before the answer"),
    (chat("q", said(None, refusal="No.")), "sft", "messages[1].content: an assistant turn is empty"),
    (
        chat("q", said([{"type": "tool_use", "name": "f"}])),
        "sft",
        "content[0]: expected a part of type text, got 'tool_use'",
    ),
    (
        chat("q", said(None, tool_calls=[{"function": {"name": "f", "arguments": '"{}"'}}])),
        "sft",
        "arguments: expected an",
    ),
    *(
        (
            chat("q", said(None, tool_calls=[{"function": {"name": "f", "arguments": given}}])),
            "sft",
            "expected an object",
        )
        for given in ([], 0, False)
    ),
    (chat("q", said(None, tool_calls=[{"function": {"name": " "}}])), "sft", "expected a call with function.name"),
    (chat("q", "a", tools=[{"name": ""}]), "sft", "tools[0]: expected a tool with function.name"),
    ({"instruction": "add 1", "input": 0, "output": "1"}, "sft", "line 1, input: expected text, got 0"),
    ({**TEXT_PAIR, "prompt": " \n"}, "dpo", "line 1, prompt: is empty"),
    ({**TEXT_PAIR, "prompt": None}, "reward", "line 1, prompt: is missing"),
    ({"prompt": "", "completion": "a"}, "sft", "line 1, prompt: is empty"),
    ({"prompt": " "}, "grpo", "line 1, prompt: is empty"),
    ({"prompt": [USER, said("Sure")]}, "grpo", "prompt[1]: is the assistant's, and TRL does not continue a turn"),
    ({"messages": str([USER, said("a")])}, "sft", "messages: is a list as Python prints it"),
    (
        {**TEXT_PAIR, "chosen": "array([{'content': 'a', 'role': 'assistant'}])"},
        "dpo",
        "chosen: is a list as Python prints",
    ),
    ({**TEXT_PAIR, "chosen": '[{"role": "assistant", "content": "a"'}, "dpo", "chosen: is not JSON"),
    (
        {**pair(), "prompt": "OTHER", "chosen": [USER, said("a")], "rejected": [USER, said("b")]},
        "dpo",
        "prompt: is not among",
    ),
    (
        {"prompt": "q", "completion": "a", "label": 3},
        "kto",
        "label holds 3, and is read as true or false, 1 or 0 (of numbers:",
    ),
    (chat("q", "a", images={"path": "x.png"}), "sft", "images: is not empty, and the model reads text only"),
    (chat("q", "a", kto_tag=True), "kto", "'data.columns={label: THEIRS}'"),
    ({"prompt": "q", "response": "a"}, "sft", "'data.columns={completion: THEIRS}'"),
]


@pytest.mark.parametrize(("row", "kind", "said"), REFUSED)
def test_what_is_refused_of_it(row: dict[str, Any], kind: str, said: str):
    with pytest.raises(PosttrainError) as error:
        loaded(write(row), kind, "qwen25")
    assert said in str(error.value)


ALPACA, SWIFT = {"instruction": "i", "output": "a"}, {"query": "q", "response": "a"}
SHAREGPT = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
PAIRED = {"conversations": [{"from": "human", "value": "q"}], "chosen": "a", "rejected": "b"}
# Rows of one format of which some bring what others lack: kind, rows, what is said of which.
RAGGED: list[tuple[str, list[dict[str, Any]], str]] = [
    ("dpo", [{**ALPACA, "chosen": "a", "rejected": "b"}, ALPACA], "line 2, chosen: is missing, and other rows have it"),
    ("dpo", [ALPACA, {**ALPACA, "chosen": "a", "rejected": "b"}], "line 1, chosen: is missing, and other rows have it"),
    ("sft", [ALPACA, {**ALPACA, "chosen": "a", "rejected": "b"}], "line 2, completion: is missing"),
    ("dpo", [PAIRED, SHAREGPT], "line 2, chosen: is missing"),
    ("sft", [SHAREGPT, PAIRED], "line 2, messages: is missing"),
    ("dpo", [{**SWIFT, "rejected_response": "b"}, SWIFT], "line 2, chosen: is missing"),
    ("kto", [{**chat("q", "a"), "label": 1}, chat("q", "b")], "line 2, label: is missing"),
]


@pytest.mark.parametrize(("kind", "rows", "said"), RAGGED)
def test_rows_that_lack_what_others_have(kind: str, rows: list[dict[str, Any]], said: str):
    with pytest.raises(PosttrainError) as error:
        loaded(write(*rows), kind, "qwen25")
    assert said in str(error.value)
    assert len(loaded("d.jsonl", kind, "qwen25", on_error="skip")[0].train) == 1


@pytest.mark.parametrize("row", [ALPACA, SWIFT, SHAREGPT, chat("q", "a")])
def test_a_label_beside_rows_of_any_format(row: dict[str, Any]):
    data, _ = loaded(write({**row, "label": 1}, {**row, "label": 0}), "kto", "qwen25")
    assert sorted(data.train["label"]) == [False, True]
    assert {turns[0]["content"] for turns in data.train["completion"]} == {"a"}
    assert data.describe()["labels"] == "1 good (label true or 1), 1 bad (false or 0)"
    # Other trainers learn all that the assistant says, and the plan names the label.
    assert loaded("d.jsonl", "sft", "qwen25")[0].describe()["unused"] == "columns label"


@pytest.mark.parametrize("row", [chat("q", said("a"), said("b")), {**pair(), "prompt": [USER, said("a")]}])
def test_two_assistant_turns_in_a_row_are_named(row: dict[str, Any]):
    kind = "sft" if "messages" in row else "dpo"
    notes = loaded(write(row), kind, "qwen25")[1].notes()
    assert notes["turns"].startswith("1 of 1 rows have two assistant turns in a row")


@pytest.mark.parametrize("good", ["true", "True", "good", "desirable", "👍🏽", True, 1, "1", 1.0])
def test_labels_in_words(good: Any):
    rows = ({"prompt": "q", "completion": "a", "label": one} for one in (good, False, "false", 0, "0"))
    assert sorted(loaded(write(*rows), "kto", "qwen25")[0].train["label"]) == [False] * 4 + [True]


def test_labels_of_a_spreadsheet_and_texts_that_look_like_numbers():
    Path("d.csv").write_text("prompt,completion,label\n1+1,2,TRUE\n1+1,3,FALSE\n")
    rows = loaded("d.csv", "kto", "qwen25")[0].train
    assert {(row["completion"], row["label"]) for row in rows} == {("2", True), ("3", False)}
    Path("d.csv").write_text("question,chosen,rejected\n11,2,3\n12,4,5\n")
    assert loaded("d.csv", "dpo", "qwen25")[0].train[0]["chosen"][0]["content"] == "2"


LEAVES_OUT = "{% for m in messages %}{% if m.role != 'ROLE' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
@pytest.mark.parametrize("kind", ["sft", "dpo", "grpo"])
def test_a_turn_that_the_template_leaves_out(role: str, kind: str):
    turns = [{"role": "system", "content": "s"}, USER, said("b"), {"role": "tool", "content": "t"}]
    row = chat(*turns, "a", "a") if kind == "sft" else {**pair(), "prompt": turns}
    row["messages" if kind == "sft" else "prompt"][4:5] = []
    tokenizer = template_models.copy("qwen25", LEAVES_OUT.replace("ROLE", role))
    with pytest.raises(PosttrainError, match=rf"\[\d\]: the chat template leaves the {role}'s turn out"):
        _load(write(row), kind, tokenizer)


def _load(path: str, kind: str, tokenizer: Any) -> Any:
    from posttrain.data.rendering import Rendering

    return load(DataConfig(path=path, eval_size=0), kind, Rendering(tokenizer, TrainerConfig(kind)))


@pytest.mark.parametrize(("kind", "row"), [("sft", {"completion": [said("a")]}), ("dpo", pair())])
def test_a_prompt_that_is_written_otherwise_before_its_answer_is_not_learnt(kind: str, row: dict[str, Any]):
    """Qwen3 strips the empty thoughts of an assistant's turn once another follows: TRL would learn from there on."""
    prompt = [USER, said("Sure, I will.")]
    with pytest.raises(PosttrainError, match="so a part of the prompt would be learnt"):
        loaded(write({**row, "prompt": prompt}), kind, "qwen3")
    assert loaded(write({**row, "prompt": prompt}), kind, "qwen25")


def test_the_plan_names_what_is_not_read():
    row = {**chat("q", said("a", refusal=None, id="m1"), note=1, tools=""), "reasoning": "R", "weight": 1}
    assert loaded(write(row), "sft", "qwen25")[0].describe()["unused"] == (
        "columns note, reasoning, weight, messages[].id"
    )
    text = {"prompt": "q", "completion": "a", "system": "s", "tools": TOOLS}
    assert loaded(write(text), "sft", "qwen25")[0].describe()["unused"] == "columns system, tools"
    # A reward function may read any column; what belongs to a conversation is not in a prompt of text.
    said_of = loaded(write({"prompt": "q", "system": "s", "note": 1}), "grpo", "qwen25")[0].describe()["unused"]
    assert said_of == "columns system"
    assert "unused" not in loaded(write({"prompt": "q", "note": 1}), "grpo", "qwen25")[0].describe()


def test_a_weight_that_is_not_learnt_is_refused():
    with pytest.raises(PosttrainError, match="column weight: sft counts all rows alike"):
        loaded(write({**chat("q", "a"), "weight": 0}, {**chat("r", "a"), "weight": 1}), "sft", "qwen25")


ROW_SETTINGS = {"prompt": [USER], "tools": TOOLS, "chat_template_kwargs": {"enable_thinking": False}}


def test_gkd_learns_the_last_answer_alone_without_tools():
    path = write(chat("q", "a", "r", "b", tools=TOOLS))
    assert learnt(path, "gkd", "qwen25")[0][1] == "b" + END
    assert (
        loaded(path, "gkd", "qwen25")[1].notes()["tools"]
        == "1 of 1 rows have tools, which gkd does not show the policy"
    )
    for row in (chat("q", "a", "r"), chat("q", said("a", weight=0), "r", said("b", weight=0))):
        with pytest.raises(PosttrainError, match=r"gkd learns the last message alone|weight 0"):
            loaded(write(chat("q", "a"), row), "gkd", "qwen25")


def test_what_a_trainer_that_samples_does_not_show_the_policy():
    notes = loaded(write(ROW_SETTINGS, {"prompt": [USER]}), "online_dpo", "qwen3")[1].notes()
    assert notes["tools"].startswith("1 of 2 rows have tools, which online_dpo does not show the policy")
    assert notes["template"].endswith("set trainer.args.chat_template_kwargs")


@pytest.mark.parametrize("kind", ["grpo", "rloo", "ppo"])
def test_tools_and_options_of_a_row_reach_the_prompt_that_the_policy_answers(kind: str):
    from trl import GRPOTrainer

    data, rendering = loaded(write(ROW_SETTINGS, {"prompt": [USER]}), kind, "qwen3")
    rows, tokenizer = list(data.train), template_models.tokenizer("qwen3")
    assert not rendering.notes()
    drawn: list[list[int]] = []
    trainer = SimpleNamespace(_tokenizer=tokenizer, chat_template_kwargs={}, chat_template=None)
    trainer._tokenize_prompts = lambda prompts: GRPOTrainer._tokenize_prompts(trainer, prompts)
    trainer._generate_and_score_completions = lambda inputs: drawn.extend(
        trainer._tokenize_prompts([row["prompt"] for row in inputs])[0]
    )
    render_prompts_with_row_settings(trainer)
    trainer._generate_and_score_completions(rows)
    with_tools, without = map(tokenizer.decode, drawn)
    assert '{"type": "function", "function": {"name": "f", "parameters": {}}}' in with_tools
    assert with_tools.endswith("<think>\n\n</think>\n\n")
    assert without == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    assert encode_prompts(tokenizer, rows) == drawn  # the probe's
    assert [text for text, _ in learnt("d.jsonl", kind, "qwen3")] == [with_tools, without]  # the doctor's


@pytest.mark.parametrize("kind", ["sft", "dpo", "kto"])
def test_turns_of_others_in_an_answer_are_named(kind: str):
    turns = [said("a"), USER, said("b")]
    row = {"prompt": [USER], "completion": turns} if kind == "sft" else {**pair(), "chosen": turns}
    notes = loaded(write(row), kind, "qwen25")[1].notes()
    assert notes["answers"].startswith("1 of 1 rows have turns of others")


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo", "kto"])
def test_options_of_the_template_in_some_rows_only(kind: str):
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    found = learnt(write(pair(**off), pair()), kind, "qwen3")
    assert len({whole for whole, _ in found}) == (1 if kind == "sft" else 2)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_several_thoughts_in_one_turn_of_which_the_template_keeps_one(kind: str):
    several = said("<think>R</think>FIRST<think>S</think>b")
    row = chat("q", several) if kind == "sft" else pair(chosen=[several])
    with pytest.raises(PosttrainError, match=r"\[\d\]: the chat template leaves out a part of it"):
        loaded(write(row), kind, "qwen3")
    assert "FIRST<think>S</think>b" in learnt(write(row), kind, "llama31")[0][1]


@pytest.mark.parametrize(("column", "value"), [("chat_template_kwargs", {"enable_thinking": False}), ("weight", 2)])
def test_a_column_that_only_later_rows_of_a_stream_have(column: str, value: Any):

    path = write(*[pair()] * 300, pair(**{column: value}))
    with pytest.raises(PosttrainError, match=f"the column {column} comes after the first rows"):
        list(load(DataConfig(path=path, eval_size=0, streaming=True), "dpo").train)


def test_files_whose_objects_go_over_several_lines():
    row = json.dumps({"prompt": "q", "completion": "a"}, indent=1)
    for text in (row, f"{row}\n{row}", f'{{"version": "1", "data": [{row}], "by": {{"name": "x"}}}}'):
        Path("d.json").write_text(text)
        assert loaded("d.json", "sft", "qwen25")[0].train["completion"][:] == ["a"] * text.count('"q"')
    Path("d.json").write_text(f'{row}\n{{\n "prompt": 5,\n "completion": "a"}}')
    with pytest.raises(PosttrainError, match=r"d\.json, line 5, prompt: expected text"):
        loaded("d.json", "sft", "qwen25")


def test_marks_that_arrow_fills_up_with_nulls():
    turns = [
        {"role": r, "content": c, "weight": w, "tool_calls": None}
        for r, c, w in [("user", "q", None), ("assistant", "BAD", 0.0), ("user", "r", None), ("assistant", "GOOD", 1.0)]
    ]
    pq.write_table(pa.table({"messages": [turns]}), "d.parquet")
    ((_, trained),) = learnt("d.parquet", "sft", "qwen25")
    assert trained == "GOOD" + END


@pytest.mark.parametrize("kind", ["grpo", "ppo"])  # ppo renders as rloo does
def test_a_run_draws_after_the_tools_of_its_rows(kind: str, train: Any, monkeypatch: pytest.MonkeyPatch):
    """Through the whole command, on a template that writes what a row brings."""
    import trl

    asked: list[str] = []
    base = trl.GRPOTrainer if kind == "grpo" else trl.RLOOTrainer
    generate = base._generate_single_turn

    def recorded(self: Any, prompt_ids: list[list[int]], *more: Any) -> Any:
        asked.extend(map(self._tokenizer.decode, prompt_ids))
        return generate(self, prompt_ids, *more)

    monkeypatch.setattr(base, "_generate_single_turn", recorded)
    turns = "{% for m in messages %}{{ m.role[0] + m.content + eos_token }}{% endfor %}{{ mark }}"
    Path("t.jinja").write_text("{{ tools | tojson if tools else '' }}" + turns)
    own = [{"type": "function", "function": {"name": f"f{n}", "parameters": {}}} for n in range(8)]
    path = write(*({"prompt": [USER], "tools": own[n : n + 1], "chat_template_kwargs": {"mark": n}} for n in range(8)))
    train(
        *(f"trainer={kind}", f"data.path={path}", "model=tiny", "model.chat_template=t.jinja", "data.eval_size=0"),
        *("reward=length", "trainer.args.max_steps=1", "probe=none", "peft=lora"),
    )
    assert asked
    assert {*asked} <= {json.dumps(own[n : n + 1]) + f"uq<|im_end|>{n}" for n in range(8)}


@pytest.mark.parametrize("messages", [[USER], json.dumps([USER])])
def test_messages_beside_two_texts_are_their_question(messages: Any):
    row = {"messages": messages, "chosen": "Yes I can", "rejected": "Yes but no"}
    for kind in ("reward", "dpo", "kto", "grpo"):
        assert loaded(write(row, row), kind, "qwen25")[0].train[0]["prompt"] == [USER]
    assert learnt(write(row), "dpo", "qwen25")[0][1] == "Yes I can" + END


ACCEPTED: list[tuple[dict[str, Any], str, str]] = [
    (chat("q", "a", images=[[]], image="[]", video=0), "a" + END, ""),
    (chat({**USER, "name": ""}, said("a", name="", tool_call_id="", tool_calls="null")), "a" + END, ""),
    (chat("q", "a", chat_template_kwargs=""), "a" + END, ""),
    (chat({"role": "user", "content": {"type": "text", "text": "Q!"}}, "a"), "a" + END, "Q!"),
    (
        chat("q", said(None, function_call=json.dumps(CALL["function"]))),
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>' + END,
        "",
    ),
]


@pytest.mark.parametrize(("row", "trained", "whole"), ACCEPTED)
def test_fields_that_are_empty_or_written_in_another_way(row: dict[str, Any], trained: str, whole: str):
    found = learnt(write(row), "sft", "qwen25")
    assert found[0][1] == trained
    assert whole in found[0][0]


def test_an_empty_list_of_images_in_a_cell():
    Path("d.csv").write_text("prompt,completion,images\nq,a,[]\n")
    assert len(load(DataConfig(path="d.csv", eval_size=0), "sft").train) == 1


def test_conversations_that_end_with_the_human_are_prompts():
    asked = {"conversations": [{"from": "human", "value": "q"}]}
    for row in (asked, SHAREGPT):
        data, _ = loaded(write(row, asked), "grpo", "qwen25")
        assert data.train["prompt"][:] == [[USER], [USER]]
    with pytest.raises(PosttrainError, match="the last message is the user's; nothing is answered"):
        loaded(write(asked, SHAREGPT), "sft", "qwen25")


@pytest.mark.parametrize(("kind", "more"), [("sft", {}), ("kto", {"label": True})])
def test_a_column_weight_that_holds_no_numbers(kind: str, more: dict[str, Any]):
    row = {"prompt": "q", "completion": "a", **more}
    for weight in ([1], {"a": 1}, "x"):
        data, _ = loaded(write({**row, "weight": weight}, {**row, "weight": weight}), kind, "qwen25")
        assert "weight" not in data.train.column_names
    with pytest.raises(PosttrainError, match=r"column weight: .* give the column another name"):
        loaded(write({**row, "weight": [1]}, {**row, "weight": [2]}), kind, "qwen25")
