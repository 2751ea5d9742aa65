"""Rewards against values worked by hand."""

from datetime import date
from decimal import Decimal
from functools import partial

import pytest

from posttrain.config.schema import RewardConfig
from posttrain.data.embedded.squad import ABSTENTION
from posttrain.errors import PosttrainError
from posttrain.rewards import abstain, check, text


def said(content: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": content}]


def test_text_of_strings_and_messages():
    assert text.text_of(" a ") == text.text_of(said("a\n")) == "a"
    assert text.text_of([*said("first"), {"role": "tool", "content": "x"}, *said("last")]) == "last"
    assert text.text_of([]) == ""


def test_normalize_as_squad_does():
    assert text.normalize("The  Cat, a DOG; an owl!") == "cat dog owl"
    assert text.normalize("theatre") == "theatre"  # an article is a word, not a prefix
    assert text.normalize("U.S.-based") == "usbased"


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("Paris.", "paris", 1.0),
        ("the capital is Paris", "Paris", 2 * 1 * (1 / 3) / (1 + 1 / 3)),  # capital, is, paris: P = 1/3, R = 1
        ("Miller-Rabin tests", "Solovay-Strassen tests", 0.5),  # P = R = 1/2
        ("a a b b", "b b b", 0.8),  # the articles go: b b against b b b, P = 1, R = 2/3
        ("London", "Paris", 0.0),
        ("the", "a", 1.0),  # both are empty after normalization
        ("the", "Paris", 0.0),
    ],
)
def test_f1(prediction: str, reference: str, expected: float):
    assert text.f1(prediction, reference) == pytest.approx(expected)


def test_reference_rewards():
    completions = [said("The 1935."), "in 1935 or so", "nothing"]
    answers = [["1936", "1935"], ["in 1935"], []]
    assert text.exact_match(completions, answers=answers) == [1.0, 0.0, None]
    assert text.token_f1(completions, answers=answers) == [1.0, pytest.approx(2 * 2 / (4 + 2)), None]


def test_column_option_and_kinds_of_references():
    reward = partial(text.exact_match, column="solution")
    assert reward(["4", "4", "4"], solution=["4", None, ["5", "4"]], answers=None) == [1.0, None, 1.0]


def test_wrong_column_names_those_there_are():
    with pytest.raises(PosttrainError, match=r"no column 'answer'; its columns besides the prompt: answers, title$"):
        text.token_f1(["a"], column="answer", answers=[["a"]], title=["t"], prompts=["p"], completion_ids=[[1]])


def test_length():
    completions = ["", "one two", said("one two three four"), "1 2 3 4 5 6"]
    assert text.length(completions) == [0.0, 2.0, 4.0, 6.0]
    assert text.length(completions, aim=4) == [0.0, 0.5, 1.0, 0.5]
    assert text.length(completions, at_most=2) == [1.0, 1.0, 0.0, 0.0]
    assert text.length(completions, at_most=4) == [1.0, 1.0, 1.0, 0.5]
    for options in ({"aim": 1, "at_most": 1}, {"aim": 0}, {"at_most": -1}):
        with pytest.raises(PosttrainError, match="at least 1"):
            text.length(completions, **options)


def test_regex():
    completions = ["<answer>4</answer>", said("Answer: 4"), ""]
    assert text.regex(completions, pattern=r"(?i)answer: \d+$") == [0.0, 1.0, 0.0]
    assert text.regex(completions, pattern="^$") == [0.0, 0.0, 1.0]
    with pytest.raises(PosttrainError, match=r"'\(' is not a regular expression"):
        text.regex(completions, pattern="(")


