"""What the stages of the study cost: seconds on one core, from a run's settings and the rates measured on SmolLM2-135M.

Tokens learned from and tokens drawn are counted from the settings, so the budget follows whatever they are changed to.
"""

from dataclasses import dataclass

from posttrain.config.schema import Run

# Of the openings of reviews, with SmolLM2's tokenizer: the prompt, and prompt and completion with the EOS.
PROMPT, TEXT = 11, 24


@dataclass(frozen=True)
class Rates:
    """Of one process: tokens a second, and seconds to start (imports, weights, saving) and of a held-out prompt.

    `learn`: forward and backward, by 16 texts at a time; `pairs`: the same in DPO, less what the reference reads;
    `rollout`: by 32, as PPO does; `read`: forward alone; `draw`: new tokens; `probe`: a prompt sampled for the probe,
    with its KL; `evaluate`: one sampled by an online trainer.
    """

    start: float
    learn: float
    pairs: float
    rollout: float
    read: float
    draw: float
    probe: float
    evaluate: float


# SmolLM2-135M in bfloat16, one core of an AMD EPYC with AVX512-BF16 while the other does the same (2026-11-28).
CORE = Rates(start=30.0, learn=96.0, pairs=74.0, rollout=78.0, read=420.0, draw=148.0, probe=0.47, evaluate=0.8)
# The random model of the tests: all of it is starting.
TINY = Rates(start=12.0, learn=2e4, pairs=2e4, rollout=2e4, read=5e4, draw=2e3, probe=0.0, evaluate=0.0)


def seconds(run: Run, rates: Rates) -> float:
    """What a stage takes on one core."""
    held_out = run.data.max_eval_rows or 0
    if run.job == "sample":
        return rates.start + _draw((run.sample.prompts or held_out) * run.sample.n, run.sample.max_new_tokens, rates)
    args, kind = run.trainer.args, run.trainer.kind
    rows = (run.data.max_train_rows or 0) * args.get("num_train_epochs", 1)
    read = _evaluations(run) * held_out * TEXT / rates.read
    work = {
        "sft": lambda: rows * TEXT / rates.learn + read,
        "reward": lambda: 2 * rows * TEXT / rates.learn + 2 * read,
        # The reference reads what the policy learns from; held-out pairs are read by both.
        "dpo": lambda: 2 * rows * TEXT * (1 / rates.pairs + 1 / rates.read) + 4 * read,
        # A completion of another prompt beside each, read by both, for the KL.
        "kto": lambda: 2 * rows * TEXT * (1 / rates.pairs + 3 / rates.read) + 8 * read,
        "grpo": lambda: _online(run, rates, 1),
        "ppo": lambda: _online(run, rates, args.get("num_ppo_epochs", 4)),
    }
    return rates.start + work[kind]() + _probes(run) * run.probe.prompts * rates.probe


def _online(run: Run, rates: Rates, epochs: int) -> float:
    """Rollouts: drawn, read by reference and reward, learned from `epochs` times; and evaluations by sampling."""
    args = run.trainer.args
    batch, new = args["per_device_train_batch_size"], args["max_completion_length"]
    rollout = _draw(batch, new, rates) + batch * TEXT * (3 / rates.read + epochs / rates.rollout)
    return args["max_steps"] / epochs * rollout + _evaluations(run) * (run.data.max_eval_rows or 0) * rates.evaluate


def _evaluations(run: Run) -> int:
    """At the start and the end, or neither."""
    first, last = run.trainer.args.get("eval_on_start", True), run.trainer.args.get("eval_strategy") != "no"
    return bool(first) + bool(first or last)


def _probes(run: Run) -> int:
    """At the start (unless that is off) and the end, and every so many steps."""
    return run.probe.start + 1 + ((run.trainer.args["max_steps"] - 1) // run.probe.every if run.probe.every else 0)


def _draw(completions: int, tokens: int, rates: Rates) -> float:
    """A batch is drawn until its longest completion ends."""
    return completions * tokens / rates.draw
