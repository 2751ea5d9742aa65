"""Each trainer on the tiny model: it learns, moves exactly what it should, and saves what it trained."""

import json

import pytest
import torch

from tests.helpers.runs import rows, weights

KINDS = ("sft", "reward", "dpo", "kto", "grpo", "rloo")
ONLINE = ("grpo", "rloo")
# More steps, larger ones: enough for the tiny model to learn.
LEARN = (
    "trainer.args.learning_rate=1e-2",
    "trainer.args.num_train_epochs=8",
    "trainer.args.lr_scheduler_type=constant",
)


def short(kind: str) -> tuple[str, ...]:
    """A few completions of a few tokens where a trainer samples."""
    if kind not in ONLINE:
        return ()  # one epoch of the small data
    return (
        *("trainer.args.max_steps=4", "trainer.args.max_completion_length=8", "trainer.args.num_generations=4"),
        *("trainer.args.per_device_train_batch_size=8", "trainer.args.eval_strategy=no"),
        *("~reward", "+reward.letter.function=tests.helpers.rewards.letter"),
    )


def base_and_trained(run, kind):
    """The starting model's weights, and the trained model reloaded by plain PEFT from the run's folder."""
    from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
    from transformers import AutoModelForCausalLM

    from posttrain.data.embedded import tiny

    auto = AutoPeftModelForSequenceClassification if kind == "reward" else AutoPeftModelForCausalLM
    extra = {"num_labels": 1} if kind == "reward" else {}
    trained = auto.from_pretrained(str(run.model), **extra)
    base = AutoModelForCausalLM.from_pretrained(tiny.tiny_model())
    return base.state_dict(), trained


def test_the_seed_orders_the_rows_of_kto(train, monkeypatch):
    """TRL reads them one after the other, so without this two seeds are one run."""
    from posttrain.training import build

    original, orders = build.build, []

    def built(kind, parts):
        trainer = original(kind, parts)
        orders.append([row["prompt"] for row in trainer.train_dataset])
        return trainer

    monkeypatch.setattr(build, "build", built)
    for name, seed in (("a", 1), ("b", 2), ("c", 1)):
        train("trainer=kto", f"name={name}", f"trainer.args.seed={seed}", "trainer.args.max_steps=1")
    first, other, again = orders
    assert first == again
    assert first != other
    assert sorted(map(str, first)) == sorted(map(str, other))


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo", "kto"])
def test_loss_falls(train, kind):
    run = train(f"+recipe={kind}_smollm2", *LEARN)
    losses = [row["loss"] for row in rows(run.metrics) if "loss" in row]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_grpo_raises_its_reward(train):
    run = train(
        *("+recipe=grpo_smollm2", *short("grpo"), "peft=none"),
        *("trainer.args.max_steps=25", "trainer.args.learning_rate=2e-2", "trainer.args.beta=0"),
        *("trainer.args.per_device_train_batch_size=16", "trainer.args.lr_scheduler_type=constant"),
    )
    rewards = [row["reward"] for row in rows(run.metrics) if "reward" in row]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_adapter_and_head_move_and_the_saved_model_loads(train, kind):
    run = train(f"+recipe={kind}_smollm2", *short(kind), "trainer.args.learning_rate=1e-2")
    base, trained = base_and_trained(run, kind)
    saved = weights(run.model)
    assert all("lora_" in name or "score" in name for name in saved)
    assert any("score" in name for name in saved) == (kind == "reward")
    moved = [name for name, value in saved.items() if "lora_B" in name and value.abs().sum() > 0]
    assert len(moved) == sum("lora_B" in name for name in saved), "every adapter matrix learnt something"
    for name, value in trained.base_model.model.state_dict().items():
        plain = name.replace(".base_layer", "")
        if plain in base and "lora" not in name:
            assert torch.equal(value, base[plain]), f"{name}: the frozen base changed"
    assert not list(run.path.rglob("model/*.bin")), "no pickle in the model folder"


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_full_fine_tuning_moves_every_weight(train, kind):
    from transformers import AutoModelForCausalLM

    from posttrain.data.embedded import tiny

    run = train(f"+recipe={kind}_smollm2", "peft=none", "trainer.args.learning_rate=1e-2")
    before = AutoModelForCausalLM.from_pretrained(tiny.tiny_model()).state_dict()
    after = AutoModelForCausalLM.from_pretrained(run.model).state_dict()
    assert before.keys() == after.keys()
    same = [name for name in before if torch.equal(before[name], after[name])]
    assert same == []


