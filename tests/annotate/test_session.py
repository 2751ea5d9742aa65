"""Preferences by people: what is asked, whom, what an answer counts for, and what comes out, in numbers by hand."""

import json
import os
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset
from sklearn.metrics import cohen_kappa_score

from posttrain import extras
from posttrain.annotate import __main__ as command
from posttrain.annotate import agreement, export, items, results, selection
from posttrain.annotate.answers import Answers, read
from posttrain.annotate.candidates import Candidate, Group
from posttrain.annotate.session import LEASE_SECONDS, Session, order
from posttrain.config.schema import DataConfig
from posttrain.data.loading import load
from posttrain.errors import PosttrainError
from tests.helpers.runs import compose, rows


def item(name, count=2, preferred=None):
    return items.Item(name, f"prompt {name}", tuple(f"{name}{i}" for i in range(count)), {"n": name}, preferred)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def session(tmp_path, names="abcd", **options):
    return Session(tmp_path / "prefs.jsonl", [item(name) for name in names], **options)


def asked(run, who):
    return run.view(who).item.id


def say(run, who, choice):
    """Answer what `who` has before them; the item."""
    view = run.view(who)
    assert run.answer(who, view.ticket, choice)
    return view.item.id


# What is asked


def write(path, *found):
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return DataConfig(path=str(path))


def test_pairs_lists_and_rows_become_items(tmp_path):
    turn = [{"role": "user", "content": "Hi?"}]
    said = [[{"role": "assistant", "content": text}] for text in ("yes", "no")]
    (pair,) = items.read(
        write(tmp_path / "a.jsonl", {"prompt": turn, "chosen": said[0], "rejected": said[1], "n": 7}), 2, 0, False
    )
    assert pair.prompt == turn
    assert pair.completions[pair.preferred] == said[0]
    assert pair.extra == {"n": 7}

    listed = items.read(
        write(
            tmp_path / "b.jsonl",
            {"prompt": "p", "completions": ["x", "y", "x", " "], "scores": [1.0, 3.0, 1.0, 9.0]},
            {"prompt": "alone", "completions": ["x", "x"], "scores": [0, 0]},
        ),
        9,
        0,
        False,
    )
    assert [(one.prompt, sorted(one.completions)) for one in listed] == [("p", ["x", "y"])]
    assert listed[0].completions[listed[0].preferred] == "y"

    rows = [{"prompt": p, "completion": c} for c in "xyz" for p in ("1", "2")]
    grouped = items.read(write(tmp_path / "c.jsonl", *rows), 2, 0, False)
    assert [one.prompt for one in grouped] == ["1", "2"]
    assert all(len(one.completions) == 2 for one in grouped)


def test_other_columns_are_kept_as_json_has_them(tmp_path):
    import datetime

    from datasets import Dataset

    row = {"prompt": "p", "chosen": "x", "rejected": "y", "n": float("nan"), "rewards_chosen": "odd"}
    Dataset.from_list([{**row, "day": datetime.date(2026, 1, 2)}]).to_parquet(tmp_path / "a.parquet")
    (one,) = items.read(DataConfig(path=str(tmp_path / "a.parquet")), 2, 0, False)
    assert one.extra == {"n": None, "day": "2026-01-02"}


def test_an_item_is_the_same_whichever_side_it_stood_on(tmp_path):
    data = write(
        tmp_path / "a.jsonl",
        {"prompt": "p", "chosen": "x", "rejected": "y"},
        {"prompt": "p", "chosen": "y", "rejected": "x"},
    )
    assert len(items.read(data, 2, 0, False)) == 1


