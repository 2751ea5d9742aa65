"""Rows that went wrong elsewhere, one of each kind: what is trained on, or what is said, by the trainer's preparation.

The tokenizers have the templates of known families (tests/helpers/template_models.py); nothing is trained.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.schema import DataConfig, TrainerConfig
from posttrain.data.loading import Data, load
from posttrain.data.rendering import Rendering
from posttrain.errors import PosttrainError
from tests.helpers import template_models
from tests.helpers.runs import compose

CASES = Path(__file__).parent / "cases"


def write(*rows: Any, name: str = "d.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def loaded(path: str, kind: str, family: str, args: Any = None, **settings: Any) -> tuple[Data, Rendering]:
    rendering = Rendering(template_models.tokenizer(family), TrainerConfig(kind, args or {}))
    return load(DataConfig(path=path, eval_size=0, **settings), kind, rendering), rendering


def learnt(path: str, kind: str, family: str, args: Any = None, **settings: Any) -> list[tuple[str, str]]:
    """(All text, text that is trained on) of each sequence, as the trainer's own preparation and collator make them."""
    from posttrain.doctor import sequences

    tokenizer = template_models.tokenizer(family)
    data, _ = loaded(path, kind, family, args, **settings)
    run, _ = compose(f"trainer={kind}", "model=tiny", f"data.path={path}")
    run.trainer.args = args or {}
    found = []
    for row in sequences.of(run, tokenizer, data.train, list(range(len(data.train)))):
        for one in row:
            kept = [token for token, trained in zip(one.ids, one.trained, strict=True) if trained]
            found.append((tokenizer.decode(one.ids), tokenizer.decode(kept)))
    return found


def case(name: str) -> str:
    (path,) = CASES.glob(f"{name}.*")
    return str(path)


# case -> trainer, family, what is trained on in its first sequence (exactly).
TRAINED = {
    "sharegpt_weight": ("sft", "qwen25", "1,2,3<|im_end|>\n"),
    "messages_loss_key": ("sft", "qwen25", "1,2,3<|im_end|>\n"),
    "openai_reasoning": (
        "sft",
        "qwen3",
        '<think>\nSECRETTHOUGHT need the tool\n</think>\n\n<tool_call>\n{"name": "weather", "arguments": '
        '{"city": "Oslo"}}\n</tool_call><|im_end|>\n<think>\nFINALTHOUGHT tell it\n</think>\n\nIt is 4 C.<|im_end|>\n',
    ),
    "sharegpt_toolcalls_role": (
        "sft",
        "qwen25",
        'Let me look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>\n'
        "It is 4 C.<|im_end|>\n",
    ),
    "ms_swift_tool_call": (
        "sft",
        "qwen25",
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>\n4 C<|im_end|>\n',
    ),
    "dpo_parts": ("dpo", "llama31", "Four<|eot_id|>"),
    "pc_parts": ("sft", "llama31", "Four<|eot_id|>"),
    "orca_dpo": ("dpo", "qwen25", "quatre<|im_end|>\n"),
    "csv_json_pairs": ("dpo", "qwen25", "4<|im_end|>\n"),
    "col_labels": ("sft", "qwen25", "the film was good, go and see it<|im_end|>"),
    "pc_string_args": ("sft", "llama31", '{"name": "weather", "parameters": {"city": "Oslo"}}<|eot_id|>'),
    "dpo_text_prompt_repeated": ("dpo", "qwen25", " It is 4<|im_end|>"),
    "gemma_weight": ("sft", "gemma", "4<end_of_turn>\n"),
    "openai_leading_newline_qwen25": ("sft", "qwen25", "\n\nRoses are red<|im_end|>\n"),
    "sharegpt_text_then_call": (
        "sft",
        "qwen25",
        'Let me look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>\n'
        "4 C<|im_end|>\n",
    ),
    "prompt_list_chosen_text": ("dpo", "qwen25", "Four<|im_end|>\n"),
    "col_images_empty": ("sft", "qwen25", "hi<|im_end|>\n"),
    "openai_function_role": (
        "sft",
        "qwen25",
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>\n4 C<|im_end|>\n',
    ),
    "bos_double_dpo": ("dpo", "llama31", "4<|eot_id|>"),
}


