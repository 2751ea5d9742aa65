"""Loading, splitting, mapping and converting data, and the one message each mistake gets."""

import json

import pytest
from datasets import Dataset

from posttrain.config.schema import DataConfig
from posttrain.data.loading import fingerprint, load
from posttrain.data.trainer_rows import to_trainer_columns
from posttrain.errors import PosttrainError

USER, ASSISTANT = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
BAD = {"role": "assistant", "content": "B"}
PAIR = {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [BAD]}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_local_files(tmp_path, suffix):
    data = Dataset.from_list([{"prompt": f"{i}?", "completion": "yes"} for i in range(20)])
    path = str(tmp_path / f"data.{suffix}")
    {"jsonl": data.to_json, "json": data.to_json, "csv": data.to_csv, "parquet": data.to_parquet}[suffix](path)
    loaded = load(DataConfig(path=path, eval_size=0.25), "sft")
    assert (len(loaded.train), len(loaded.eval)) == (15, 5)
    assert loaded.train.column_names == ["prompt", "completion"]


def test_the_split_is_fixed_and_recorded(tmp_path):
    path = write(tmp_path / "d.jsonl", [{"text": str(i)} for i in range(50)])
    first, second = (load(DataConfig(path=path, eval_size=10), "sft") for _ in range(2))
    assert first.eval["text"] == second.eval["text"]
    assert not set(first.eval["text"]) & set(first.train["text"])
    assert first.source["held_out_rows"] == 10
    assert first.source["split_seed"] == 0
    assert first.source["fingerprint"] == second.source["fingerprint"] == fingerprint(first.train)


def test_no_held_out_rows_on_request(tmp_path):
    path = write(tmp_path / "d.jsonl", [{"text": "a"}, {"text": "b"}])
    assert load(DataConfig(path=path, eval_size=0), "sft").eval is None


@pytest.mark.parametrize(
    ("row", "kind", "columns"),
    [
        ({"text": "t"}, "sft", ["text"]),
        ({"messages": [USER, ASSISTANT]}, "sft", ["messages"]),
        ({"prompt": "p", "completion": "c"}, "sft", ["prompt", "completion"]),
        (PAIR, "sft", ["prompt", "completion"]),
        (PAIR, "dpo", ["prompt", "chosen", "rejected"]),
        (PAIR, "reward", ["prompt", "chosen", "rejected"]),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER, BAD]}, "dpo", ["chosen", "rejected", "prompt"]),
        (
            {"prompt": "Q", "chosen": [USER, ASSISTANT], "rejected": [USER, BAD]},
            "dpo",
            ["chosen", "rejected", "prompt"],
        ),
        (PAIR, "kto", ["prompt", "completion", "label"]),
        ({"prompt": "p", "completion": "c", "label": True}, "kto", ["prompt", "completion", "label"]),
        (PAIR, "grpo", ["prompt"]),
        ({"prompt": "p", "answer": "42"}, "rloo", ["prompt", "answer"]),
    ],
)
def test_each_form_reaches_the_trainers_that_can_use_it(row, kind, columns, tmp_path):
    result = load(DataConfig(path=write(tmp_path / "d.jsonl", [row] * 4), eval_size=0), kind).train
    assert set(result.column_names) == set(columns)
    if "chosen" in columns:
        assert result[0]["prompt"] == [USER]
        assert result[0]["chosen"] == [ASSISTANT]


def test_pairs_become_both_labels_and_neighbours_differ():
    data = Dataset.from_list([{"prompt": f"{i}", "chosen": "y", "rejected": "n"} for i in range(64)])
    unpaired = to_trainer_columns(data, "kto")
    assert len(unpaired) == 128
    assert sum(unpaired["label"]) == 64
    assert {row["completion"] for row in unpaired if row["label"]} == {"y"}
    same = sum(a == b for a, b in zip(unpaired["prompt"][:-1], unpaired["prompt"][1:], strict=True))
    assert same < 6, "pairs are not left side by side"


def test_columns_are_mapped_ours_to_theirs(tmp_path):
    path = write(tmp_path / "d.jsonl", [{"q": "1?", "good": "y", "bad": "n", "prompt": "old"}] * 4)
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    loaded = load(DataConfig(path=path, columns=columns, eval_size=0), "dpo")
    assert loaded.train[0] == {"prompt": "1?", "chosen": "y", "rejected": "n"}


@pytest.mark.parametrize(
    ("rows", "kind", "config", "said"),
    [
        ([{"a": "x"}] * 4, "dpo", {}, "dpo needs chosen+rejected, and the data has a"),
        ([PAIR] * 4, "dpo", {"columns": {"chosen": "best"}}, "data.columns.chosen=best: no such column"),
        ([{"text": "a"}, {"text": ""}] * 2, "sft", {"eval_size": 0}, "d.jsonl, line 2, text: is empty"),
        ([{"text": None}] * 4, "sft", {"eval_size": 0}, "d.jsonl, line 1, text: is missing"),
        ([{"messages": []}] * 2, "sft", {"eval_size": 0}, "is an empty conversation"),
        ([{"messages": [{"by": "x"}]}] * 2, "sft", {"eval_size": 0}, "expected a message with role and content"),
        ([{**PAIR, "chosen": [{"role": "assistant", "content": ""}]}] * 2, "dpo", {"eval_size": 0}, "turn is empty"),
        ([{"prompt": "p", "completion": "c", "label": "some"}] * 2, "kto", {"eval_size": 0}, "expected true or false"),
        ([{"text": "a"}], "sft", {}, "one row, which cannot be split; set data.eval_size=0"),
    ],
)
def test_a_mistake_in_the_data_says_where(tmp_path, rows, kind, config, said):
    path = write(tmp_path / "d.jsonl", rows)
    with pytest.raises(PosttrainError) as error:
        load(DataConfig(path=path, **config), kind)
    assert said in str(error.value)


