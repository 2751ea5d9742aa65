"""A pair's weight scales its gradient: against the gradients of the pairs alone, and through the command."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain.config.schema import DataConfig
from posttrain.data.loading import load
from posttrain.errors import PosttrainError

WEIGHTS = [0.25, 2.0, 0.0, None]
NONE = [None] * 4


def write(path: str, weights: list[Any]) -> None:
    rows = [
        {"prompt": f"{n}?", "chosen": answer, "rejected": "no", **({} if weights == NONE else {"weight": weight})}
        for n, (weight, answer) in enumerate(zip(weights, ("yes", "ja!", "oui", "si!"), strict=True))
    ]
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def gradient(trainer: Any, rows: list[dict[str, Any]]) -> torch.Tensor:
    """Of the loss of a batch of `rows`, over all trained parameters."""
    model = trainer.model
    model.train()
    model.zero_grad()
    trainer.compute_loss(model, trainer._prepare_inputs(trainer.data_collator(rows))).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The trainer of the next run, under `trainer`."""
    from posttrain.training import build

    found: dict[str, Any] = {}
    original = build.build
    monkeypatch.setattr(build, "build", lambda kind, parts: found.setdefault("trainer", original(kind, parts)))
    return found


SETTINGS = {
    "reward": ("trainer=reward",),
    "reward, centred": ("trainer=reward", "trainer.args.center_rewards_coefficient=0.1"),
    "dpo": ("trainer=dpo",),
    "dpo, LoRA": ("trainer=dpo", "peft=lora"),
    "dpo, LoRA, checkpointed": ("trainer=dpo", "peft=lora", "trainer.args.gradient_checkpointing=true"),
    "dpo, precomputed": ("trainer=dpo", "trainer.args.precompute_ref_log_probs=true"),
    "ipo": ("trainer=dpo", "trainer.args.loss_type=[ipo]"),
    "robust and sft": (
        "trainer=dpo",
        "trainer.args.loss_type=[robust,sft]",
        "trainer.args.loss_weights=[1.0,0.5]",
        "trainer.args.label_smoothing=0.1",
    ),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_gradient_is_that_of_the_weighted_mean(train: Any, kept: dict[str, Any], settings: tuple[str, ...]):
    write("rows.jsonl", WEIGHTS)
    train(*settings, "data.path=rows.jsonl", "data.eval_size=0", "trainer.args.learning_rate=1e-2")
    trainer = kept["trainer"]
    rows = list(trainer.train_dataset)
    assert {row["prompt"]: row["weight"] for row in rows} == dict(zip(("0?", "1?", "2?", "3?"), WEIGHTS, strict=True))
    alone = [gradient(trainer, [{**row, "weight": None}]) for row in rows]
    factors = [1.0 if row["weight"] is None else row["weight"] for row in rows]
    expected = sum(factor * each for factor, each in zip(factors, alone, strict=True)) / len(rows)
    assert gradient(trainer, rows).numpy() == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-6)
    unweighted = sum(alone) / len(rows)
    assert not torch.allclose(unweighted, expected, rtol=0.05), "or the test could not tell"