def test_pairs_without_a_prompt_column_share_their_first_turns(tmp_path):
    turn = {"role": "user", "content": "Hi?"}
    both = [[turn, {"role": "assistant", "content": text}] for text in ("yes", "no")]
    (pair,) = items.read(write(tmp_path / "a.jsonl", {"chosen": both[0], "rejected": both[1]}), 2, 0, False)
    assert pair.prompt == [turn]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "completions": "x"}, "row 1, column completions: expected a list"),
        ({"prompt": "p", "completions": ["x", "x"]}, "no prompt has two different completions"),
        ({"prompt": "p", "completions": ["x", "y"], "scores": [1]}, "column scores: expected one for each of the 2"),
        ({"question": "p", "completions": ["x", "y"]}, "completions need a column prompt"),
        ({"prompt": 3, "completions": ["x", "y"]}, "line 1, prompt: expected text or a list of messages"),
        ({"prompt": "p", "chosen": "x"}, "chosen"),
        ({"prompt": "p", "completions": [{"role": "assistant", "content": "x"}]}, "expected text or a list of"),
        ({"prompt": "p", "chosen": "x", "rejected": ""}, "line 1, rejected: is empty"),
    ],
)
def test_data_that_asks_nothing(tmp_path, row, message):
    with pytest.raises(PosttrainError, match=message):
        items.read(write(tmp_path / "a.jsonl", row), 2, 0, False)


def test_published_forms_are_converted_before_people_see_them(tmp_path):
    said = [{"response": text, "overall_score": score} for text, score in (("a", 3), ("b", 9), ("c", 5))]
    (several,) = items.read(write(tmp_path / "a.jsonl", {"instruction": "p", "completions": said}), 3, 0, False)
    assert several.prompt == [{"role": "user", "content": "p"}]
    assert several.completions[several.preferred] == [{"role": "assistant", "content": "b"}]
    sides = {side: {"from": "gpt", "value": side} for side in ("chosen", "rejected")}
    row = {"conversations": [{"from": "human", "value": "q"}], **sides}
    (pair,) = items.read(write(tmp_path / "b.jsonl", row), 2, 0, False)
    assert pair.completions[pair.preferred] == [{"role": "assistant", "content": "chosen"}]


def candidate(score=None, **rewards):
    return Candidate(f"{score} {rewards}", score, rewards)


def test_disagreement_of_rewards_is_the_variance_of_predicted_preferences():
    one, other = candidate(a=1.0, b=0.0), candidate(a=0.0, b=1.0)
    # Each reward's deviation over {0, 1} is 1/2, so the differences are +2 and -2: sigmoid 0.8808 and 0.1192,
    # of mean 1/2 and variance 0.3808 squared.
    scales = selection.spread([one, other])
    assert scales == {"a": 0.5, "b": 0.5}
    assert selection.information(one, other, scales) == pytest.approx(0.38079708**2)
    assert selection.information(one, one, scales) == 0
    assert selection.information(candidate(score=3.0), candidate(score=1.0), {}) == -2


def test_most_informative_first_and_the_pair_that_is():
    def group(prompt, *scores):
        return Group(prompt, tuple(candidate(score) for score in scores), {})

    found = selection.order([group("far", 0.0, 9.0), group("none", None, None), group("near", 0.0, 5.0, 5.5)], 2, "d")
    assert [one.prompt for one in found] == ["near", "far", "none"]
    assert [one.score for one in found[0].candidates] == [5.0, 5.5]
    with pytest.raises(PosttrainError, match="--informative: d has no scores"):
        selection.order([group("none", None, None)], 2, "d")


# Whom, in which order


def test_sides_are_shuffled_by_item_and_annotator_and_stay():
    found = [order(0, item(str(i)), who) for i in range(200) for who in ("ann", "bob")]
    assert found == [order(0, item(str(i)), who) for i in range(200) for who in ("ann", "bob")]
    assert 160 < Counter(found)[(0, 1)] < 240
    assert sum(found[i] != found[i + 1] for i in range(0, 400, 2)) > 60, "two people see different sides"
    assert len({order(0, item(str(i), 3), "ann") for i in range(100)}) == 6, "all orders of three"


def test_an_item_belongs_to_one_person_at_a_time(tmp_path):
    clock = Clock()
    run = session(tmp_path, clock=clock)
    assert (asked(run, "ann"), asked(run, "bob"), asked(run, "ann")) == ("a", "b", "a")
    assert say(run, "ann", 0) == "a"
    assert asked(run, "ann") == "c"
    clock.now += LEASE_SECONDS + 1
    assert say(run, "bob", "skip") == "b", "his again, nobody took it"
    assert say(run, "cid", 0) == "b", "skipped by one, it is another's"
    assert asked(run, "cid") == "c", "left by ann"
    assert asked(run, "bob") == "d"


