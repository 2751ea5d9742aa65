"""The last number of a text, and the reward that compares it with a reference."""

from decimal import Decimal

import pytest

from posttrain.config.schema import RewardConfig
from posttrain.errors import PosttrainError
from posttrain.rewards import default_column, text


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("16 - 3 - 4 = 9, times $2 is $18.", "18"),
        ("Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n#### 72", "72"),
        ("#### 1,234,567", "1234567"),
        ("about -$1,234.50.", "-1234.5"),
        ("$-5", "-5"),
        ("the balance is −5 euros", "-5"),  # the minus sign of Unicode
        ("5-3", "3"),  # an operator
        ("(2+3)-4", "4"),
        ("in 2021-22", "22"),  # a hyphen
        ("x=-4", "-4"),
        (r"\boxed{-4}", "-4"),
        ("pick 1,2 or 3,4", "4"),  # a list, not thousands
        ("12,3456", "3456"),
        ("0.50", "0.5"),
        ("roughly .75", "0.75"),
        ("The answer is 42.", "42"),
        ("**42**%", "42"),
        ("007", "7"),
    ],
)
def test_last_number_of_a_text(said: str, expected: str):
    assert text.number(said) == Decimal(expected)


def test_no_number():
    assert text.number("none at all") is None
    assert text.number("") is None


def test_reward_compares_the_last_numbers_by_value():
    completions = [
        "First 3, then 18.",
        [{"role": "assistant", "content": "It costs $18.00"}],
        "18 apples, minus 2",
        "I cannot say.",
        "1000",
    ]
    answer = ["2 * 9 = 18\n#### 18", "#### 18", "#### 18", "#### 18", "#### 1,000"]
    assert text.last_number(completions, answer=answer) == [1.0, 1.0, 0.0, 0.0, 1.0]


def test_reward_without_a_numeric_reference_does_not_apply():
    assert text.last_number(["4", "4", "4"], answer=["four", None, ["four", "4"]]) == [None, None, 1.0]


def test_reward_column():
    assert text.last_number(["7"], column="solution", solution=["7"]) == [1.0]
    assert default_column(RewardConfig(function="posttrain.rewards.text.last_number")) == "answer"
    with pytest.raises(PosttrainError, match="no column 'answer'"):
        text.last_number(["7"], solution=["7"])