PARTED = {"chosen": [USER, ASSISTANT], "rejected": [USER, BAD]}


@pytest.mark.parametrize("eval_size", [0, 4])
@pytest.mark.parametrize(
    ("row", "column", "kinds", "said"),
    [
        (PARTED, "chosen", ("sft", "reward", "dpo", "kto", "grpo"), "is missing"),
        ({"messages": [USER, ASSISTANT]}, "messages", ("sft", "grpo"), "expected a list of messages, got None"),
        ({"chosen": "Q A", "rejected": "Q B"}, "rejected", ("dpo",), "is missing"),
    ],
)
def test_a_null_in_data_that_is_no_file_says_where(row, column, kinds, said, eval_size):
    Dataset.from_list([row] * 3 + [{**row, column: None}] + [row] * 4).save_to_disk("saved")
    for kind in kinds:
        with pytest.raises(PosttrainError) as error:
            load(DataConfig(path="saved", eval_size=eval_size), kind)
        assert f"saved, row 4, {column}: {said}" in str(error.value)


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(PosttrainError, match=r"d.jsonl, line 2: is not JSON: Expecting value at column 9"):
        load(DataConfig(path=str(tmp_path / "d.jsonl")), "sft")


def test_an_unknown_split_of_the_embedded_data():
    with pytest.raises(PosttrainError, match="no split dev; there are train, validation, test"):
        load(DataConfig(path="embedded:squad", split="dev"), "dpo")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["trainer.args.max_length=20"], "max_length=20: every row is dropped"),
        (["trainer.args.max_length=4096"], "max_length=4096: the model's context is 2048"),
        (["probe.rewards.answer_f1.args={column: gold}"], "probe.rewards.answer_f1: reads the column 'gold'"),
    ],
)
def test_what_does_not_fit_together_is_found_before_weights_load(train, monkeypatch, options, said):
    from posttrain.training import build

    monkeypatch.setattr(build, "build", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(PosttrainError) as error:
        train("+recipe=dpo_smollm2", *options)
    assert said in str(error.value)


def test_a_model_too_large_for_the_machine_is_an_error(train, monkeypatch):
    from posttrain.models import architecture

    monkeypatch.setattr(architecture, "architecture", lambda *_: ((10**12, 10**6), 2048))
    with pytest.raises(PosttrainError, match=r"weights, gradients and optimizer take 4000.0 GB.*peft=qlora"):
        train("+recipe=dpo_smollm2")


def test_dry_run_prints_the_plan_and_loads_nothing(train, monkeypatch, capsys, tmp_path):
    from posttrain.training import build

    monkeypatch.setattr(build, "build", lambda *_: pytest.fail("weights were loaded"))
    train("+recipe=dpo_smollm2", "dry_run=true")
    plan = capsys.readouterr().out
    for part in ("dpo, LoRA r=16", "43.3k parameters, 16.4k trained", "32 rows", "8 held out", "4, of 8 rows each"):
        assert part in plan
    assert not (tmp_path / "outputs").exists()


def test_texts_and_prompts_of_the_probe_are_read_like_other_rows(tmp_path):
    from posttrain.config.schema import ProbeConfig, SafetyConfig
    from posttrain.probe import texts

    def tokenizer(text):
        return {"input_ids": [ord(letter) for letter in text]}

    write(tmp_path / "texts.jsonl", [{"text": "ab", "domain": "x"}, {"text": "cd", "domain": 3}])
    assert texts.load(ProbeConfig(texts="texts.jsonl"), tokenizer, True).texts == {"x": [[97, 98]], "3": [[99, 100]]}
    for text in (None, 3, [USER]):
        write(tmp_path / "texts.jsonl", [{"text": text, "domain": "x"}])
        with pytest.raises(PosttrainError, match=r"probe\.texts=texts\.jsonl: row 1, column text: expected text, got"):
            texts.load(ProbeConfig(texts="texts.jsonl"), tokenizer, True)
    write(tmp_path / "asked.jsonl", [{"prompt": "p"}, {"prompt": 3}])
    with pytest.raises(PosttrainError) as error:
        texts.load(ProbeConfig(safety=SafetyConfig(harmful="asked.jsonl")), tokenizer, True)
    assert "asked.jsonl, line 2, prompt: expected text or a list of messages, got 3" in str(error.value)
    assert "on_error" not in str(error.value), "it is no setting of the probe's"
