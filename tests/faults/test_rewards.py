"""A reward of the user's that fails says which it is, on what, and how to go on; and the run goes on from there."""

import math
import sys
import time

import pytest

from posttrain.errors import PosttrainError, RewardError
from posttrain.rewards.user_function import wrap
from tests.faults.test_stops import command
from tests.helpers import rewards as theirs
from tests.helpers.faults import differences, run

BAD = {
    "a number": (lambda completions, **_: 1.0, "returned float 1.0; return a list with a number"),
    "text": (lambda completions, **_: "ab", "returned str 'ab'; return a list"),
    "nothing": (lambda completions, **_: None, "returned NoneType None; return a list"),
    "too few": (lambda completions, **_: [1.0], "returned 1 values; return a list .* each of the 2 completions"),
    "words": (lambda completions, **_: ["good", 1], "returned str 'good' for completion 0"),
    "pairs": (lambda completions, **_: [(1, 2), 1], r"returned tuple \(1, 2\) for completion 0"),
    "a number without end": (lambda completions, **_: [10**400, 1], r"returned int 10+\.\.\. for completion 0"),
    "no order": (lambda completions, **_: {1.0, 0.0}, r"returned set {0\.0, 1\.0}; return a list"),
    "an error of a generator": (lambda completions, **_: (1 / 0 for _ in completions), "raised ZeroDivisionError"),
    "an error": (lambda completions, **_: 1 / 0, r"raised ZeroDivisionError: division by zero at .*test_rewards.py:\d"),
    "an end": (lambda completions, **_: sys.exit(0), "raised SystemExit: 0 at"),
    "completions of its own": (
        lambda completions, **_: [1.0 for _ in (completions.append("c"), *completions)],
        "returned 4 values; return a list .* each of the 2 completions",
    ),
    "an empty error": (lambda completions, **_: [][0], "raised IndexError"),
    "an answer that never comes": (
        lambda completions, **_: time.sleep(60),
        "did not answer within its timeout of 0.05 s",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_wrong_is_named(kind):
    function, said = BAD[kind]
    seconds = 0.05 if kind == "an answer that never comes" else 60
    with pytest.raises(RewardError, match=rf"reward mine \(my.module.f\), on 2 completions: {said}"):
        wrap("mine", "my.module.f", function, timeout=seconds)(completions=["a", "b"])


def test_numbers_of_all_kinds_pass():
    import numpy as np
    import torch

    for values in ([True, None], np.array([1, 2]), torch.tensor([1.0, 2.0]), (math.nan, -math.inf)):
        found = wrap("mine", "m.f", lambda completions, values=values, **_: values)(completions=["a", "b"])
        assert [None if v is None else type(v) for v in found] == [None if v is None else float for v in list(values)]


def test_a_function_that_waits_for_others_is_guarded_too():
    import asyncio

    async def broken(completions, **_):
        raise KeyError("x")

    async def ending(completions, **_):
        sys.exit(0)

    for function, said in ((broken, "KeyError: 'x'"), (ending, "SystemExit: 0")):
        with pytest.raises(RewardError, match=rf"reward mine .*raised {said}"):
            asyncio.run(wrap("mine", "m.f", function)(completions=["a"]))


def test_a_reward_that_fails_in_the_fifth_step_costs_nothing(tmp_path, pairs, monkeypatch):
    """A checkpoint of the step before is saved, the command is said, and the end is that of a run without the error."""
    args = command("rloo", "name=a")
    whole = run(*command("rloo", "name=b"))
    letter = theirs.letter

    def fails(completions, trainer_state=None, **columns):
        if trainer_state is not None and trainer_state.global_step == 4 and fails.training():
            raise ValueError("the judge is away")
        return letter(completions, **columns)

    import inspect

    fails.training = lambda: any(f.function == "training_step" for f in inspect.stack(0))
    with monkeypatch.context() as patch:
        patch.setattr(theirs, "letter", fails)
        with pytest.raises(PosttrainError) as error:
            run(*args)
    assert "reward letter (tests.helpers.rewards.letter) after step 4, on 16 completions: raised ValueError" in str(
        error.value
    )
    assert "checkpoint-4 is saved, and the same command resumes from it: posttrain +recipe=rloo" in str(error.value)
    assert differences(whole, run(*args)) == []
