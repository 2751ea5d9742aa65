"""What the stages of the study cost: seconds on one core, from a run's settings and the rates measured on SmolLM2-135M.

Tokens learned from and tokens drawn are counted from the settings, so the budget follows whatever they are changed to.
"""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.config import Run

# Of the openings of reviews, with SmolLM2's tokenizer: the prompt, and prompt and completion with the EOS.
PROMPT, TEXT = 11, 24


@dataclass(frozen=True)
class Rates:
    """Of one process: tokens a second, and seconds to start (imports, weights, saving)."""

    start: float
    learn: float  # forward and backward
    read: float  # forward alone
    draw: float  # new tokens, 64 sequences at a time


# SmolLM2-135M, one core of an AMD EPYC with AVX512-BF16; docs/frontier.md has the command.
CORE = Rates(start=25.0, learn=200.0, read=600.0, draw=200.0)
# The random model of the tests: all of it is starting.
TINY = Rates(start=12.0, learn=2e4, read=5e4, draw=2e3)


def seconds(run: Run, rates: Rates) -> float:
    """What a stage takes on one core."""
    if run.job == "sample":
        return rates.start + _draw((run.sample.prompts or 64) * run.sample.n, run.sample.max_new_tokens, rates)
    args, kind = run.trainer.args, run.trainer.kind
    rows = (run.data.max_train_rows or 0) * args.get("num_train_epochs", 1)
    held_out = run.data.max_eval_rows or 0
    work = {
        "sft": lambda: rows * TEXT / rates.learn + 2 * held_out * TEXT / rates.read,
        "reward": lambda: 2 * rows * TEXT / rates.learn + 4 * held_out * TEXT / rates.read,
        # The reference reads what the policy learns from; held-out pairs are read by both, at the start and the end.
        "dpo": lambda: 2 * rows * TEXT * (1 / rates.learn + 1 / rates.read) + 8 * held_out * TEXT / rates.read,
        # A completion of another prompt beside each, read by both, for the KL.
        "kto": lambda: 2 * rows * TEXT * (1 / rates.learn + 3 / rates.read) + 16 * held_out * TEXT / rates.read,
        "grpo": lambda: _online(run, rates, 1),
        "ppo": lambda: _online(run, rates, args.get("num_ppo_epochs", 4)),
    }
    return rates.start + work[kind]() + _probe(run, rates)


def _online(run: Run, rates: Rates, epochs: int) -> float:
    """Rollouts: drawn, read by reference and reward, learned from `epochs` times; and evaluations by sampling."""
    args = run.trainer.args
    batch, steps = args["per_device_train_batch_size"], args["max_steps"]
    new = args["max_completion_length"]
    rollout = _draw(batch, new, rates) + batch * TEXT * (3 / rates.read + epochs / rates.learn)
    return steps / epochs * rollout + _evaluations(run) * _draw(run.data.max_eval_rows or 0, new, rates)


def _evaluations(run: Run) -> float:
    """How often held-out prompts are evaluated: at the start and the end, and along the way if asked."""
    args = run.trainer.args
    during = args["max_steps"] / args["eval_steps"] - 1 if args.get("eval_strategy") == "steps" else 0
    return during + 1 + bool(args.get("eval_on_start", True))


def _probe(run: Run, rates: Rates) -> float:
    """Samples of the policy, and the policy and its reference on them, at the start, the end and evaluations."""
    times = 2 + (_evaluations(run) - 2 if run.probe.during and run.trainer.kind in ("ppo", "grpo") else 0)
    each = _draw(run.probe.prompts, run.probe.max_new_tokens, rates) + 2 * run.probe.prompts * TEXT / rates.read
    return times * each


def _draw(completions: int, tokens: int, rates: Rates) -> float:
    """A batch is drawn until its longest completion ends."""
    return completions * tokens / rates.draw
