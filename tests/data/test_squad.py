"""The embedded preference pairs: honest, balanced, disjoint."""

import json
from collections import Counter

import pytest

from posttrain.data.embedded import squad, wheels
from posttrain.errors import PosttrainError


@pytest.fixture(scope="module")
def data():
    return squad.load()


@pytest.fixture(scope="module")
def questions() -> dict[str, dict]:
    articles = json.loads(wheels.squad().read_text(encoding="utf-8"))["data"]
    return {
        question["id"]: question | {"context": paragraph["context"]}
        for article in articles
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    }


def context_of(row: dict) -> str:
    return row["prompt"][-1]["content"].removeprefix("Context: ").rsplit("\n\nQuestion: ", 1)[0]


def test_shape(data):
    assert {name: len(split) for name, split in data.items()} == {"train": 7174, "validation": 1642, "test": 1720}
    assert data["train"].column_names == ["prompt", "chosen", "rejected", "answers", "answerable", "title", "id"]
    row = data["train"][0]
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    assert [message["role"] for message in row["chosen"] + row["rejected"]] == ["assistant", "assistant"]
    ids = [id_ for split in data.values() for id_ in split["id"]]
    assert len(ids) == len(set(ids))


def test_articles_are_disjoint(data):
    titles = {name: set(split["title"]) for name, split in data.items()}
    assert titles["validation"] == set(squad.HELD_OUT["validation"])
    assert titles["test"] == set(squad.HELD_OUT["test"])
    assert sum(map(len, titles.values())) == len(set.union(*titles.values())) == 35