def test_overlap_goes_to_everyone_between_the_others(tmp_path):
    run = session(tmp_path, "abcdefgh", overlap=3)
    seen = {}
    for who in ("ann", "bob", "cid"):
        seen[who] = []
        while run.view(who).item:
            seen[who].append(say(run, who, 0))
    shared = set(run.everyone)
    assert len(shared) == 3
    assert all(shared <= set(order) for order in seen.values())
    assert [one in shared for one in seen["ann"]] == [True, False, True, False, True, False, False, False]
    assert sorted(one for order in seen.values() for one in order if one not in shared) == sorted(
        set("abcdefgh") - shared
    )
    assert run.view("dan").left == 3


def test_votes_asks_so_many_people(tmp_path):
    run = session(tmp_path, "a", votes=2)
    assert [run.view(who).left for who in ("ann", "bob", "cid")] == [1, 1, 0]
    say(run, "ann", 0)
    say(run, "bob", 1)
    assert run.view("cid").item is None


# What an answer counts for


def test_an_answer_sent_twice_counts_once_and_the_first_stands(tmp_path):
    run = session(tmp_path)
    ticket = run.view("ann").ticket
    assert run.answer("ann", ticket, 0)
    assert not run.answer("ann", ticket, 1)
    assert not run.answer("ann", "d-0", 0), "never shown"
    assert not run.answer("ann", "nonsense", 0)
    with pytest.raises(ValueError, match="expected tie, skip, or 0 to 1"):
        run.answer("ann", run.view("ann").ticket, 2)
    assert len(run.answers.standing) == 1
    assert sum(line["kind"] == "answer" for line in rows(tmp_path / "prefs.answers.jsonl")) == 1


def test_undo_goes_back_one_by_one_and_counts_what_is_said_then(tmp_path):
    run = session(tmp_path)
    assert [say(run, "ann", 0), say(run, "ann", "tie")] == ["a", "b"]
    last = run.view("ann").last
    assert run.undo("ann", last)
    assert not run.undo("ann", last), "the same undo twice is one"
    assert asked(run, "ann") == "b"
    assert run.view("ann").before["choice"] == "tie"
    assert run.undo("ann", run.view("ann").last)
    assert run.answers.standing == {}
    assert not run.answer("ann", "a-0", 1), "a page from before the undo"
    assert [say(run, "ann", 1), say(run, "ann", 1), say(run, "ann", 1)] == ["a", "b", "c"]
    places = [run.answers.standing["ann", name]["place"] for name in "abc"]
    assert places == [1, 1, 1]
    assert run.view("ann").answered == 3
    assert run.answers.votes == {"a": 1, "b": 1, "c": 1}


def test_the_choice_is_kept_by_completion_not_by_place(tmp_path):
    run = session(tmp_path, "abcdefgh")
    for _ in range(8):
        view = run.view("ann")
        run.answer("ann", view.ticket, view.order.index(1), "because", True)
    assert {answer["choice"] for answer in run.answers.standing.values()} == {1}
    assert {answer["place"] for answer in run.answers.standing.values()} == {0, 1}
    assert {(answer["reason"], answer["flag"]) for answer in run.answers.standing.values()} == {("because", True)}


def test_a_new_process_goes_on_where_the_file_ends(tmp_path):
    run = session(tmp_path)
    say(run, "ann", 0)
    run.view("ann")
    before = {who: run.view(who) for who in ("bob", "ann")}
    with (tmp_path / "prefs.answers.jsonl").open("ab") as file:
        file.write(b'{"kind": "answer", "tick')  # killed while writing
    again = session(tmp_path, "dcba")
    assert {who: again.view(who) for who in ("ann", "bob")} == before
    say(again, "ann", 1)
    assert [line["kind"] for line in read(tmp_path / "prefs.answers.jsonl")].count("answer") == 2
    with pytest.raises(PosttrainError, match=r"--seed=3: .* was begun with --seed 0"):
        session(tmp_path, seed=3)


def test_answers_outlive_their_row(tmp_path):
    run = session(tmp_path, "ab")
    say(run, "ann", 0)
    again = session(tmp_path, "bc")
    assert again.undo("ann", again.view("ann").last)
    assert asked(again, "ann") == "a"