@pytest.mark.parametrize(
    ("function", "args", "said"),
    [
        ("text.regex", {"pattern": "["}, "reward regex: '[' is not a regular expression"),
        ("text.regex", {}, "missing 1 required positional argument: 'pattern'"),
        ("text.length", {"aim": 1, "at_most": 2}, "give aim or at_most"),
        ("text.length", {"aim": "many"}, "'<' not supported between instances of 'str' and 'int'"),
        ("gym.reasoning_gym", {"extract": "tags"}, "extract=tags: choose from tag, text, number"),
    ],
)
def test_args_that_are_wrong_are_said_before_anything_loads(function: str, args: dict, said: str):
    [error] = check({"a": RewardConfig(function=f"posttrain.rewards.{function}", args=args)}, "reward")
    assert error.startswith("reward.a.args: ")
    assert said in error


def test_args_that_are_right():
    for function, args in (("text.exact_match", {"column": "gold"}), ("text.token_f1", {}), ("gym.reasoning_gym", {})):
        assert check({"a": RewardConfig(function=f"posttrain.rewards.{function}", args=args)}, "reward") == []


def test_sentiment():
    # VADER: "good" is 1.9 in its lexicon; compound = s / sqrt(s**2 + 15), rounded to four places.
    assert text.sentiment(["good", said("terrible"), ""]) == [0.4404, -0.4767, 0.0]


@pytest.mark.parametrize(
    "completion",
    [
        ABSTENTION,
        "The context doesn't say.",
        "The passage does not mention when Herodotus lived.",
        "It is not mentioned in the text.",
        "I don't know.",
        "I cannot answer this from the context.",
        "There is no information about that.",
        "Unanswerable",
        "The answer isn't given in the passage.",
        "",
    ],
)
def test_abstains(completion: str):
    assert abstain.abstains(completion)


@pytest.mark.parametrize(
    "completion",
    [
        "Paris.",
        "The context of the war was economic.",
        "Because the king did not know the treaty.",
        "The text was written in 1935.",
        "No one survived.",
        "It was not a monarchy.",
    ],
)
def test_answers_are_no_abstentions(completion: str):
    assert not abstain.abstains(completion)


def test_invented_and_abstention():
    completions = [ABSTENTION, said("Paris"), "in Paris", ABSTENTION, "It is Rome"]
    answers = [[], [], ["Paris"], ["The context"], ["Paris"]]
    assert abstain.invented(completions, answers=answers) == [0.0, 1.0, None, None, None]
    assert abstain.abstention(completions, answers=answers) == [1.0, 0.0, pytest.approx(2 / 3), 0.0, 0.0]


@pytest.mark.parametrize("function", [abstain.invented, abstain.abstention, text.exact_match])
def test_wrong_column_everywhere(function):
    with pytest.raises(PosttrainError, match=r"no column 'answers'; its columns besides the prompt: label$"):
        function(["a"], label=["x"])


def test_references_that_are_numbers_nothing_or_squads_objects():
    assert text.exact_match(["42", "1.5", "42"], answers=[42, 1.5, [None, 42.0]]) == [1.0, 1.0, 1.0]
    assert text.last_number(["so 42"] * 2, answer=[42, float("nan")]) == [1.0, None]
    squad = {"text": ["Paris"], "answer_start": [3]}
    assert text.exact_match(["paris", "text"], answers=[squad, squad]) == [1.0, 0.0]
    odd = [0.00001, Decimal("2.50"), date(2026, 9, 2)]
    assert text.references({"a": odd}, "a") == [["0.00001"], ["2.50"], ["2026-09-02"]]
    assert text.last_number(["0.00001"], answer=[0.00001]) == [1.0]
    turn = {"role": "assistant", "content": "a"}
    assert text.references({"a": [[turn], turn]}, "a", messages=True) == [[turn], [turn]]
    for other in ({"value": "a"}, [{"value": "a"}], [["value"]], [turn | {"value": 1}], b"value"):
        with pytest.raises(PosttrainError, match=r"^reward: the column 'answers' holds objects, such as .*value.*text"):
            text.exact_match(["a"], answers=[other])
    with pytest.raises(PosttrainError, match="holds objects"):
        text.references({"a": [{"value": "a"}]}, "a", messages=True)


