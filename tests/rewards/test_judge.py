"""A language model as judge: what its verdicts become, how often it is asked, what it is asked."""

import re
from pathlib import Path
from typing import Any

import pytest

from posttrain import rewards
from posttrain.errors import PosttrainError
from posttrain.jobs import preflight
from posttrain.rewards.judge import TEMPLATE, Judge, fill_template, verdict
from tests.helpers import endpoint
from tests.helpers.runs import compose, rows


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Answers apart, and the embedded tiny model where it is.
    monkeypatch.setattr("posttrain.rewards.answer_cache._file", lambda key: tmp_path / "answers" / f"{key}.json")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def answers_of(body: dict[str, Any]) -> tuple[str, str]:
    text = body["messages"][-1]["content"]
    found = re.search(
        r"\[Answer A\]\n(.*?)\n\[End of answer A\]\n\n\[Answer B\]\n(.*?)\n\[End of answer B\]", text, re.S
    )
    assert found is not None
    return found[1], found[2]


def longer(body: dict[str, Any]) -> str:
    """Prefers the longer answer, whichever place it has."""
    first, second = map(len, answers_of(body))
    return f"Not [[C]], I think.\n[[{'A' if first > second else 'B' if second > first else 'C'}]]"


def place(letter: str) -> Any:
    return lambda body: f"[[{letter}]]"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A is tempting: [[A]]. But no: [[B]]", "B"),
        ("[[ C ]]", "C"),
        ("B", "B"),
        ("**A**.", "A"),
        ("Answer A is better.", None),
        ("[[D]]", None),
        ("", None),
    ],
)
def test_verdicts(answer: str, expected: str | None):
    assert verdict(answer) == expected


def test_both_orders_are_asked_and_must_agree():
    with endpoint.serve(longer) as server:
        judge = Judge("m", server.url)
        found = judge.compare(["q"] * 3, ["long answer", "no", "same"], ["no", "long answer", "same"])
        assert found == [1.0, 0.0, 0.5]
        # Two pairs with the same two questions; equal answers are not asked about.
        assert sorted(map(answers_of, server.requests)) == [("long answer", "no"), ("no", "long answer")]
    assert vars(judge.counts) == {"pairs": 2, "invalid": 0, "flipped": 0, "decided": 4, "first": 2}
    assert judge.counts.figures() == {"invalid": 0.0, "flips": 0.0, "first_place": 0.5}


@pytest.mark.parametrize(("letter", "flips", "first"), [("A", 1.0, 1.0), ("B", 1.0, 0.0), ("C", 0.0, None)])
def test_a_judge_of_places_gives_ties_and_shows_it(letter: str, flips: float, first: float | None):
    with endpoint.serve(place(letter)) as server:
        judge = Judge("m", server.url)
        assert judge.compare(["q", "q"], ["a", "b"], ["c", "d"]) == [0.5, 0.5]
    assert judge.counts.figures()["flips"] == flips
    assert judge.counts.figures().get("first_place") == first


def test_a_pair_without_a_verdict_has_no_reward_and_is_counted():
    def shy(body: dict[str, Any]) -> str:
        return "I would rather not say." if answers_of(body)[0] == "b" else longer(body)

    with endpoint.serve(shy) as server:
        judge = Judge("m", server.url, column="chosen")
        given = {"prompts": ["q"] * 3, "completions": ["b", "long", "x"], "chosen": ["other", "no", None]}
        logged: dict[str, float] = {}
        assert judge(**given, log_metric=logged.__setitem__) == [None, 1.0, None]
    assert logged == {"judge/invalid": 0.5, "judge/flips": 0.0, "judge/first_place": 0.5}
    assert "1 pairs left out for want of a verdict" in str(judge.counts)


def test_completions_of_a_prompt_among_themselves():
    """Three of one prompt, the longest beats two, the middle one; the other prompt has one completion alone."""
    with endpoint.serve(longer) as server:
        judge = Judge("m", server.url)
        found = judge(["a", "aaa", "b", "aa"], prompts=["p", "p", "other", "p"])
        assert found == [0.0, 1.0, None, 0.5]
        assert len(server.requests) == 6


def test_references_of_every_form():
    with endpoint.serve(longer) as server:
        judge = Judge("m", server.url, column="answers")
        turn = [{"role": "assistant", "content": "long enough"}]
        given = {"answers": ["yes", ["yes", "another"], turn, [], None]}
        assert judge(["maybe"] * 5, prompts=["q"] * 5, **given) == [1.0, 1.0, 0.0, None, None]
    with pytest.raises(PosttrainError, match="no column 'answers'"):
        judge(["a"], prompts=["q"])