@pytest.mark.parametrize("kind", ["reward", "dpo"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_training_run_weighs_its_pairs(train: Any, kind: str, streaming: bool):
    """Weights of 1 train as no weights do, bit for bit; others do not, and the plan says so."""
    extra = ("data.streaming=true",) if streaming else ()

    def trained(weights: list[Any], name: str) -> dict[str, torch.Tensor]:
        write("rows.jsonl", weights)
        run = train(
            *(f"trainer={kind}", "data.path=rows.jsonl", f"name={name}", "data.eval_size=0", *extra),
            *("trainer.args.max_steps=3", "trainer.args.per_device_train_batch_size=4"),
            "trainer.args.learning_rate=1e-2",
        )
        return load_file(run.model / "model.safetensors")

    plain, ones, some = trained(NONE, "plain"), trained([1, 1.0, 1, 1], "ones"), trained(WEIGHTS, "some")
    assert all(torch.equal(plain[name], ones[name]) for name in plain)
    assert any(not torch.equal(plain[name], some[name]) for name in plain)


def test_a_mixture_counts_the_pairs_of_a_part_without_weights_once(train: Any, kept: dict[str, Any]):
    write("rows.jsonl", [0.5, 0.5, 0.5, 0.5])
    Path("other.jsonl").write_text(json.dumps({"prompt": "a?", "chosen": "yes", "rejected": "no"}) + "\n")
    parts = "data.mix={a: {path: rows.jsonl}, b: {path: other.jsonl}}"
    train("trainer=dpo", "data.path=null", parts, "data.eval_size=0")
    batch = next(iter(kept["trainer"].get_train_dataloader()))
    assert sorted(batch["weight"].tolist()) == [0.5] * 4 + [1.0]


@pytest.mark.parametrize(("weight", "said"), [(-1, "-1"), (2**30, str(2**30)), ("much", "'much'"), (True, "True")])
def test_a_weight_that_is_none(train: Any, weight: Any, said: str):
    """Said with its line, and left out as other rows that do not fit; of a hub's data set with its row."""
    from datasets import Dataset

    wrong = f"weight: a pair's weight is a number from 0 to 1,000,000, got {said} (a column that means"
    write("rows.jsonl", [0.5, weight, None, 2])
    order = ("trainer=dpo", "data.eval_size=0")
    with pytest.raises(PosttrainError) as error:
        train(*order, "data.path=rows.jsonl")
    assert str(error.value).startswith("data.path=rows.jsonl: 1 row does not fit; fix it, or leave it out with")
    assert f"rows.jsonl, line 2, {wrong}" in str(error.value)
    data = load(DataConfig(path="rows.jsonl", eval_size=0, on_error="skip"), "dpo")
    assert sorted(data.train["weight"][:], key=str) == [0.5, 2, None]
    assert len(load(DataConfig(path="rows.jsonl", eval_size=0), "sft").train) == 4, "which does not read it"
    Dataset.from_list([{"prompt": "?", "chosen": "a", "rejected": "b", "weight": weight}]).save_to_disk("saved")
    with pytest.raises(PosttrainError) as error:
        load(DataConfig(path="saved", eval_size=0), "dpo")
    assert f"saved, row 1, {wrong}" in str(error.value)


def test_weights_that_leave_nothing_to_learn(train: Any):
    write("rows.jsonl", [0, 0, 0, 0])
    with pytest.raises(PosttrainError, match=r"rows.jsonl: column weight: all are 0, so nothing is learned"):
        train("trainer=reward", "data.path=rows.jsonl", "data.eval_size=0")


def test_losses_that_sort_a_batch_have_no_weights(train: Any):
    write("rows.jsonl", WEIGHTS)
    with pytest.raises(PosttrainError, match=r"loss_type=\['aot'\]: compares answers of different pairs"):
        train("trainer=dpo", "trainer.args.loss_type=[aot]", "data.path=rows.jsonl", "data.eval_size=0")


def test_several_gpus_in_one_process_have_no_weights(train: Any, monkeypatch: pytest.MonkeyPatch):
    """DataParallel cuts each tensor of a batch into as many pieces: of 2n answers and n weights, not those together."""
    from transformers import TrainingArguments

    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    write("rows.jsonl", WEIGHTS)
    with pytest.raises(PosttrainError, match=r"this process has 2 GPUs; give it one"):
        train("trainer=reward", "data.path=rows.jsonl", "data.eval_size=0")


def test_any_column_can_be_the_weight(train: Any, kept: dict[str, Any]):
    rows = [{"prompt": "a?", "chosen": "yes", "rejected": "no", "score": lead} for lead in (0.2, 1.0)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train("trainer=reward", "data.path=rows.jsonl", "data.eval_size=0", "data.columns={weight: score}")
    batch = next(iter(kept["trainer"].get_train_dataloader()))
    assert sorted(batch["weight"].tolist()) == pytest.approx([0.2, 1.0])
