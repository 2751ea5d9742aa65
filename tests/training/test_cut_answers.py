"""An answer that sampling cut off is learnt without an end, in pairs of job=sample."""

import json
from pathlib import Path

import pytest
from datasets import load_dataset


def write(messages: bool) -> None:
    def turns(role: str, text: str) -> str | list[dict[str, str]]:
        return [{"role": role, "content": text}] if messages else text

    marks = [(True, False), (False, True), (True, True), (None, None)]
    rows = [
        {
            "prompt": turns("user", f"{n}?"),
            "chosen": turns("assistant", "yes"),
            "rejected": turns("assistant", "no"),
            "ended_chosen": chosen,
            "ended_rejected": rejected,
        }
        for n, (chosen, rejected) in enumerate(marks)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("messages", [False, True], ids=["text", "messages"])
@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_a_cut_answer_has_no_end(train, monkeypatch, kind, messages, capsys):
    from posttrain.training import build

    trainers, original = [], build.build
    monkeypatch.setattr(build, "build", lambda *given: trainers.append(original(*given)) or trainers[0])
    write(messages)
    train(f"trainer={kind}", "data.path=rows.jsonl", "data.eval_size=0")
    tokenizer = trainers[0].processing_class
    seen = 0
    for row in trainers[0].train_dataset:
        for side in ("chosen", "rejected"):
            text = tokenizer.decode(row[f"{side}_ids"])
            answer = "yes" if side == "chosen" else "no"
            if row[f"ended_{side}"] is False:
                assert text.endswith(answer)
                seen += 1
            else:
                assert tokenizer.eos_token in text.split(answer)[-1]
    assert seen == 2
    assert "ended_chosen" not in capsys.readouterr().out, "or the plan would call the column unused"


def test_sampled_pairs_say_which_answers_ended(train):
    run = train(
        *("+recipe=dpo_smollm2", "job=sample", "sample.n=3", "sample.max_new_tokens=6", "sample.unfinished=true"),
        *("sample.select=pairs", "reward=length", "reward.length.args.at_most=1"),
    )
    rows = load_dataset("parquet", data_files=str(run.data / "train.parquet"), split="train")
    assert {type(row[name]) for row in rows for name in ("ended_chosen", "ended_rejected")} == {bool}
    assert not all(rows["ended_chosen"]), "the random model seldom ends an answer"


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_a_cut_answer_of_a_stream_has_no_end(train, monkeypatch, kind):
    from posttrain.training import build

    trainers, original = [], build.build
    monkeypatch.setattr(build, "build", lambda *given: trainers.append(original(*given)) or trainers[0])
    write(False)
    train(
        *(f"trainer={kind}", "data.path=rows.jsonl", "data.eval_size=0", "data.streaming=true"),
        "trainer.args.max_steps=1",
    )
    eos = trainers[0].processing_class.eos_token_id
    rows = list(trainers[0].train_dataset)
    assert len(rows) == 4
    for row in rows:
        for side in ("chosen", "rejected"):
            assert (row[f"{side}_ids"][-1] != eos) == (row[f"ended_{side}"] is False)
