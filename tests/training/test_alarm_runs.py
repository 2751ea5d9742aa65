"""Alarms in real runs of a model that learns one word, and in the same runs where nothing goes wrong."""

import json

from tests.helpers.runs import rows

PROBE = (
    *("peft=none", "probe.prompts=24", "probe.every=10", "probe.max_new_tokens=16", "~probe.rewards.invented"),
    *("~probe.rewards.answer_f1", "+probe.rewards.letter.function=tests.helpers.rewards.letter"),
    *("+probe.gold.early.function=tests.helpers.rewards.early", "probe.texts=texts.jsonl"),
    "alarms.over_optimisation.proxy=probe/rewards/letter",
)
LEARN = ("trainer.args.eval_strategy=no", "trainer.args.max_steps=20", "trainer.args.lr_scheduler_type=constant")


def alarms(run):
    return {row["alarm"]["name"] for row in rows(run.metrics) if "alarm" in row}


def test_a_run_that_goes_wrong_raises_its_alarms_and_one_that_stays_none(train, tmp_path):
    """To say yes and nothing else: texts are forgotten, all answers are one, and what gold wants is gone."""
    (tmp_path / "texts.jsonl").write_text('{"text": "0123456789 ABC", "domain": "codes"}\n')
    kind = ("+recipe=sft_smollm2", *LEARN, *PROBE)
    learned = train(*kind, "trainer.args.learning_rate=1e-2")
    assert alarms(learned) == {"forgetting", "collapse", "over_optimisation"}
    calm = train(*kind, "trainer.args.learning_rate=1e-8", "trainer.args.max_steps=2", "probe.every=1")
    assert alarms(calm) == set()


def test_answers_that_grow_and_gradients_that_vanish_raise_alarms(train, tmp_path):
    """To say yes until nothing is left to learn, and then to say it on and on."""
    (tmp_path / "texts.jsonl").write_text('{"text": "yes", "domain": "words"}\n')
    kind = ("+recipe=sft_smollm2", *LEARN, *PROBE, "trainer.args.learning_rate=1e-2", "alarms.gradient.below=0.05")
    short = train(*kind, "trainer.args.max_steps=40", "probe.every=40", "name=short")
    assert "gradient" in alarms(short)
    assert "length" not in alarms(short)
    long = [{"role": "assistant", "content": ", ".join(["yes"] * 7)}]
    lines = [{"prompt": [{"role": "user", "content": f"{n}?"}], "completion": long} for n in range(40)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    grown = train(*kind, "data.path=long.jsonl", f"model.init_from={short.path}", "name=long")
    assert "length" in alarms(grown)
    assert "gradient" not in alarms(grown)
