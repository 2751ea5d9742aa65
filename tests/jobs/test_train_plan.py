"""What the plan of a training says of time and memory."""

import pytest

from posttrain import console
from posttrain.jobs import train_plan
from posttrain.models.hardware import Precision
from posttrain.training import duration
from posttrain.training.lengths import Lengths
from posttrain.training.sizes import Sizes
from tests.helpers.runs import compose

SIZES = Sizes(30, 576, 1536, 9, 576, 192, 49152, 139_000_000, 4_880_000, True)
PRECISION = Precision("CPU", "float32", False, False, "sdpa")


def test_a_fact_ends_no_line_between_a_number_and_its_unit(monkeypatch, capsys):
    lines = "about 9.8 GB in the backward pass: activations 5.3 MB, weights 2.8 GB, logits 1.1 kB; of 25.3 GB\nand more"
    for width in range(30, 60):
        monkeypatch.setattr(console, "console", console.SafeConsole(highlight=False, width=width))
        console.print_facts({"memory": lines})
        printed = capsys.readouterr().out
        assert not [line for line in printed.splitlines() if line.lstrip().startswith(("GB", "MB", "kB"))]
        assert printed.replace("memory", "").split() == lines.split()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (5, "less than a minute,"),
        (60, "about 38 to 96 seconds,"),
        (600, "about 6 to 16 minutes,"),
        (36000, "about 6 to 16 hours,"),
        (864000, "about 6 to 16 days,"),
    ],
)
def test_the_time_is_a_range_in_units_that_suit_it(seconds, said):
    assert train_plan.format_estimate(seconds).startswith(said)


def estimate(monkeypatch, *overrides, steps=(10, 4, 1), lengths=(100, 80)):
    monkeypatch.setattr(duration, "_speed", lambda *_: 1e11)
    run, _ = compose(*overrides)
    return duration.estimate(run, PRECISION, SIZES, Lengths([lengths[0]], [lengths[1]]), steps)


def test_the_time_follows_the_work(monkeypatch):
    sft = ("trainer=sft", "model=tiny", "data.path=x", "peft=lora")
    once = estimate(monkeypatch, *sft, "trainer.args.gradient_checkpointing=false")
    # Two operations for each weight and token, forward and backward, of 10 steps of 4 rows of 100 tokens.
    layers = 2 * (139e6 - 4.88e6 - 49152 * 576) + 4 * 100 * 576 * 30
    expected = 10 * 2 * (400 * layers + 80 * 2 * 576 * 49152) / (0.35 * 1e11)
    assert once == pytest.approx(expected)
    assert estimate(monkeypatch, *sft, "trainer.args.gradient_checkpointing=true") == pytest.approx(1.5 * once)
    assert estimate(monkeypatch, *sft, "trainer.args.gradient_checkpointing=false", steps=(20, 4, 1)) == 2 * once


def test_sampling_takes_time_for_every_token_of_a_completion(monkeypatch):
    grpo = ("trainer=grpo", "model=tiny", "data.path=x", "reward=length", "trainer.args.beta=0")
    short, long = (
        estimate(monkeypatch, *grpo, f"trainer.args.max_completion_length={n}", lengths=(50, 50)) for n in (10, 100)
    )
    assert long > short + 10 * 90 * SIZES.layers * duration.LAYER_SECONDS


def test_the_measured_speed_is_that_of_a_product():
    speed = duration._speed(PRECISION, SIZES)
    assert 1e8 < speed < 1e16


@pytest.mark.parametrize(
    ("steps", "overrides", "expected"),
    [(4, (), 1), (100, (), 5), (1000, (), 10), (4, ("trainer.args.eval_strategy=steps",), 10)],
)
def test_a_short_run_logs_often_enough_to_show_a_curve(steps, overrides, expected):
    """Where evaluations follow the interval of logging they stay where TRL has them."""
    from posttrain.jobs import train

    run, _ = compose("trainer=dpo", "model=tiny", "data=squad", *overrides)
    assert train._logging_steps(run, steps) == expected
