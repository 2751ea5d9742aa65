"""Which completions are kept: the rules on scores made by hand, and which settings are refused."""

import pytest

from posttrain.config.schema import SampleConfig
from posttrain.errors import PosttrainError
from posttrain.jobs import preflight, selection
from posttrain.jobs.sample import batch_seed
from posttrain.jobs.sample_plan import batches
from tests.helpers.runs import compose

# Two prompts: in the first the best two tie; the second has a completion without a score and one not to be used.
SCORES = [[1.0, 3.0, 3.0], [None, 5.0, 2.0]]
TEXTS = [["a", "b", "c"], ["d", None, "f"]]


def kept(select, **settings):
    return selection.completions(SampleConfig(select=select, **settings), SCORES, TEXTS)


def test_all_keeps_what_has_no_score_and_best_the_first_of_equals():
    assert kept("all") == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2)]
    assert kept("best") == [(0, 1), (1, 2)]


def test_a_threshold_is_inclusive():
    assert kept("threshold", threshold=2.0) == [(0, 1), (0, 2), (1, 2)]
    assert kept("threshold", threshold=3.0) == [(0, 1), (0, 2)]
    assert kept("threshold", threshold=3.5) == []


@pytest.mark.parametrize(("fraction", "count"), [(0.25, 1), (0.26, 2), (0.5, 2), (0.51, 3), (1.0, 4)])
def test_the_top_fraction_is_of_all_scored_and_rounded_up(fraction, count):
    """Four completions are scored and usable: 0.25 of them is one, anything more is two."""
    found = kept("top", fraction=fraction)
    assert len(found) == count
    assert {(0, 1), (0, 2)} & set(found), "the highest are among them"


def test_the_top_fraction_is_exact_in_decimals():
    scores, texts = [[float(i)] for i in range(100)], [["x"]] * 100
    # 0.07 * 100 is 7.000000000000001 in binary.
    found = selection.completions(SampleConfig(select="top", fraction=0.07), scores, texts)
    assert found == [(i, 0) for i in range(93, 100)]


def test_equal_scores_at_the_cut_are_not_those_of_the_first_prompts():
    scores, texts = [[1.0]] * 40, [["x"]] * 40
    found = [selection.completions(SampleConfig(select="top", seed=seed), scores, texts) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert found[0] != [(i, 0) for i in range(10)]


def test_pairs_are_best_against_worst():
    assert selection.pairs(SampleConfig(), SCORES, TEXTS) == [(0, 1, 0)], "the second prompt has one usable score"


@pytest.mark.parametrize(
    ("scores", "texts", "margin", "count"),
    [
        ([1.0, 1.5], ["a", "b"], 0.5, 1),  # a difference of just the margin is enough
        ([1.0, 1.5], ["a", "b"], 0.51, 0),
        ([1.0, 1.0], ["a", "b"], 0.0, 0),  # a tie says nothing
        ([1.0, 2.0], ["a", "a"], 0.0, 0),  # neither does one text with two scores
        ([1.0, None], ["a", "b"], 0.0, 0),
        ([None, None], ["a", "b"], 0.0, 0),
    ],
)
def test_pairs_that_say_nothing_are_dropped(scores, texts, margin, count):
    assert len(selection.pairs(SampleConfig(margin=margin), [scores], [texts])) == count


def test_batches_hold_prompts_of_similar_length_longest_first_within_a_window():
    assert batches([3, 9, 5, 1, 7, 2], size=2, window=2) == [[1, 2], [0, 3], [4, 5]]
    lengths = list(range(1000))
    assert sorted(i for batch in batches(lengths, 7) for i in batch) == lengths


def test_every_batch_has_a_seed_of_its_own():
    seeds = {batch_seed(seed, number) for seed in range(10) for number in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["sample.select=bets"], "sample.select=bets: did you mean best?"),
        (["sample.split=test"], "sample.split=test: choose from train, eval"),
        (["sample.select=pairs", "sample.n=1"], "sample.n=1: sample.select=pairs compares completions"),
        (["sample.select=best"], "sample.select=best: needs scores; choose reward=NAME"),
        (["sample.select=threshold", "reward=length"], "sample.threshold: required by sample.select=threshold"),
        (["sample.threshold=0.5"], "sample.threshold=0.5: only read by sample.select=threshold"),
        (["sample.fraction=0"], "sample.fraction=0: expected above 0 and at most 1"),
        (["sample.top_p=1.5"], "sample.top_p=1.5: expected above 0 and at most 1"),
        (["sample.temperature=0"], "sample.temperature=0: expected above 0"),
        (["sample.margin=-1"], "sample.margin=-1: expected at least 0"),
        (["sample.batch_size=0", "sample.max_new_tokens=0"], "sample.batch_size=0: expected at least 1"),
        (["job=evaluate", "evaluate.confidence=95"], "evaluate.confidence=95: expected above 0 and below 1"),
        (["job=evaluate", "evaluate.resamples=1"], "evaluate.resamples=1: expected at least 100"),
        (["job=evaluate", "trainer=grpo"], "reward: job=evaluate of grpo needs one"),
        (["job=train", "probe.shift_prompts=-1"], "probe.shift_prompts=-1: expected at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, said):
    run, _ = compose("trainer=dpo", "model=tiny", "data=squad", "job=sample", *options)
    with pytest.raises(PosttrainError) as error:
        preflight.check(run)
    assert said in str(error.value)