def test_dora_trains_a_magnitude(train):
    run = train("+recipe=sft_smollm2", "peft=dora")
    assert any("magnitude" in name for name in weights(run.model))


def test_saved_adapter_gives_the_logits_of_the_trained_model(train, monkeypatch):
    from peft import AutoPeftModelForCausalLM

    from posttrain.training import build

    kept = {}
    original = build.build
    monkeypatch.setattr(build, "build", lambda kind, parts: kept.setdefault("trainer", original(kind, parts)))
    run = train("+recipe=dpo_smollm2", "trainer.args.learning_rate=1e-2")
    ids = torch.arange(3, 40)[None]
    live = kept["trainer"].model.eval()(input_ids=ids).logits
    loaded = AutoPeftModelForCausalLM.from_pretrained(str(run.model)).eval()(input_ids=ids).logits
    assert torch.equal(live, loaded)


QLORA = ("trainer.args.learning_rate=1e-2", "trainer.args.bf16=true", "trainer.args.gradient_checkpointing=true")


def count_forwards(monkeypatch):
    """How often the first layer runs with gradients on, per optimizer step."""
    from transformers import Trainer
    from transformers.models.llama.modeling_llama import LlamaMLP

    calls, forward, step = [], LlamaMLP.forward, Trainer.training_step

    def counted(self, *args):
        if calls and torch.is_grad_enabled() and self.training:
            calls[-1] += 1
        return forward(self, *args)

    def stepped(self, *args, **kwargs):
        calls.append(0)
        result = step(self, *args, **kwargs)
        calls[-1] //= self.model.config.num_hidden_layers
        return result

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    monkeypatch.setattr(Trainer, "training_step", stepped)
    return calls


