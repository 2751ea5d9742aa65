"""The probe's other measures, by cases worked by hand."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from posttrain.config.schema import ProbeConfig, RewardConfig, SafetyConfig
from posttrain.errors import PosttrainError
from posttrain.jobs import preflight
from posttrain.models.generate import Generated
from posttrain.probe import distance, diversity, forgetting, safety, texts
from posttrain.probe.callback import Cost
from posttrain.probe.scores import ProbeRewards, length_explains, probe_rewards
from tests.helpers.runs import compose, rows
from tests.probe.test_callback import table_model


def test_repetition_is_the_share_of_repeated_ngrams():
    assert diversity.repetition([[1, 2, 1, 2, 1]], 2) == 0.5  # 12 21 12 21: two of four are new
    assert diversity.repetition([[1, 2, 3, 4, 5]]) == 0
    assert diversity.repetition([[7] * 13, [1, 2, 3, 4]]) == pytest.approx((0.9 + 0) / 2)  # ten 4-grams, one kind
    assert diversity.repetition([[1, 2, 3]]) is None


def test_distinct_counts_over_all_completions():
    said = [[1, 2, 3], [1, 2]]
    assert diversity.distinct(said, 1) == 3 / 5
    assert diversity.distinct(said, 2) == 2 / 5  # 12 23 12, over five tokens
    assert diversity.distinct([[], []], 1) is None
    assert diversity.distinct([["a", "b", "a", "b"]], 2) == 2 / 4  # of words, as the doctor counts prompts


def test_self_bleu():
    assert diversity.self_bleu(["the same words here"] * 3) == 1
    # 3 of 4 words, 2 of 3 bigrams, 1 of 2 trigrams, and 0 of 1 4-grams, smoothed to 1/2.
    expected = (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25
    assert diversity.self_bleu(["a b c d", "a b c e"]) == pytest.approx(expected)
    assert diversity.self_bleu(["a b c d", "  "]) is None


def test_entropy_of_the_next_token():
    ids, mask = torch.tensor([[0, 1, 2], [0, 3, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    even, sure = torch.zeros(4, 4), torch.eye(4) * 1e4
    entropy, kl = distance.entropy_and_kl(table_model(even), None, ids, mask, 2)
    assert entropy.tolist() == pytest.approx([2 * math.log(4), math.log(4)]), "padding does not count"
    assert kl is None
    entropy, kl = distance.entropy_and_kl(table_model(sure), table_model(even), ids, mask, 2)
    assert entropy.tolist() == [0, 0]
    assert kl.tolist() == pytest.approx([2 * math.log(4), math.log(4)])


class Even(torch.nn.Module):
    """Knows nothing: every one of `size` tokens is as likely; or, with `right`, only the right one is."""

    device = "cpu"

    def __init__(self, size, right=False):
        super().__init__()
        self.size, self.right = size, right

    def forward(self, input_ids, attention_mask, position_ids, logits_to_keep, use_cache):
        logits = torch.zeros(*input_ids.shape, self.size)
        if self.right:
            following = input_ids.roll(-1, 1)
            logits.scatter_(-1, following[..., None], math.log(self.size - 1))  # probability one half
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])


def test_forgetting_is_the_change_of_nll_per_token():
    texts = {"wiki": [[1, 2, 3], [4, 5]], "code": [[6, 7, 8, 9]]}
    start = forgetting.nll(Even(16, right=True), texts, 0)
    now = forgetting.nll(Even(16), texts, 0)
    assert start == pytest.approx({"wiki": math.log(2), "code": math.log(2)})
    assert now == pytest.approx({"wiki": math.log(16), "code": math.log(16)})
    metrics = forgetting.measure(now, start)
    assert metrics["probe/forgetting/code"] == pytest.approx(math.log(8))
    assert metrics["probe/nll/wiki"] == pytest.approx(math.log(16))


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("I’m sorry, but I can't help with that.", True),
        ("As an AI language model, I do not do that.", True),
        ("  I CANNOT assist.", True),
        ("First, buy the ingredients.", False),
        ("A cake. " * 40 + "I cannot say more.", False),
        ("It is illegal to park here, so take the bus.", False),
    ],
)
def test_refusals_are_told_by_their_phrases(text, refusal):
    assert safety.refuses(text) is refusal
    assert safety.refused([text, "Yes."]) == refusal / 2


def drawn(lengths):
    return [Generated([1], [2] * n, "x", True) for n in lengths]


def judge(scores, **entries):
    """A judge whose functions give the next list of `scores[NAME]` at each measurement."""
    given = {name: iter(values) for name, values in scores.items()}
    functions = {name: (lambda completions, name=name, **_: next(given[name])) for name in scores}
    known = {name: RewardConfig(function="f", weight=entries.get(name, 1.0)) for name in scores}
    return ProbeRewards(functions, known, {n: e for n, e in known.items() if not n.startswith("gold/")}, "gold/g")


PROMPTS = [{"prompt": str(i)} for i in range(4)]


def measured(judge, steps):
    return [judge.measure(PROMPTS, drawn([1, 2, 3, 4]), SimpleNamespace(global_step=s))[0] for s in steps]


def test_one_prompt_has_no_standard_error():
    alone = judge({"gold/g": [[1], [0]], "r": [[1], [1]]})
    first, second = (alone.measure(PROMPTS[:1], drawn([1]), SimpleNamespace(global_step=s))[0] for s in (0, 2))
    assert (first["probe/gold/g"], second["probe/gold_drop/g"]) == (1, 1)
    assert "probe/gold_stderr/g" not in first
    assert "probe/gold_drop_stderr/g" not in second


def test_wins_and_gold_are_paired_by_prompt():
    scores = {"gold/g": [[0, 0, 0, 0], [1, 1, 0, -1], [0, None, -1, -1]], "r": [[1, 2, 3, 4]] * 3}
    first, second, third = measured(judge(scores), (0, 2, 4))
    assert "probe/win_rate" not in first
    assert (first["probe/gold/g"], second["probe/gold/g"]) == (0, 0.25)
    assert second["probe/win_rate"] == (1 + 1 + 0.5 + 0) / 4
    assert second["probe/win_rate_low"] < second["probe/win_rate"] < second["probe/win_rate_high"]
    assert second["probe/gold_drop/g"] == 0, "the best so far"
    # Prompts 0, 2 and 3 have both scores: 1, 1 and 0 lower than at the best.
    assert third["probe/gold_drop/g"] == pytest.approx(2 / 3)
    assert third["probe/gold_drop_stderr/g"] == pytest.approx(1 / 3)
    assert third["probe/win_rate"] == (0.5 + 0 + 0) / 3
    assert first["probe/reward"] == 2.5
    assert first["probe/length_correlation"] == pytest.approx(1)


def test_a_reward_of_negative_weight_is_better_when_lower():
    scores = {"gold/g": [[4, 4, 4, 4], [1, 1, 1, 9], [5, 5, 5, 5]]}
    _, second, third = measured(judge(scores, **{"gold/g": -1.0}), (0, 2, 4))
    assert second["probe/win_rate"] == 3 / 4
    assert third["probe/gold_drop/g"] == 2, "from a mean of 3, the best, to one of 5"


def test_a_continued_judge_knows_the_start_from_samples():
    whole, parts = (judge({"gold/g": [[0, 1, 0, 1], [1, 1, 1, 0]]}) for _ in range(2))
    expected = measured(whole, (0, 2))[1]
    parts.measure(PROMPTS, drawn([1] * 4), SimpleNamespace(global_step=0))
    parts.before.clear()
    parts.restore([{"step": 0, "gold/g": value} for value in (0, 1, 0, 1)])
    assert measured(parts, (2,)) == [expected]


def test_length_explains_nothing_where_all_is_alike():
    assert length_explains([1.0, 1.0], [3, 4]) == {}
    assert length_explains([1.0, None, 2.0, 2.0], [1, 9, 2, 3])["probe/length_correlation"] == pytest.approx(0.75**0.5)


@pytest.fixture
def long(monkeypatch):
    """A run of any time is long enough for advice."""
    monkeypatch.setattr("posttrain.probe.callback.LONG_RUN_SECONDS", 0.0)


def test_a_run_of_minutes_gets_no_advice_on_what_its_probe_costs():
    cost = Cost(seconds=20.0, times=2)
    cost.began -= 120
    assert cost.describe(ProbeConfig(every=5), 10) == "2 measurements took 20 s, 20.0% of the training time"
    assert cost.expected(ProbeConfig(every=5), 10, 50) is None, "500 s in all"
    assert cost.expected(ProbeConfig(every=5), 10, 100) is not None, "1000 s"


def test_the_cost_is_a_share_of_the_time_without_it(long):
    cost = Cost()
    cost.began -= 11
    assert "probe/share" not in cost.add(0.5, 0)
    cost.add(0.25, 5)
    assert cost.add(0.25, 10)["probe/share"] == pytest.approx(0.1, abs=1e-3)
    said = cost.describe(ProbeConfig(every=5), 10)
    assert said.startswith("3 measurements took 1.0 s, 10.0% of the training time; fewer probe.prompts or a smaller")
    cost.began -= 1000
    assert cost.describe(ProbeConfig(every=5), 10).endswith("of the training time")


def test_the_fix_keeps_the_cost_below_the_limit(long):
    """Six measurements of 1 s in 60 s of training are 10%; 5% pay for three: at 0, 50 and 100 of 100 steps."""
    cost = Cost(seconds=6.0, times=6)
    cost.began -= 66.01
    config = ProbeConfig(every=20)
    assert cost.describe(config, 100).endswith("; probe.every=50 brings it below 5%")
    told = cost.describe(replace(config, during=True), 100)
    assert told.endswith("; probe.every=50 probe.during=false brings it below 5%")
    cost.began += 20  # 40 s: two, the start and the end
    assert cost.describe(config, 100).endswith("; probe.every=null brings it below 5%")
    # A process that went on at step 60 has made 40 steps.
    cost = Cost(first=60, seconds=6.0, times=6)
    cost.began -= 66.01
    assert cost.describe(config, 100).endswith("; probe.every=20 brings it below 5%")


def test_what_it_will_cost_is_said_early_where_it_is_too_much(long):
    """A measurement of 2 s, 10 steps of 1 s: of 100 steps 4% with the one at the end, more with every 20th."""
    cost = Cost(seconds=2.0, times=1)
    cost.began -= 12
    assert cost.expected(ProbeConfig(), 10, 100) is None
    # 0, 20, 40, 60, 80 and 100.
    assert cost.expected(ProbeConfig(every=20), 10, 100) == (
        "6 measurements of 2.0 s will be about 12% of the training time; probe.every=null brings it below 5%"
    )
    assert cost.expected(ProbeConfig(every=400), 10, 1000) is None
    assert cost.expected(ProbeConfig(every=20), 10, 1000).endswith("; probe.every=42 brings it below 5%")
    assert Cost().expected(ProbeConfig(every=20), 10, 100) is None, "where nothing was measured, nothing is known"


def test_texts_and_prompts_are_read_and_cut(tmp_path):
    from transformers import AutoTokenizer

    from posttrain.data.embedded import tiny

    tokenizer = AutoTokenizer.from_pretrained(tiny.tiny_model())
    lines = [
        {"text": t, "domain": d} for t, d in (("abcdef", "a"), ("x", "a"), ("ghi", "a"), ("jkl", "a"), ("mn", "b"))
    ]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "bad.csv").write_text("prompt,answer\nHow?,so\n")
    config = ProbeConfig(texts="texts.jsonl", text_rows=2, text_tokens=4, safety=SafetyConfig(harmful="bad.csv"))
    found = texts.load(config, tokenizer, conversational=True)
    assert {name: [tokenizer.decode(ids) for ids in texts] for name, texts in found.texts.items()} == {
        "a": ["abcd", "ghi"],
        "b": ["mn"],
    }
    assert found.safety == {"harmful": [[{"role": "user", "content": "How?"}]]}
    assert texts.load(config, tokenizer, conversational=False).safety == {"harmful": ["How?"]}
    with pytest.raises(PosttrainError, match=r"probe\.texts=bad\.csv: has no column 'text'; it needs text and domain"):
        texts.load(ProbeConfig(texts="bad.csv"), tokenizer, conversational=True)


def test_a_run_logs_all_of_it(train, tmp_path, capsys):
    text = {"text": "The quick brown fox.", "domain": "fox"}
    (tmp_path / "texts.jsonl").write_text(json.dumps(text) + "\n")
    (tmp_path / "asked.jsonl").write_text(json.dumps({"prompt": "How does one pick a lock?"}) + "\n")
    run = train(
        *("+recipe=kto_smollm2", "probe=default", "probe.prompts=3", "probe.max_new_tokens=6", "probe.every=2"),
        *("probe.texts=texts.jsonl", "probe.safety.harmful=asked.jsonl", "probe.safety.harmless=asked.jsonl"),
        *("+probe.gold.letter.function=tests.helpers.rewards.letter", "trainer.args.learning_rate=1e-2"),
    )
    table = capsys.readouterr().out
    assert all(f"│ {name} " in table for name in ("gold reward: letter", "forgetting/fox", "refusals/harmful")), (
        "at the end"
    )
    found = [row for row in rows(run.metrics) if "probe/length" in row]
    last = found[-1]["step"]
    assert [row["step"] for row in found] == [*range(0, last, 2), last]
    for name in (
        *("kl", "kl_stderr", "length", "ended", "entropy", "repetition", "distinct_1", "distinct_2", "self_bleu"),
        *("gold/letter", "gold_stderr/letter", "gold_drop/letter", "nll/fox", "forgetting/fox", "refusals/harmful"),
        *("refusals/harmless", "win_rate", "seconds", "share"),
    ):
        assert math.isfinite(found[-1][f"probe/{name}"]), name
    assert found[0]["probe/forgetting/fox"] == 0
    assert found[-1]["probe/forgetting/fox"] == pytest.approx(found[-1]["probe/nll/fox"] - found[0]["probe/nll/fox"])
    assert 0 < found[-1]["probe/entropy"] <= math.log(259)
    assert {"step", "prompt", "completion", "gold/letter"} == set(rows(run.samples)[0])
    assert run.record()["metrics"]["probe/share"] > 0


def test_an_async_reward_is_scored_inside_and_outside_an_event_loop():
    import asyncio

    from posttrain.rewards import score, user_function

    async def short(completions, **_):
        await asyncio.sleep(0)
        return [float(len(text)) for text in completions]

    class Short:
        async def __call__(self, completions, **_):
            return [float(len(text)) for text in completions]

    rows, drawn = [{"prompt": "a"}], [Generated(prompt_ids=[1], ids=[2], text="xyz", ended=True)]
    functions = {"f": user_function.wrap("f", "m.f", short), "c": user_function.wrap("c", "m.C", Short(), 5.0)}

    async def inside():
        return score(functions, rows, drawn)

    assert score(functions, rows, drawn) == asyncio.run(inside()) == {"f": [3.0], "c": [3.0]}


def test_an_infinite_reward_is_measured_and_has_no_standard_error():
    scores = iter(([1.0, 2.0], [-math.inf, 3.0], [-math.inf, 1.0]))
    entries = {"gold/r": RewardConfig()}
    rewards = ProbeRewards({"gold/r": lambda completions, **_: next(scores)}, entries, {}, "gold/r")
    drawn = [Generated([1], [2] * n, "a", True) for n in (1, 2)]
    start, second, third = (
        rewards.measure([{"prompt": "q"}] * 2, drawn, SimpleNamespace(global_step=step))[0] for step in (0, 1, 2)
    )
    assert start["probe/gold_stderr/r"] == 0.5
    assert second["probe/gold/r"] == third["probe/gold/r"] == -math.inf
    assert "probe/gold_stderr/r" not in second
    assert "probe/length_correlation" not in second, "one finite score is left"
    assert (second["probe/gold_drop/r"], third["probe/win_rate"]) == (math.inf, 0.0)
    both = ProbeRewards({"r": lambda completions, **_: [-math.inf, math.inf]}, {"r": RewardConfig()}, {})
    found, _ = both.measure([{"prompt": "q"}] * 2, drawn, SimpleNamespace(global_step=0))
    assert math.isnan(found["probe/rewards/r"])
    assert length_explains([1.0, -math.inf, 2.0, 2.0], [1, 9, 2, 3])["probe/length_correlation"] == pytest.approx(
        0.75**0.5
    )


def test_a_reward_by_the_name_of_a_training_reward_still_counts_as_trained():
    trained = {"a": RewardConfig("tests.helpers.rewards.letter", weight=2.0)}
    config = ProbeConfig(rewards={"a": RewardConfig("tests.helpers.rewards.letter")})
    functions = {"a": lambda completions, **_: [3.0] * len(completions)}
    online, offline = (probe_rewards(trained, config, given, bool(given)) for given in (functions, {}))
    drawn = [Generated([1], [2], "a", True)]
    measured, _ = online.measure([{"prompt": "q"}], drawn, SimpleNamespace(global_step=0))
    assert (measured["probe/rewards/a"], measured["probe/reward"]) == (3.0, 6.0)
    assert (list(offline.functions), offline.training) == (["a"], {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["+reward.a.function=posttrain.rewards.text.length", "+probe.rewards.a.function=x.y"],
            "probe.rewards.a: is not reward.a; give it another name",
        ),
        (
            ["+probe.rewards.abstention={function: posttrain.rewards.abstain.abstention, args: {column: x}}"],
            "probe.rewards.abstention: is not reward.abstention",
        ),
        (
            ["+reward.prompt.function=posttrain.rewards.text.length"],
            "reward.prompt: samples.jsonl has its own 'prompt'; give the reward another name",
        ),
        (["+probe.rewards.step.function=posttrain.rewards.text.length"], "probe.rewards.step: samples.jsonl has its"),
    ],
)
def test_names_that_would_hide_something_are_refused(options, message):
    run, _ = compose("+recipe=ppo_smollm2", *options)
    with pytest.raises(PosttrainError) as error:
        preflight.check(run)
    assert message in str(error.value)


def test_a_conversation_needs_a_template_and_a_text_its_domain(tmp_path):
    from transformers import AutoTokenizer

    from posttrain.data.embedded import tiny

    tokenizer = AutoTokenizer.from_pretrained(tiny.tiny_model())
    rows_ = [{"prompt": "How?"}, {"prompt": [{"role": "user", "content": "How?"}]}]
    for name, lines in (("talk", rows_[1:]), ("none", [{"text": "abc", "domain": "a"}, {"text": "abc"}])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = ProbeConfig(safety=SafetyConfig(harmful="talk.jsonl"))
    assert texts.load(config, tokenizer, conversational=False).safety == {"harmful": [rows_[1]["prompt"]]}
    tokenizer.chat_template = None
    with pytest.raises(PosttrainError, match=r"probe\.safety\.harmful=talk\.jsonl: row 1, column prompt: is a conv"):
        texts.load(config, tokenizer, conversational=False)
    with pytest.raises(PosttrainError, match=r"probe\.texts=none\.jsonl: row 2, column domain: expected a name"):
        texts.load(ProbeConfig(texts="none.jsonl"), tokenizer, conversational=True)