def test_a_full_disk_counts_nothing_and_spoils_nothing(tmp_path, monkeypatch):
    run = session(tmp_path)
    view = run.view("ann")
    whole = (tmp_path / "prefs.answers.jsonl").read_bytes()

    def full(file):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            run.answer("ann", view.ticket, 0)
    assert (tmp_path / "prefs.answers.jsonl").read_bytes() == whole
    assert run.view("ann") == view
    assert run.answer("ann", view.ticket, 0)


def test_a_file_that_is_no_answers_file(tmp_path):
    (tmp_path / "x.answers.jsonl").write_text('{"kind": "task", "seed": 0}\n{"a": 1}\n')
    with pytest.raises(PosttrainError, match="line 2: not a line of an answers file"):
        read(tmp_path / "x.answers.jsonl")


# Agreement

# Cohen's textbook form: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no. Observed 0.7, expected 0.5 x 0.6 + 0.5 x 0.4 = 0.5.
COHEN = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15


def test_kappa_by_hand_and_by_scikit_learn():
    assert agreement.kappa(COHEN) == pytest.approx(0.4)
    assert agreement.kappa(COHEN) == pytest.approx(cohen_kappa_score(*zip(*COHEN, strict=True)))
    three = [("0", "0"), ("1", "tie"), ("tie", "tie"), ("0", "1"), ("1", "1")]
    assert agreement.kappa(three) == pytest.approx(cohen_kappa_score(*zip(*three, strict=True)))
    assert agreement.kappa([(0, 0), (0, 0)]) is None
    assert agreement.kappa([]) is None


def test_alpha_by_hand():
    # Two coders, ten binary units (Krippendorff 2011, section A): alpha is 0.095 there.
    ann, bob = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    given = {str(i): {"ann": a, "bob": b} for i, (a, b) in enumerate(zip(ann, bob, strict=True))}
    given["alone"] = {"ann": 1}
    # 4 units differ; of 20 values 14 are 0 and 6 are 1.
    assert agreement.alpha(given) == pytest.approx(1 - 19 * 4 / (14 * 6))
    assert agreement.alpha({"a": {"ann": 0, "bob": 0}}) is None
    assert agreement.alpha({}) is None


def test_the_interval_of_alpha_is_over_items():
    def asked(items):
        return {str(i): {"ann": i % 2, "bob": i % 2 if i % 5 else "tie", "eve": i % 2} for i in range(items)}

    few, many = agreement.alpha_interval(asked(20)), agreement.alpha_interval(asked(320))
    for ends, given in ((few, asked(20)), (many, asked(320))):
        assert ends[0] < agreement.alpha(given) < ends[1]
    # A sixteenth of the items: four times as wide, about.
    assert 2.5 < (few[1] - few[0]) / (many[1] - many[0]) < 5.5
    agreed = {str(i): {"ann": i % 2, "bob": i % 2} for i in range(20)}
    assert agreement.alpha_interval(agreed) is None
    assert agreement.alpha_interval(asked(9)) is None, "too few"
    assert agreement.alpha_interval({}) is None
    # What the bootstrap resamples is the very alpha.
    assert agreement._alpha(np.array([8.0, 14.0, 6.0])) == pytest.approx(1 - 19 * 4 / (14 * 6))


def test_what_the_results_page_counts(tmp_path):
    run = session(tmp_path, "abc", overlap=3)
    for who, choices in (("ann", (0, 1, "tie")), ("bob", (0, 0, "skip"))):
        for name, choice in zip("abc", choices, strict=True):
            run._show(run.items[name], who)
            place = choice if isinstance(choice, str) else order(0, run.items[name], who).index(choice)
            assert run.answer(who, f"{name}-0", place)
    votes = agreement.votes(run.answers)
    (pair,) = agreement.pairs(votes)
    # Of two common items one is equal; expected by chance: ann half 0, bob always 0, so 1/2 and kappa 0.
    assert (pair.items, pair.equal, pair.kappa) == (2, 0.5, 0)
    ann, bob = agreement.people(run.answers)
    assert (ann.answered, ann.ties, ann.skips, bob.skips) == (3, 1, 0, 1)
    assert ann.as_data is None


