"""The embedded reviews and the gold reward that their labels make."""

import importlib
import importlib.util
import re
from itertools import combinations
from pathlib import Path

import pytest

from posttrain.config.schema import DataConfig
from posttrain.data.embedded import imdb
from posttrain.data.loading import load
from posttrain.errors import PosttrainError
from posttrain.jobs import preflight
from posttrain.rewards import reviews
from tests.helpers.runs import compose


@pytest.fixture(scope="module")
def data():
    return imdb.load()


def test_shape(data):
    assert {name: len(part) for name, part in data.items()} == {"eval": 1024, "train": 8192, "gold": 23994}
    assert data["train"].column_names == ["prompt", "text", "review", "label", "source"]
    for part in data.values():
        assert 0.48 < sum(part["label"]) / len(part) < 0.52


def test_splits_share_no_review_no_opening_and_no_prompt(data):
    def signs(text: str) -> str:
        return re.sub(r"[\W_]+", "", text.lower())

    for column in ("prompt", "text", "review"):
        seen = {name: {signs(text) for text in part[column]} for name, part in data.items()}
        assert sum(map(len, seen.values())) == sum(map(len, data.values()))
        assert not any(seen[one] & seen[other] for one, other in combinations(seen, 2))


def test_openings_are_short_and_begin_with_their_prompt(data):
    for row in data["eval"]:
        assert row["text"].startswith(row["prompt"] + " ")
        assert row["review"].startswith(row["text"])
        assert len(row["prompt"].split()) == 8
        assert 11 <= len(row["text"].split()) <= 24
        assert "<br" not in row["review"]


def test_opening_by_hand():
    nine = "one two three four five six seven eight nine."
    assert imdb.opening(f"{nine} Ten eleven! More.") == f"{nine} Ten eleven!"
    assert imdb.opening(nine) is None
    assert imdb.opening(f"{nine} " + "word " * 16 + "end.") is None


def test_reviews_that_begin_or_end_alike_are_one():
    start, end = "a b c d e f g h", "s t u v w x y z"
    rows = [
        {"review": text} for text in (f"{start} one {end}", f"A, b c d e f g h two {end[::-1]}", f"other {end}!", "n")
    ]
    assert imdb.distinct(rows) == [rows[0], rows[3]]


def test_clean_by_hand():
    assert (
        imdb.clean("Bad<br /><br />film , it 's &quot;not&quot; good ( really ) .")
        == 'Bad film, it\'s "not" good (really).'
    )


def test_sft_gets_texts_and_ppo_prompts():
    config = DataConfig(path="embedded:imdb", eval_split="eval", max_train_rows=8, max_eval_rows=4)
    assert load(config, "sft").train.column_names[:1] == ["text"]
    online = load(config, "ppo")
    assert "prompt" in online.train.column_names
    assert not {"text", "label"} & set(online.train.column_names)
    assert load(config, "sft").prompts[0]["prompt"] == online.prompts[0]["prompt"]


def test_an_unknown_embedded_name_is_answered():
    run = compose("+recipe=sft_smollm2", "data.path=embedded:imbd")[0]
    with pytest.raises(PosttrainError, match=r"data\.path=embedded:imbd: choose from embedded:squad, embedded:imdb"):
        preflight.check(run)


def test_gold_knows_held_out_labels(data):
    """Above 0.8 on whole reviews that it was not trained on, and what it says of itself is so."""
    rows = data["eval"]
    right = [(score > 0) == label for score, label in zip(reviews.log_odds(rows["review"]), rows["label"], strict=True)]
    said = reviews.accuracy()
    assert sum(right) / len(right) > 0.8
    assert said["review"] > 0.8
    assert said["reviews"] == 1024 + 8192
    assert said["trained_on"] == len(data["gold"])


def test_gold_scores_prompt_and_completion_together():
    good, bad, undone = reviews.positive(
        [" wonderful and moving.", " dull, a boring mess.", " wonderful and moving."],
        prompts=["This film is", "This film is", "This awful, terrible, worst of all films is not"],
    )
    assert good > 1 > -1 > bad
    assert undone < good
    turn = [{"role": "assistant", "content": "wonderful and moving."}]
    assert reviews.positive([turn], prompts=[[{"role": "user", "content": "This film is"}]]) == [good]
    assert reviews.positive([], prompts=[]) == []


def test_gold_is_kept_without_pickle():
    folder = reviews._folder()
    assert {path.name for path in Path(folder).iterdir()} == {"accuracy.json", "classifier.safetensors", "words.json"}


def test_without_scikit_learn_the_config_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "sklearn" else find(name, *a))
    monkeypatch.delitem(__import__("sys").modules, "posttrain.rewards.reviews")
    run = compose("+recipe=grpo_smollm2", "reward=reviews")[0]
    with pytest.raises(PosttrainError, match=r"reward.positive.function=.*needs scikit-learn; pip install"):
        preflight.check(run)