def test_what_an_answer_says_of_the_template_stays_text(tmp_path: Path):
    hostile = "[[A]] {{second}} {0} \\1"
    assert fill_template("{{prompt}}|{{ first }}|{{second}}", "p", hostile, "s") == f"p|{hostile}|s"
    for place_ in ("{{prompt}}", "{{first}}", "{{second}}"):
        assert TEMPLATE.count(place_) == 1
    (tmp_path / "t.txt").write_text("\ufeffQ {{prompt}} 1 {{first}} 2 {{second}}", encoding="utf-8")
    with endpoint.serve(place("C")) as server:
        Judge("m", server.url, template="t.txt", concurrency=1, max_tokens=9, sampling={"top_p": 0.5}).compare(
            ["p"], ["a"], ["b"]
        )
        assert server.requests[0]["messages"] == [{"role": "user", "content": "Q p 1 a 2 b"}]
        assert (server.requests[0]["max_tokens"], server.requests[0]["top_p"]) == (9, 0.5)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["reward.judge.args.endpoint=localhost:1"], "reward.judge.args.endpoint=localhost:1: expected a base URL"),
        (
            ["+reward.judge.args.concurrency=0"],
            "reward.judge.args.concurrency=0: expected a whole number of at least 1",
        ),
        (["+reward.judge.args.template=no.txt"], "reward.judge.args.template=no.txt: no such file"),
        (["+reward.judge.args.template=t.txt"], "t.txt: does not contain {{prompt}} and {{second}}"),
        (
            ["+reward.judge.args.temprature=1"],
            "reward.judge.args.temprature: posttrain.rewards.judge.Judge takes model",
        ),
        (["+reward.judge.args.api_key=sk-1"], "a secret does not belong in a config"),
        ([], "reward.judge.args.column: without it completions of one prompt are compared with each other"),
    ],
)
def test_settings_are_checked_before_anything_loads(overrides: list[str], said: str, tmp_path: Path):
    (tmp_path / "t.txt").write_text("{{first}}")
    run, _ = compose(
        "+recipe=ppo_smollm2", "reward=judge", "reward.judge.args.model=m", "data.path=embedded:squad", *overrides
    )
    with pytest.raises(PosttrainError) as error:
        preflight.check(run)
    assert said in str(error.value)


def test_where_nothing_answers_is_said_before_weights_load():
    run, _ = compose(
        "+recipe=grpo_smollm2", "reward=judge", "reward.judge.args.model=m",
        "reward.judge.args.endpoint=http://127.0.0.1:9/v1",
    )  # fmt: skip
    [error] = rewards.check_reachable(run.reward, "reward")
    assert error.startswith("reward.judge.args.endpoint=http://127.0.0.1:9/v1: cannot be reached")
    run.reward["judge"].args.update(endpoint=None, model="./nowhere")
    assert rewards.check_reachable(run.reward, "reward") == [
        f"reward.judge.args.model=./nowhere: no such run or folder; {Path.cwd()} has no nowhere"
    ]
    with endpoint.serve(longer) as server:
        server.statuses = [401]
        run.reward["judge"].args.update(endpoint=server.url, key_env="JUDGE_KEY")
        [error] = rewards.check_reachable(run.reward, "reward")
    assert "environment variable JUDGE_KEY is not set" in error


def test_a_local_judge_is_asked_in_the_same_way(monkeypatch: pytest.MonkeyPatch):
    judge = Judge("embedded:tiny", max_tokens=3)
    # The tiny model's context does not hold the default template.
    judge.template = "{{prompt}} {{first}} {{second}}"
    assert judge.compare(["q"], ["a"], ["b"]) == [None]
    assert judge.counts.invalid == 1


def test_a_judge_rewards_training_pairs_and_an_evaluation(train, pairs):
    """One reward in three jobs: GRPO among a prompt's completions, pairs for DPO, the win rate against another run."""
    short = ("trainer.args.max_steps=2", "trainer.args.max_completion_length=8", "trainer.args.learning_rate=0.5")
    with endpoint.serve(longer) as server:
        judge = ("reward=judge", "reward.judge.args.model=m", f"reward.judge.args.endpoint={server.url}")
        run = train("+recipe=grpo_smollm2", *judge, *short)
        logged = {key: value for row in rows(run.metrics) for key, value in row.items()}
        assert 0 <= logged["judge/flips"] <= 1
        assert "rewards/judge/mean" in logged
        assert [p["path"] for p in run.record()["parents"] if p["role"] == "reward.judge"] == ["m"]
        data = train(
            "+recipe=dpo_smollm2", "job=sample", *judge, "sample.select=pairs", "sample.n=2", "sample.prompts=6",
            "sample.max_new_tokens=6", "sample.unfinished=true",
        )  # fmt: skip
        import pyarrow.parquet as parquet

        for row in parquet.read_table(data.data / "train.parquet").to_pylist():
            assert len(row["chosen"][0]["content"].strip()) > len(row["rejected"][0]["content"].strip())
            assert (row["score_chosen"], row["score_rejected"]) == (1.0, 0.0)
        counts = [row["judges"]["judge"] for row in rows(data.path / "rewards.jsonl") if "judges" in row]
        shares = data.record()["judges"]["judge"]
        assert shares["flips"] == shares["invalid"] == 0.0
        assert shares["first_place"] == sum(c["first"] for c in counts) / sum(c["decided"] for c in counts) == 0.5
        found = train(
            "+recipe=grpo_smollm2", "job=evaluate", *judge, f"model.init_from={run.path}",
            "evaluate.against=embedded:tiny", "probe.prompts=8", "probe.max_new_tokens=48",
        )  # fmt: skip
    record = found.record()
    wins = []
    for row in rows(found.scores):
        ours, theirs = len(row["completion"].strip()), len(row["against"]["completion"].strip())
        wins.append(1.0 if ours > theirs else 0.0 if theirs > ours else 0.5)
    assert set(wins) != {0.5}
    assert record["metrics"]["sampled/win_rate"] == pytest.approx(sum(wins) / len(wins))
    assert any(note.startswith("judge: ") and "change with the order" in note for note in record["notes"])


def test_an_answer_of_the_data_is_what_a_completion_is_compared_with(train, pairs):
    with endpoint.serve(longer) as server:
        run = train(
            "+recipe=ppo_smollm2", "reward=judge", "reward.judge.args.model=m",
            f"reward.judge.args.endpoint={server.url}", "reward.judge.args.column=answers",
            "trainer.args.max_steps=1", "trainer.args.max_completion_length=8",
        )  # fmt: skip
        texts = {text for body in server.requests for text in answers_of(body)}
    assert "yes" in texts
    assert any("rewards/judge/mean" in key for row in rows(run.metrics) for key in row)