# What comes out


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ([0], {(0, 1): 1.0}),
        ([0, 0, 1], {(0, 1): pytest.approx(1 / 3)}),
        ([0, 1], {}),
        ([0, "tie"], {}),  # half is no majority
        ([1, 1, "tie"], {(1, 0): pytest.approx(2 / 3)}),
        (["tie", "tie", 0], {}),
    ],
)
def test_majority_is_more_than_half(choices, expected):
    assert export.majority(choices, 2) == expected


def test_the_best_of_three_beats_each_of_the_others():
    assert export.majority([2, 2, 0], 3) == {(2, 0): pytest.approx(1 / 3), (2, 1): pytest.approx(2 / 3)}


def test_weighted_by_agreement_with_the_others():
    # ann and bob agree on all four, cid with neither.
    cast = {str(i): {"ann": 0, "bob": 0, "cid": 1} for i in range(4)}
    weights = export.reliability({**cast, "5": {"dan": 0}})
    # ann: 4 of 8 comparisons equal, (4 + 1) / (8 + 2); cid: 0 of 8, 1 / 10; dan was never compared.
    assert weights == {"ann": 0.5, "bob": 0.5, "cid": 0.1, "dan": 0.5}
    # ann against cid and a tie of dan: (0.5 + 0.25 - 0.1 - 0.25) / 1.1.
    assert export.weighted({"ann": 0, "cid": 1, "dan": "tie"}, 2, weights) == {(0, 1): pytest.approx(0.4 / 1.1)}
    assert export.weighted({"ann": 0, "bob": 1}, 2, weights) == {}, "as heavy"
    assert export.majority([0, 1], 2) == {}


def answered(tmp_path, *given, **options):
    """A session over items with prompts of conversations, answered: (who, item, choice, flag)."""
    turns = [
        items.Item(
            name,
            [{"role": "user", "content": name}],
            tuple([{"role": "assistant", "content": text}] for text in ("x", "y")),
            {"answers": [name]},
        )
        for name in "abc"
    ]
    run = Session(tmp_path / "prefs.jsonl", turns, overlap=3, **options)
    for who, name, choice, flag in given:
        run._show(run.items[name], who)
        place = choice if isinstance(choice, str) else order(0, run.items[name], who).index(choice)
        assert run.answer(who, f"{name}-0", place, "why", flag)
    return run


GIVEN = (
    *(("ann", "a", 0, False), ("bob", "a", 0, True), ("cid", "a", 1, False)),
    *(("ann", "b", 1, False), ("bob", "b", "tie", False), ("ann", "c", "skip", False)),
)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_what_is_written_is_what_recipes_take(tmp_path, suffix):
    run = answered(tmp_path, *GIVEN)
    out = tmp_path / f"prefs{suffix}"
    written = export.write(run.answers, out, "majority", False)
    assert (written.pairs, written.items, written.undecided, written.skipped) == (1, 1, 1, 1)
    (row,) = load(DataConfig(path=str(out), eval_size=0), "dpo").train.to_list()
    assert row["prompt"] == [{"role": "user", "content": "a"}]
    assert row["chosen"] == [{"role": "assistant", "content": "x"}]
    assert row["rejected"] == [{"role": "assistant", "content": "y"}]
    assert (row["answers"], row["votes"], row["flags"]) == (["a"], 3, 1)
    assert row["score"] == pytest.approx(1 / 3)
    lines = {line["item"]: line for line in rows(tmp_path / "prefs.votes.jsonl")}
    assert [vote["choice"] for vote in lines["b"]["votes"]] == [1, "tie"]
    assert (lines["a"]["chosen"], lines["b"]["chosen"], lines["c"]["chosen"]) == (0, None, None)
    assert lines["a"]["votes"][1]["reason"] == "why"


def test_flagged_items_can_be_left_out_and_nothing_is_no_file(tmp_path):
    run = answered(tmp_path, *GIVEN)
    with pytest.raises(PosttrainError, match="of 3 items with answers none has a preference by majority"):
        export.write(run.answers, tmp_path / "prefs.jsonl", "majority", True)
    assert not (tmp_path / "prefs.jsonl").exists()
    assert export.write(run.answers, tmp_path / "prefs.jsonl", "weighted", True).flagged == 1