def test_qlora_layers_are_4_bit_and_get_gradients(train, monkeypatch):
    import bitsandbytes as bnb

    from posttrain.training import build

    kept = {}
    original = build.build
    monkeypatch.setattr(build, "build", lambda kind, parts: kept.setdefault("trainer", original(kind, parts)))
    calls = count_forwards(monkeypatch)
    # An evaluation before training runs 4-bit layers in eval mode, after which some CPUs would pass no gradient.
    run = train("+recipe=dpo_smollm2", "peft=qlora", *QLORA)
    model = kept["trainer"].model
    assert calls == [2] * 4, "gradient checkpointing runs each layer's forward again in backward"
    layers = [m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(layers) == 2 * 7
    assert {m.weight.quant_state.quant_type for m in layers} == {"nf4"}
    assert all(m.weight.quant_state.nested for m in layers), "double quantization"
    assert {m.compute_dtype for m in layers} == {torch.bfloat16}
    moved = [v for n, v in weights(run.model).items() if "lora_B" in n]
    assert all(v.abs().sum() > 0 for v in moved)
    assert {p.dtype for n, p in model.named_parameters() if "norm" in n} == {torch.bfloat16}


def test_a_quantized_reward_model_keeps_its_head_in_float32(train):
    run = train("+recipe=reward_smollm2", "peft=qlora", "trainer.args.bf16=true")
    heads = {v.dtype for n, v in weights(run.model).items() if "score" in n}
    assert heads == {torch.float32}


def test_gradient_checkpointing_changes_memory_not_results(train):
    runs = [
        train("+recipe=dpo_smollm2", f"trainer.args.gradient_checkpointing={on}", "trainer.args.learning_rate=1e-2")
        for on in ("true", "false")
    ]
    first, second = (weights(run.model) for run in runs)
    assert all(torch.allclose(first[n], second[n], atol=1e-6) for n in first)


@pytest.mark.curves
def test_the_run_directory_is_complete(train):
    run = train("+recipe=dpo_smollm2", "probe.prompts=2", "probe.greedy_prompts=2", "probe.max_new_tokens=4")
    record = json.loads((run.path / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["data"]["fingerprint"]
    assert record["versions"]["trl"].startswith("1.16")
    assert record["metrics"]["eval_rewards/accuracies"] >= 0
    assert "probe/kl" in record["metrics"]
    assert {"config.yaml", "run.json", "metrics.jsonl", "samples.jsonl", "curves.png"} <= {
        p.name for p in run.path.iterdir()
    }
    card = (run.model / "README.md").read_text()
    for part in (
        "embedded:tiny",
        "pairs.jsonl",
        record["data"]["fingerprint"],
        "| held-out loss |",
        record["command"],
        "| beta | 0.1 |",
        "model.generate(",
    ):
        assert part in card
    assert "runtime" not in card, "bookkeeping tells nothing of the model"
    assert "base_model_relation: adapter" in card
    code = card.split("```python")[1].split("```")[0].replace("path/to/this/folder", str(run.model))
    exec(compile(code, "card", "exec"), {})  # our own card: it loads, and generates
    assert (run.model / "chat_template.jinja").is_file()
    first = next(row for row in rows(run.metrics) if "probe/kl" in row)
    assert first["probe/kl"] == 0, "before a step the policy is the reference"


def test_log_ratio_is_the_implicit_reward_over_beta(train):
    run = train("+recipe=dpo_smollm2", "trainer.args.beta=0.25", "trainer.args.learning_rate=1e-2")
    row = [row for row in rows(run.metrics) if "rewards/chosen" in row][-1]
    assert row["logratio/chosen"] == pytest.approx(row["rewards/chosen"] / 0.25)
    assert row["logratio/rejected"] != 0


def test_a_finished_run_is_not_trained_again(train, capsys):
    run = train("+recipe=sft_smollm2")
    before = (run.path / "run.json").read_bytes()
    train("+recipe=sft_smollm2")
    assert "is finished" in capsys.readouterr().out
    assert (run.path / "run.json").read_bytes() == before
    other = train("+recipe=sft_smollm2", "trainer.args.seed=7")
    assert other.path != run.path


def test_a_reward_run_scores_for_grpo_just_as_it_was_trained(train):

    from posttrain.rewards.model import RewardModel

    reward = train("+recipe=reward_smollm2", "trainer.args.learning_rate=1e-2")
    score = RewardModel(str(reward.path), dtype="float32")
    prompt = [[{"role": "user", "content": "Hi?"}], [{"role": "user", "content": "And?"}]]
    answer = [[{"role": "assistant", "content": "Yes."}], [{"role": "assistant", "content": "No, not at all."}]]
    together = score(completions=answer, prompts=prompt)
    alone = [score(completions=[a], prompts=[p])[0] for p, a in zip(prompt, answer, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    ids = score.tokenizer.apply_chat_template(prompt[0] + answer[0], tokenize=True, return_dict=True)["input_ids"]
    with torch.no_grad():
        assert score.model(torch.tensor([ids])).logits.item() == pytest.approx(alone[0], abs=1e-5)
    run = train("+recipe=rloo_smollm2", *short("rloo"), "~reward.letter", f"+reward.rm.model={reward.path}")
    assert any("rewards/rm/mean" in row for row in rows(run.metrics))
    [parent] = run.record()["parents"]
    assert (parent["role"], parent["name"]) == ("reward.rm", reward.name)


def test_a_command_may_begin_with_what_it_takes_away(monkeypatch):
    from posttrain import __main__
    from posttrain.jobs import command

    monkeypatch.setattr(command, "run", lambda words: 7 if words == ["~reward", "trainer=dpo"] else 1)
    assert __main__.main(["~reward", "trainer=dpo"]) == 7