def test_what_is_no_reference_is_refused_before_training():
    from datasets import Dataset

    from posttrain.rewards.checks import check_columns
    from tests.helpers.runs import compose

    run, _ = compose("trainer=grpo", "model=tiny", "reward=exact_match", "data.path=x.jsonl")
    with pytest.raises(PosttrainError, match=r"^reward\.exact_match: the column 'answers' holds objects"):
        check_columns(run, Dataset.from_list([{"prompt": "q", "answers": {"value": "a"}}]), None)


def test_a_last_message_without_text_counts_as_empty():
    call = {"role": "assistant", "tool_calls": [{}]}
    parts = {"role": "assistant", "content": [{"type": "text", "text": "a"}]}
    assert [text.text_of([one]) for one in (call, {**call, "content": None}, parts)] == ["", "", "a"]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            RewardConfig(function="posttrain.rewards.text.length", timeout=float("nan")),
            "r.a.timeout=nan: expected a pos",
        ),
        (RewardConfig(function="posttrain.rewards.text.length", timeout=1e12), "r.a.timeout=1000000000000.0: expected"),
        (RewardConfig(function="posttrain.rewards.text.length", args={"aim": float("nan")}), "got aim=nan"),
        (
            RewardConfig(function="posttrain.rewards.text.exact_match", args={"column": ["a"]}),
            "r.a.args.column=['a']: expected the name of a column",
        ),
    ],
)
def test_odd_settings_of_a_reward_are_refused(entry: RewardConfig, said: str):
    (message,) = check({"a": entry}, "r")
    assert said in message


def test_the_column_of_an_entry_point_is_looked_for():
    from posttrain.rewards.checks import missing_columns

    entry = RewardConfig(function="posttrain.rewards.verify.unit_tests", args={"entry_point": "nope"})
    (message,) = missing_columns({"a": entry}, "r", {"tests": None})
    assert message == "r.a: reads the column 'nope', and the data has tests"


@pytest.mark.parametrize(
    ("function", "args", "columns"),
    [
        ("text.regex", {"pattern": "1"}, {"pattern": ["x"]}),
        ("text.length", {}, {"aim": [3], "self": [1]}),
        ("text.token_f1", {}, {"answers": ["1"], "column": ["x"]}),
        ("text.exact_match", {"column": "column"}, {"column": ["1"]}),
        ("verify.json_schema", {"column": "schema"}, {"schema": ['{"type": "integer"}']}),
        (
            "verify.unit_tests",
            {"execute": True, "walls": "reduced"},
            {"tests": ["assert True"], "seconds": [0], "every": ["x"]},
        ),
    ],
)
def test_a_column_by_the_name_of_an_option_does_not_set_it(function: str, args: dict, columns: dict):
    from posttrain import rewards

    entry = RewardConfig(function=f"posttrain.rewards.{function}", args=args)
    assert check({"r": entry}, "reward") == []
    assert rewards.resolve({"r": entry})["r"](completions=["1"], prompts=["q"], **columns) == [1.0]


class Own:
    """A class of a user, whose `check` and `compare` are for itself."""

    def __call__(self, completions, **columns):
        return [self.check(completion) for completion in completions]

    def check(self, completion):
        return float(self.compare(completion, "a"))

    def compare(self, one, other):
        return one == other

    def check_reachable(self):
        raise AssertionError


def test_methods_of_a_users_class_are_its_own_affair():
    from posttrain import rewards
    from posttrain.rewards import checks

    entries = {"r": RewardConfig(function=f"{__name__}.Own")}
    assert check(entries, "reward") == checks.check_reachable(entries, "reward") == []
    assert checks._check_comparisons(entries, "reward") == []
    functions = rewards.resolve(entries)
    assert functions["r"](completions=["a", "b"]) == [1.0, 0.0]
    assert rewards.take_judge_counts(functions) == {}