def test_a_recipe_trains_on_them_as_the_command_says(tmp_path, capsys):
    """`train` at the end is a command that plans; the answers file alone is exported again by another rule."""
    from posttrain.jobs import preflight
    from posttrain.jobs.train import train

    run = answered(tmp_path, *(("ann", name, 0, False) for name in "abc"))
    assert command.main(["prefs.answers.jsonl", "--out", "again.parquet", "--export", "weighted"]) == 0
    said = capsys.readouterr().out
    assert "again.parquet: 3 from 3 items, by weighted" in said
    (line,) = [line for line in said.splitlines() if line.startswith("train")]
    assert run.answers.standing
    words = [word for word in line.split()[2:] if word != "model.path=MODEL"]
    settings, origin = compose(*words, "model=tiny", "data.eval_size=1", "tracking=none", "dry_run=true")
    preflight.check(settings)
    train(settings, origin)
    assert "again.parquet" in capsys.readouterr().out


# The command


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["d.jsonl", "--out", "x.csv"], ["--out=x.csv: expected a file that ends in .jsonl or .parquet"]),
        (["d.jsonl", "--out", "no/x.jsonl"], ["--out=no/x.jsonl: no folder no"]),
        (["d.jsonl", "--out", "d.jsonl"], ["--out=d.jsonl: that is the data itself"]),
        (["d.jsonl", "--out", "there.jsonl"], ["--out=there.jsonl: exists, without there.answers.jsonl"]),
        (["d.jsonl", "--out", "x.jsonl", "--show", "1", "--votes", "0"], ["--show=1: expected 2 to 9", "--votes=0:"]),
        (["d.jsonl", "--out", "x.jsonl", "word"], ["word: expected KEY=VALUE"]),
        (["d.jsonl", "--out", "x.jsonl", "data.pth=1"], ["data.pth"]),
        (["./none.jsonl", "--out", "x.jsonl"], ["DATA=./none.jsonl: no such file"]),
        (["none.jsonl", "--out", "x.jsonl"], ["DATA=none.jsonl: no such file"]),
        (["none.jsonl.gz", "--out", "x.jsonl"], ["DATA=none.jsonl.gz: no such file"]),
        (["*.none", "--out", "x.jsonl"], ["DATA=*.none: no file matches"]),
        (["d.txt", "--out", "x.jsonl"], ["DATA=d.txt: expected a .jsonl, .json, .csv or .parquet file"]),
        (["empty.jsonl", "--out", "x.jsonl"], ["DATA=empty.jsonl"]),
        (["one.jsonl", "--out", "x.jsonl"], ["DATA=one.jsonl: no prompt has two different completions"]),
        (["d.jsonl", "--out", "x.jsonl", "--informative"], ["--informative: d.jsonl has no scores"]),
        (["d.jsonl", "--out", "bad.jsonl"], ["bad.answers.jsonl, line 1: not a line"]),
        (["d.jsonl", "--out", "x.jsonl", "--host", "no.such.invalid"], ["--host=no.such.invalid: no such address"]),
        (["none.answers.jsonl", "--out", "x.jsonl"], ["none.answers.jsonl: cannot be read"]),
        (["unfinished", "--out", "x.jsonl"], ["unfinished: this run is not finished"]),
        (["d.jsonl", "--out", "x.jsonl", "--guidelines", "latin.md"], ["--guidelines=latin.md: cannot be read"]),
        (["d.jsonl", "--out", "x.jsonl", "data.columns={a"], ["'data.columns={a': cannot be read: while parsing"]),
        (
            ["d.jsonl", "--out", "x.jsonl", "data.format=foo", "data.max_train_rows=0", "data.streaming=true"],
            ["data.format=foo: choose from", "data.max_train_rows=0: expected", "data.streaming=true: "],
        ),
        (["d.jsonl", "--out", "x.jsonl", "data.path=null"], ["data.path=None: DATA=d.jsonl names the data"]),
        (
            ["mine.answers.jsonl", "--out", "there.jsonl"],
            ["there.jsonl: exists, without there.answers.jsonl or there."],
        ),
    ],
)
def test_bad_input_ends_before_the_server_starts(tmp_path, monkeypatch, capsys, arguments, messages):
    monkeypatch.setattr("posttrain.annotate.serve.run", lambda *a: pytest.fail("started"))
    write(tmp_path / "d.jsonl", {"prompt": "p", "chosen": "x", "rejected": "y"})
    write(tmp_path / "one.jsonl", {"prompt": "p", "completion": "x"})
    (tmp_path / "there.jsonl").write_text("mine\n")
    (tmp_path / "d.txt").write_text("mine\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.answers.jsonl").write_text("mine\n")
    (tmp_path / "mine.answers.jsonl").write_text('{"kind": "task", "seed": 0}\n')
    (tmp_path / "latin.md").write_bytes(b"caf\xe9")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "run.json").write_text('{"job": "sample", "status": "running"}')
    assert command.main(arguments) == 1
    error = capsys.readouterr().err
    assert all(message in error for message in messages), error
    assert "Traceback" not in error
    assert (tmp_path / "there.jsonl").read_text() == "mine\n"


