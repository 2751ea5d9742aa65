"""The steps that a plan foresees are those that the trainer makes."""

import pytest

from posttrain.training.schedule import schedule
from tests.helpers.runs import SMALL, compose

GRPO = ("+recipe=grpo_smollm2", "num_generations=4")


@pytest.mark.parametrize(
    ("recipe", "rows", "steps"),
    [
        (GRPO, 32, 16),
        ((*GRPO, "num_iterations=2"), 32, 32),
        (GRPO, 31, 15),  # a generation of 2 prompts
        ((*GRPO, "steps_per_generation=4", "gradient_accumulation_steps=2"), 31, 6),  # 3 generations of 8 prompts
        ((*GRPO, "generation_batch_size=16"), 31, 14),  # 7 generations of 4 prompts
        (("+recipe=sft_smollm2", "dataloader_drop_last=true", "gradient_accumulation_steps=2"), 20, 1),
        (("+recipe=sft_smollm2", "dataloader_drop_last=true", "gradient_accumulation_steps=2"), 31, 2),
        (("+recipe=sft_smollm2", "gradient_accumulation_steps=2"), 33, 3),
    ],
)
def test_steps(recipe, rows, steps):
    given = {"gradient_accumulation_steps": 1} | dict(option.split("=") for option in recipe[1:])
    options = [f"++trainer.args.{name}={value}" for name, value in given.items()]
    run, _ = compose(recipe[0], *SMALL, "trainer.args.max_steps=-1", *options)
    assert schedule(run, rows)[0] == steps