@pytest.mark.parametrize("name", TRAINED)
def test_what_is_trained_on(name: str):
    kind, family, expected = TRAINED[name]
    whole, trained = learnt(case(name), kind, family)[0]
    assert trained == expected
    if name == "orca_dpo":
        assert "Answer in French." in whole
        assert "2+2?" in whole
    if name == "bos_double_dpo":
        assert whole.count("<|begin_of_text|>") == 1
    if name in ("sharegpt_text_then_call", "openai_function_role"):
        assert "<tools>" in whole


def test_nulls_of_arrow_are_no_values():
    rows = json.loads(json.dumps(loaded(case("parquet_tools_llama31"), "sft", "llama31")[0].train[:]))
    assert "null" not in json.dumps(rows["messages"]) + "".join(rows["tools"])
    whole, trained = learnt(case("parquet_tools_llama31"), "sft", "llama31")[0]
    assert "null" not in whole
    assert '"parameters": {"city": "Oslo"}}' in trained


PAIR = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
PARTS = [{"type": "image_url", "image_url": {"url": "x"}}]
CALL = {"function": {"name": "f", "arguments": "{}"}}


def chat(*turns: Any, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    made = [turn if isinstance(turn, dict) else {"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)]
    return {"messages": made, **more}


# rows (or a case), trainer, family, what is said.
REFUSED: list[tuple[Any, str, str, str]] = [
    ("dpo_diverge_at_user", "dpo", "qwen3", "line 1, rejected: differs from chosen at a user turn"),
    ("gemma_system", "sft", "gemma", "line 3: the chat template refuses it: System role not supported"),
    ({"chosen": "quatre", "rejected": "four"}, "dpo", "qwen3", "line 1, chosen: shares no beginning with rejected"),
    (chat("a", {"role": "assistant", "content": PARTS}), "sft", "qwen3", "messages[1].content[0]: expected a part"),
    (chat("a", "b", images=["x.png"]), "sft", "qwen3", "line 1, images: is not empty, and the model reads text only"),
    ({**PAIR, "prompt": "[{'role': 'user', 'content': 'a'}]"}, "dpo", "qwen3", "is a list as Python prints it"),
    (chat({"role": "bot", "content": "a"}), "sft", "qwen3", "messages[0].role: expected system, user, assistant or"),
    (chat({"role": "", "content": "a"}), "sft", "qwen3", "messages[0].role: expected system, user, assistant or tool"),
    (chat("a", {"role": "assistant", "content": "b", "weight": 2}), "sft", "qwen3", "messages[1].weight: expected 0"),
    (chat("a", {"role": "assistant", "content": "b", "train": 0, "loss": True}), "sft", "qwen3", "says the opposite"),
    (chat({"role": "user", "content": "a", "train": True}, "b"), "sft", "qwen3", "messages[0].train: only assistant"),
    (chat("a"), "sft", "qwen3", "trainer.kind=sft: does not learn from rows of the format openai_rft"),
    ((chat("a", "b"), chat("a")), "sft", "qwen3", "line 2, messages: no message is the assistant's, so nothing is"),
    (chat("a", {"role": "assistant", "content": "b", "loss": False}), "sft", "qwen3", "every assistant message has"),
    (chat("a", {"role": "assistant", "tool_calls": "f()"}), "sft", "qwen3", "messages[1].tool_calls: is not JSON"),
    (chat("a", "b", tools=["f"]), "sft", "qwen3", "tools[0]: is not JSON"),
    (chat("a", "b", tools=[{"type": "function"}]), "sft", "qwen3", "tools[0]: expected a tool with function.name"),
    (chat("a", {"role": "assistant", "tool_calls": [CALL]}), "sft", "llama3", "leaves calls of tools out"),
    (chat("a", "b", chat_template_kwargs="x"), "sft", "qwen3", "chat_template_kwargs: is not JSON"),
    ({**PAIR, "chosen": "  "}, "dpo", "qwen3", "line 1, chosen: is empty"),
    ({"prompt": "a", "completion": " ", "label": True}, "kto", "qwen3", "line 1, completion: is empty"),
    ({"prompt": [], "completion": "b"}, "sft", "qwen3", "prompt: is an empty"),
]


@pytest.mark.parametrize(("rows", "kind", "family", "said"), REFUSED)
def test_what_is_refused_before_anything_trains(rows: Any, kind: str, family: str, said: str):
    path = case(rows) if isinstance(rows, str) else write(*rows) if isinstance(rows, tuple) else write(rows)
    with pytest.raises(PosttrainError) as error:
        loaded(path, kind, family)
    assert said in str(error.value)


def test_rows_that_the_template_refuses_can_be_skipped():
    data, _ = loaded(case("gemma_system"), "sft", "gemma", on_error="skip")
    assert {row["messages"][0]["role"] for row in data.train} == {"user"}
    assert data.source["parts"][""]["skipped"] > 0
    assert "System role not supported" in data.skipped[0].path.read_text()


MARKED = [("BAD", 0), ("GOOD", 1)]


@pytest.mark.parametrize("key", ["weight", "train", "loss", "loss_weight"])
@pytest.mark.parametrize("column", ["messages", "conversations"])
@pytest.mark.parametrize("family", ["qwen3", "llama31", "gemma", "mistral"])
def test_marks_are_honoured_in_every_conversational_format(key: str, column: str, family: str):
    turns: list[Any] = []
    for answer, mark in MARKED:
        turns += [{"from": "human", "value": "ask"}, {"from": "gpt", "value": answer, key: mark}]
    if column == "messages":
        names = {"human": "user", "gpt": "assistant"}
        turns = [{"role": names[t.pop("from")], "content": t.pop("value"), **t} for t in turns]
    ((_, trained),) = learnt(write({column: turns}), "sft", family)
    assert "GOOD" in trained
    assert "BAD" not in trained
    assert "ask" not in trained


@pytest.mark.parametrize("family", ["qwen3", "qwen25", "llama3", "gemma"])
@pytest.mark.parametrize(
    "row",
    [
        chat("first?", "one", "second?", "\ntwo\n"),
        chat("a", "<think>\nEARLY\n</think>\n\n1", "b", "<think>\nLAST\n</think>\n\n2"),
    ],
)
def test_the_mask_is_that_of_trl_where_it_has_one(family: str, row: dict[str, Any]):
    """With TRL's training templates, the tokens and labels of `assistant_only_loss=true`."""
    from datasets import Dataset

    from posttrain.data import loss_mask
    from posttrain.doctor import sequences

    tokenizer = template_models.tokenizer(family)
    run, _ = compose("trainer=sft", "model=tiny", "data.path=x.jsonl")
    run.trainer.args = {"assistant_only_loss": True}
    theirs = sequences.prepare(run, tokenizer, Dataset.from_list([row]), None)[0]
    ours = loss_mask.tokenize_conversation(
        tokenizer, row["messages"], None, loss_mask.training_template(tokenizer, True)
    )
    assert ours["input_ids"] == theirs["input_ids"]
    assert ours["labels"] == theirs["labels"]


def test_earlier_thinking_that_the_template_strips_is_said_with_the_option():
    _, rendering = loaded(case("think_multi"), "sft", "qwen3")
    assert "3 of 3 rows have reasoning in earlier turns" in rendering.notes()["thinking"]
    assert "EARLYTHOUGHT" not in learnt(case("think_multi"), "sft", "qwen3")[0][0]
    args = {"assistant_only_loss": True}
    assert "EARLYTHOUGHT" in learnt(case("think_multi"), "sft", "qwen3", args)[0][1]
    assert loaded(case("think_multi"), "sft", "qwen3", args)[1].notes() == {}


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("family", ["qwen3", "llama3", "mistral"])
def test_reasoning_is_kept_under_every_name_and_template(key: str, family: str):
    row = chat("2+2?", {"role": "assistant", "content": "4", key: "THOUGHT"})
    asked, said = row["messages"]
    pair = {"prompt": [asked], "chosen": [said], "rejected": [{**said, key: "OTHER"}]}
    for kind, one in (("sft", row), ("dpo", pair)):
        whole, trained = learnt(write(one), kind, family)[0]
        assert "<think>\nTHOUGHT\n</think>\n\n4" in trained
        assert whole.count("THOUGHT") == 1


def test_options_of_the_template_reach_it_and_tools_are_said_where_none_shows():
    row = chat("a", "b", chat_template_kwargs={"enable_thinking": False})
    data, _ = loaded(write(row, chat("c", "d")), "sft", "qwen3")
    assert data.train[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert len(learnt(write(row, chat("c", "d")), "sft", "qwen3")) == 2
    _, rendering = loaded(write(chat("a", "b", tools=[{"name": "zap", "parameters": {}}])), "sft", "llama3")
    assert "1 of 1 rows have tools, which the chat template does not show" in rendering.notes()["tools"]


def test_the_plan_says_what_becomes_of_the_rows():
    path = write({**PAIR, "note": 1, "labels": [1], "prompt_ids": [2]}, {"prompt": 3}, {**PAIR, "prompt": "3+3?"})
    lines = loaded(path, "dpo", "qwen3", on_error="skip")[0].describe()
    assert lines["rows"] == "3 read, 1 skipped, 0 held out, 2 trained on"
    assert lines["unused"] == "columns note, labels, prompt_ids"


def test_labels_of_one_kind_and_pairs_without_a_difference_teach_nothing():
    from posttrain.data.loading import check_learnable

    with pytest.raises(PosttrainError, match="all labels are true; kto learns from good and bad answers"):
        check_learnable("kto", loaded(case("kto_alltrue"), "kto", "qwen3")[0])
    with pytest.raises(PosttrainError, match="chosen and rejected are the same in every row"):
        check_learnable("dpo", loaded(write({**PAIR, "rejected": "4"}), "dpo", "qwen3")[0])
    check_learnable("kto", loaded(case("kto_17"), "kto", "qwen3")[0])


def test_the_doctor_names_what_the_plan_cannot_see():
    from posttrain.doctor.examine import examine

    run, _ = compose("trainer=sft", "model=tiny", "data.path=d.jsonl", "doctor.duplicates=false")
    run.doctor.language = run.doctor.secrets = run.doctor.noise = False
    rows = [chat("What is 2+2?", "What is 2+2? It is 4"), chat("a", "b")]
    data, _ = loaded(write(*rows), "sft", "llama31")
    report = examine(run, template_models.tokenizer("llama31"), data, notes={"tools": "not shown"})
    found = {one.name: one for one in report.findings}
    assert (found["prompt.repeated"].numbers["rows"], found["prompt.repeated"].severity) == (1, "error")
    assert found["template.left_out"].says == "not shown"
    assert found["tokens.double_bos"].severity == "info"
    doubled = "{{ bos_token }}" + template_models.tokenizer("llama31").chat_template
    tokenizer = template_models.copy("llama31", doubled)
    found = {one.name: one for one in examine(run, tokenizer, data).findings}
    assert found["tokens.double_bos"].numbers["rows"] == 2


def test_tokens_without_an_embedding_and_attention_that_an_architecture_lacks():
    from transformers import BloomConfig, LlamaConfig

    from posttrain.models import architecture, tokenizers

    run, _ = compose("trainer=sft", "model=tiny", "data.path=d.jsonl")
    tokenizer = template_models.tokenizer("qwen3")
    with pytest.raises(PosttrainError, match=r"2 tokens beyond the \d+ rows of the model's embedding"):
        tokenizers.check_size(tokenizer, run.model, LlamaConfig(vocab_size=len(tokenizer) - 2))
    tokenizers.check_size(tokenizer, run.model, LlamaConfig(vocab_size=len(tokenizer) + 64))
    assert architecture.attention_implementation(BloomConfig(), "sdpa", False) == "eager"
    assert architecture.attention_implementation(LlamaConfig(), "sdpa", True) == "sdpa"


def test_the_error_that_names_the_cure_comes_first(monkeypatch: pytest.MonkeyPatch):
    from posttrain.models import tokenizers

    run, _ = compose("trainer=sft", "model=tiny", "data.path=d.jsonl")
    template_models.tokenizer("qwenbase").save_pretrained("qwenbase")
    run.model.path = "qwenbase"
    with pytest.raises(PosttrainError, match=r"turn with <\|im_end\|>.* set model\.eos_token=<\|im_end"):
        tokenizers.load_tokenizer(run.model)
    run.model.eos_token = "<|im_end|>"
    assert tokenizers.load_tokenizer(run.model).pad_token == "<|endoftext|>"


def test_no_row_of_kto_is_alone_and_sampling_is_not_shaped_by_the_model():
    from types import SimpleNamespace

    import torch
    from datasets import Dataset
    from transformers import GenerationConfig

    from posttrain.training import build_steps

    rows = Dataset.from_list([{"n": n} for n in range(17)])
    args = SimpleNamespace(per_device_train_batch_size=4, per_device_eval_batch_size=5)
    trainer = SimpleNamespace(args=args, train_dataset=rows, eval_dataset=rows)
    build_steps.drop_single_row_batch(trainer)
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (16, 17)
    model = torch.nn.Linear(1, 1)
    model.generation_config = GenerationConfig(min_p=0.5, no_repeat_ngram_size=2, eos_token_id=[1, 2], pad_token_id=0)
    build_steps.reset_generation_config(model)
    plain = model.generation_config
    assert (plain.min_p, plain.no_repeat_ngram_size, plain.eos_token_id) == (None, None, [1, 2])