def test_missing_libraries_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "PACKAGES", {"no_such_module": "no-such-package", "json": "json"})
    assert command.main(["d.jsonl", "--out", "x.jsonl"]) == 1
    assert "no-such-package not installed: " + extras.install_command("annotate") in capsys.readouterr().err


def test_ports_and_processes(tmp_path, monkeypatch, capsys):
    from posttrain.annotate import serve

    write(tmp_path / "d.jsonl", {"prompt": "p", "chosen": "x", "rejected": "y"})
    with serve.bind("127.0.0.1", None) as one, serve.bind("127.0.0.1", None) as other:
        taken = one.getsockname()[1]
        assert other.getsockname()[1] != taken
        assert command.main(["d.jsonl", "--out", "x.jsonl", "--port", str(taken)]) == 1
        assert f"--port={taken}: Address already in use; choose another" in capsys.readouterr().err
    with serve.exclusive_access(tmp_path / "x.jsonl"):
        assert command.main(["d.jsonl", "--out", "x.jsonl"]) == 1
        assert "another process is asking for these answers" in capsys.readouterr().err


def test_a_run_is_sampled_from_and_its_rewards_order_the_items(train, tmp_path, monkeypatch, capsys):
    run = train("+recipe=sft_smollm2", "trainer.args.max_steps=1")
    seen = {}

    def answer_one(session, *others):
        seen["items"] = list(session.items.values())
        say(session, "ann", 0)

    monkeypatch.setattr("posttrain.annotate.serve.run", answer_one)
    arguments = [
        *(str(run.path), "--out", "p.jsonl", "--informative", "sample.prompts=4", "sample.n=3"),
        *("sample.max_new_tokens=6", "sample.unfinished=true", "reward=length", "reward.length.args.at_most=1"),
        "+reward.letter.function=tests.helpers.rewards.letter",
    ]
    assert command.main(arguments) == 0
    said = capsys.readouterr().out
    assert "posttrain +recipe=sft_smollm2 model=tiny data.path=pairs.jsonl" in said
    assert f"job=sample model.init_from={run.path} sample.select=all" in said
    assert 1 <= len(seen["items"]) <= 4
    assert all(len(one.completions) == 2 for one in seen["items"])
    assert f"trainer=dpo peft=lora model.path=embedded:tiny data.path=p.jsonl model.init_from={run.path}" in said, (
        "the recipe trains another base"
    )
    assert rows(tmp_path / "p.jsonl")[0]["answers"] == ["yes"]
    assert command.main(["./none", "--out", "q.jsonl"]) == 1
    assert command.main([str(run.path), "--out", "q.jsonl", "sample.nn=3"]) == 1
    assert "sample.nn" in capsys.readouterr().err


def test_the_next_command_fits_what_was_judged(tmp_path, monkeypatch):
    from posttrain.annotate import sampling

    def judged(record):
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        (folder / "run.json").write_text(json.dumps({"status": "finished", "job": "train", **record}))
        return sampling.next_command(str(folder), tmp_path / "p.jsonl")

    llama = {"recipe": "sft_llama", "model": {"path": "meta-llama/Llama-3.1-8B-Instruct"}}
    assert judged(llama).startswith("posttrain +recipe=dpo_llama probe=default data.path=")
    own = judged({"recipe": None, "model": {"path": "Qwen/Qwen3-0.6B"}})
    assert own.startswith("posttrain trainer=dpo peft=lora model.path=Qwen/Qwen3-0.6B data.path=")
    assert own.endswith(f"model.init_from={tmp_path / 'run'}")
    assert "trainer=dpo peft=lora model.path=MODEL data.path=" in sampling.next_command(
        "pairs.jsonl", tmp_path / "p.jsonl"
    )


