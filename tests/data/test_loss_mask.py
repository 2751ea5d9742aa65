"""A message of weight 0 carries no loss: seen on the labels that the trainer's own collator makes."""

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import PosttrainError


def messages(*texts: str, weights: tuple[int | None, ...] = ()) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    made: list[dict[str, Any]] = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    for message, weight in zip(made[1::2], weights, strict=False):
        if weight is not None:
            message["weight"] = weight
    return made


ROWS = [
    messages("first?", "wrong", "again?", "right", "once more?", "plain", weights=(0, 1, None)),
    messages("only?", "answer", weights=(1,)),
]


def test_collated_labels_hold_the_weighted_turns_only(train: Any, monkeypatch: pytest.MonkeyPatch):
    from posttrain.training import build

    Path("rows.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in ROWS))
    seen: list[Any] = []
    real = build.build

    def looking(kind: str, parts: Any) -> Any:
        trainer = real(kind, parts)
        batch = next(iter(trainer.get_train_dataloader()))
        seen.append((trainer.processing_class, batch))
        return trainer

    monkeypatch.setattr(build, "build", looking)
    train(
        *("trainer=sft", "data.path=rows.jsonl", "data.eval_size=0", "trainer.args.max_steps=1", "peft=none"),
        "trainer.args.per_device_train_batch_size=2",
    )
    tokenizer, batch = seen[0]
    found = {}
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        kept = [int(i) for i, label in zip(ids, labels, strict=True) if label != -100]
        assert all(label in (-100, i) for i, label in zip(ids, labels, strict=True))
        found[tokenizer.decode(ids)] = tokenizer.decode(kept)
    (long,) = (text for whole, text in found.items() if "first?" in whole)
    (short,) = (text for whole, text in found.items() if "only?" in whole)
    end = tokenizer.eos_token
    assert [part.strip() for part in long.split(end)] == ["right", "plain", ""]
    assert [part.strip() for part in short.split(end)] == ["answer", ""]


def test_a_template_that_rewrites_earlier_turns_is_refused():
    from transformers import AutoTokenizer

    from posttrain.data.embedded import tiny
    from posttrain.data.loss_mask import tokenize_conversation

    tokenizer = AutoTokenizer.from_pretrained(tiny.tiny_model())
    forgetful = "{% for m in messages %}{{ m.role }}{% if loop.last %}: {{ m.content }}{% endif %}\n{% endfor %}"
    with pytest.raises(PosttrainError, match=r"set model.chat_template=FILE.jinja"):
        tokenize_conversation(tokenizer, ROWS[0], template=forgetful)