def test_every_prefix_is_balanced(data):
    for split in data.values():
        assert split["answerable"][:] == [True, False] * (len(split) // 2)
        # Shuffled: the first rows come from many articles.
        assert len(set(split["title"][:40])) > len(set(split["title"])) // 2


def test_chosen_and_rejected(data, questions):
    for split in data.values():
        for row in split:
            question = questions[row["id"]]
            chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
            assert row["answerable"] is not question["is_impossible"]
            assert bool(row["answers"]) is row["answerable"]
            said, abstained = (chosen, rejected) if row["answerable"] else (rejected, chosen)
            assert abstained == squad.ABSTENTION
            spans = question["answers"] if row["answerable"] else question["plausible_answers"]
            assert said in {squad.sentence(span["text"]) for span in spans}


def test_the_crop_keeps_the_answer(data, questions):
    for split in data.values():
        for row in split:
            context, question = context_of(row), questions[row["id"]]
            assert context in question["context"]  # one piece of the paragraph, nothing added
            assert len(context.split()) <= squad.DEFAULT.most
            assert all(answer in context for answer in row["answers"])
            assert set(row["answers"]) <= {span["text"] for span in question["answers"]}
            if not row["answerable"]:
                plausible = [span["text"].lower() for span in question["plausible_answers"]]
                assert not any(text in context.lower() for text in plausible)


def test_the_crop_tells_nothing_about_the_kind(data):
    words: dict[bool, list[int]] = {True: [], False: []}
    for row in data["train"]:
        words[row["answerable"]].append(len(context_of(row).split()))
    means = {kind: sum(counts) / len(counts) for kind, counts in words.items()}
    assert abs(means[True] - means[False]) < 2  # of some 43


def test_crop_by_hand():
    text = "One two. Three four five. Six (A. Smith) seven! Eight nine."

    def cropped(answer: str, least: int = 0, most: int = 9) -> str:
        at = text.index(answer)
        start, end = squad.crop(text, at, at + len(answer), squad.Contexts(least, most))
        return text[start:end].strip()

    assert cropped("four") == "Three four five."
    assert cropped("One two.") == "One two."
    assert cropped("Smith) seven") == "Six (A. Smith) seven!"  # an initial ends no sentence
    assert cropped("five. Six") == "Three four five. Six (A. Smith) seven!"  # a span over two sentences
    assert cropped("four", 5) == "One two. Three four five."  # grows backwards first
    assert cropped("nine", 9) == "Three four five. Six (A. Smith) seven! Eight nine."
    assert cropped("One", 9) == "One two. Three four five. Six (A. Smith) seven!"  # then forwards
    assert cropped("seven", 9, 4) == "Six (A. Smith) seven!"  # nothing fits beside it


def test_elsewhere_avoids_the_plausible_answer():
    text = "Ann sings in May. Bob dances in June. Eve reads in July. The end comes soon after that."
    sentence = squad.Contexts(least=0)
    for key in map(str, range(20)):
        start, end = squad.elsewhere(text, ["june"], key, sentence)
        assert "June" not in text[start:end]
    assert squad.elsewhere(text, ["June"], "a", sentence) == squad.elsewhere(text, ["June"], "a", sentence)
    assert squad.elsewhere("One. Two one.", ["one"], "a", sentence) is None


def test_sentence():
    assert squad.sentence("the 1930s") == "The 1930s."
    assert squad.sentence(" Washington D.C.") == "Washington D.C."


def test_most_common_answer_and_answers_inside_the_crop():
    context = "Ann sings. " + "Word " * 40 + "ends. Bob the tall dances in May."
    spans = [
        ("Ann", 0),
        ("Bob", context.index("Bob")),
        ("Bob", context.index("Bob")),
        ("Bob the tall", context.index("Bob")),
    ]
    question = {"id": "1", "question": " Who? ", "answers": [{"text": t, "answer_start": s} for t, s in spans]}
    articles = [{"title": "T", "paragraphs": [{"context": context, "qas": [question]}]}]
    (row,) = squad.pairs(articles, squad.Contexts(least=5))
    assert row["chosen"][0]["content"] == "Bob."
    assert row["answers"] == ["Bob", "Bob the tall"]  # Ann's sentence is not in the crop
    assert row["prompt"][1]["content"] == "Context: Bob the tall dances in May.\n\nQuestion: Who?"


def test_questions_without_an_answer_to_reject_are_left_out():
    question = {"id": "1", "question": "Who?", "answers": [], "plausible_answers": [], "is_impossible": True}
    assert list(squad.pairs([{"title": "T", "paragraphs": [{"context": "Some text.", "qas": [question]}]}])) == []


def test_later_calls_build_nothing_and_are_the_same(data, monkeypatch):
    monkeypatch.setattr(squad, "_build", None)
    again = squad.load()
    assert again["test"][:] == data["test"][:]


def test_building_is_deterministic(data, tmp_path):
    from datasets import load_from_disk

    squad._build(tmp_path / "fresh")
    fresh = load_from_disk(str(tmp_path / "fresh"))
    for name in data:
        assert fresh[name]["id"][:] == data[name]["id"][:]
        assert fresh[name]["prompt"][:] == data[name]["prompt"][:]
    assert Counter(fresh["train"]["answerable"][:]) == {True: 3587, False: 3587}


def test_short_contexts_of_another_paragraph(questions):
    """`data.args` of the demo's study: fewer words, and a context of the article in which retrieval has missed."""
    data = squad.load({"words": [15, 35], "missed": "article"})
    assert {name: len(split) for name, split in data.items()} != {n: len(s) for n, s in squad.load().items()}
    for row in data["test"]:
        context, question = context_of(row), questions[row["id"]]
        assert len(context.split()) <= 35
        if row["answerable"]:
            assert context in question["context"]
            assert all(answer in context for answer in row["answers"])
        else:
            assert context not in question["context"]
            assert not any(span["text"].lower() in context.lower() for span in question["plausible_answers"])


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"word": [15, 35]}, "data.args.word: not an option of embedded:squad; did you mean words?"),
        ({"words": 35}, r"data.args.words=35: expected \[LEAST,MOST\]"),
        ({"words": [35, 15]}, r"data.args.words=\[35, 15\]: expected"),
        ({"missed": "book"}, "data.args.missed=book: choose from paragraph, article"),
    ],
)
def test_wrong_options(args, says):
    with pytest.raises(PosttrainError, match=says):
        squad.load(args)