def test_guidelines_are_shown_beside_each_item_sanitised(tmp_path):
    from starlette.testclient import TestClient

    from posttrain.annotate.server import app

    session = Session(tmp_path / "p.jsonl", [], seed=0)
    session.guidelines = "# Prefer\n\n- the **shorter** one <script>alert(1)</script>"
    client = TestClient(app(session, "127.0.0.1", 8765, None), base_url="http://127.0.0.1:8765")
    said = client.get("/api/state", params={"annotator": "ann"}).json()["guidelines"]
    assert "<strong>shorter</strong>" in said
    assert "<script" not in said


TASK = {"kind": "task", "seed": 0}
ITEM = {"kind": "item", "item": "i", "prompt": "q", "completions": ["a", "b"], "extra": {}, "preferred": None}
ANSWER = {
    **{"kind": "answer", "ticket": "i-0", "item": "i", "annotator": "ann", "choice": 0, "place": 0, "reason": ""},
    **{"flag": False, "seconds": 1.0, "time": 2.0},
}


@pytest.mark.parametrize(
    "lines",
    [
        [TASK, ANSWER],  # its item was removed
        [TASK, ITEM, {"kind": "answer"}],
        [TASK, ITEM, {**ANSWER, "choice": 2}],
        [TASK, ITEM, {**ANSWER, "item": ["i"]}],
        [TASK, ITEM, {**ANSWER, "annotator": ["ann"]}],
        [TASK, ITEM, {**ANSWER, "flag": "no"}],
        [TASK, ITEM, {**ANSWER, "seconds": "long"}],
        [TASK, ITEM, {"kind": "shown", "item": "i", "annotator": {}, "time": 1.0}],
        [{"kind": "task"}],
    ],
)
def test_a_line_that_does_not_fit_the_lines_before_it_is_named(tmp_path, lines):
    write(tmp_path / "x.answers.jsonl", *lines)
    with pytest.raises(PosttrainError, match=rf"x\.answers\.jsonl, line {len(lines)}: not a line of an answers file"):
        read(tmp_path / "x.answers.jsonl")


def test_parquet_keeps_columns_of_several_types_and_those_of_later_rows(tmp_path):
    more = [{**ITEM, "item": "j", "extra": {"m": 1}}, {**ITEM, "item": "k", "extra": {"m": "x"}}]
    given = [{**ANSWER, "item": name, "ticket": f"{name}-0"} for name in "ijk"]
    export.write(Answers([TASK, ITEM, *more, *given]), tmp_path / "x.parquet", "majority", False)
    assert Dataset.from_parquet(str(tmp_path / "x.parquet"))["m"][:] == [None, 1, "x"]


def test_other_columns_of_an_item_are_json():
    row = {"prompt": "p", "a": [float("nan")], "b": float("inf"), "c": float("nan"), "d": 1}
    assert items._extra(row) == {"a": [None], "b": None, "c": None, "d": 1}


def test_answers_to_items_that_are_gone_are_not_counted_as_items_with_a_vote(tmp_path):
    run = session(tmp_path)
    for _ in range(4):
        say(run, "ann", 0)
    assert "Of 2 items\n1 has a vote" in results.page(session(tmp_path, "az"))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_full_disk_at_the_export_is_said_and_leaves_no_part(tmp_path, monkeypatch, capsys, suffix):
    say(session(tmp_path), "ann", 0)

    def full(source, target):
        raise OSError(28, "No space left on device", str(source))

    monkeypatch.setattr(os, "replace", full)
    out = tmp_path / f"pairs.{suffix}"
    assert command.main([str(tmp_path / "prefs.answers.jsonl"), "--out", str(out)]) == 1
    assert "No space left on device; choose another place" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.incomplete"))
