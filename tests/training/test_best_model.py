"""`load_best_model_at_end`: the best model is kept and measured, also where the run was interrupted."""

import os
import signal

import pytest
import torch

from posttrain.config import combinations
from posttrain.runs.checkpoint import seal
from tests.helpers.faults import KILLED, directory, dying, run, start, wait
from tests.helpers.runs import SMALL, compose, rows, weights

# The larger loss counts as the better one, so that step 2 of 4 is the best.
ARGS = (
    *("+recipe=sft_smollm2", *SMALL, "~probe.rewards.invented", "trainer.args.max_steps=4"),
    *("trainer.args.num_train_epochs=9", "trainer.args.learning_rate=1e-2", "data.max_train_rows=24"),
    *("trainer.args.lr_scheduler_type=constant", "trainer.args.eval_strategy=steps", "trainer.args.eval_steps=2"),
    *("trainer.args.load_best_model_at_end=true", "trainer.args.metric_for_best_model=eval_loss"),
)
STEPS = ("trainer.args.save_strategy=steps", "trainer.args.save_steps=2")
FIRST, LAST = "trainer.args.greater_is_better=true", "trainer.args.greater_is_better=false"


def stopped_in_evaluation(number):
    def patch():
        from transformers import Trainer

        evaluate, calls = Trainer.evaluate, [0]

        def stopped(*args, **kwargs):
            calls[0] += 1
            if calls[0] == number:
                os.kill(os.getpid(), signal.SIGTERM)
            return evaluate(*args, **kwargs)

        Trainer.evaluate = stopped

    return patch


def died(args, tmp_path, patch):
    def doomed():
        patch()
        run(*args)

    return wait(start(doomed, tmp_path / "log.txt"))


def is_of_step(done, step):
    kept, best = weights(done.model), weights(done.checkpoints / f"checkpoint-{step}")
    evaluated = [row["eval_loss"] for row in rows(done.metrics) if row["step"] == step and "eval_loss" in row]
    assert done.record()["metrics"]["eval_loss"] == pytest.approx(evaluated[0]), "the metrics are those of the model"
    return all(torch.equal(kept[name], best[name]) for name in kept)


@pytest.mark.parametrize(
    ("more", "evaluation", "step"),
    [((*STEPS, LAST), 3, 4), (("trainer.args.save_strategy=best", FIRST), 2, 2)],
    ids=["the last is the best", "saved for the best only"],
)
def test_a_stop_in_the_evaluation_of_the_best_model(more, evaluation, step, tmp_path, pairs):
    args = (*ARGS, *more)
    assert died(args, tmp_path, stopped_in_evaluation(evaluation)) == 128 + signal.SIGTERM
    assert is_of_step(run(*args), step)


def test_a_run_that_is_moved_keeps_its_best_model_and_its_time(tmp_path, pairs):
    args = (*ARGS, *STEPS, FIRST)
    assert died(args, tmp_path, dying("posttrain.runs.card:write_card")) == KILLED
    state = directory(*args).checkpoints / "checkpoint-4" / "progress.json"
    state.write_text(state.read_text().replace('"seconds": ', '"seconds": 10000'))
    seal(state.parent)
    os.rename("outputs", "moved")
    done = run(*args, "output_dir=moved")
    assert is_of_step(done, 2)
    assert done.record()["seconds"] > 10000, "those of the first process, too"


def test_a_best_model_that_was_damaged_is_named(tmp_path, pairs, capsys):
    args = (*ARGS, *STEPS, FIRST)
    assert died(args, tmp_path, dying("posttrain.runs.card:write_card")) == KILLED
    (directory(*args).checkpoints / "checkpoint-2" / "adapter_model.safetensors").write_bytes(b"")
    assert is_of_step(run(*args), 4)
    said = " ".join(capsys.readouterr().out.split())
    assert "load_best_model_at_end=true:" in said
    assert "checkpoint-2, the best by eval_loss, is not there; the model of step 4 is kept" in said


@pytest.mark.parametrize(
    ("kind", "options", "steps"),
    [
        ("ppo", {"eval_steps": 6}, 4),
        ("ppo", {"eval_steps": 4}, None),
        ("grpo", {"eval_steps": 3, "steps_per_generation": 4, "gradient_accumulation_steps": 2}, 2),
        ("grpo", {"eval_steps": 4, "steps_per_generation": 4, "gradient_accumulation_steps": 2}, None),
        ("sft", {"eval_steps": 3}, None),
    ],
)
def test_evaluations_within_a_generation_cannot_choose_the_best(kind, options, steps):
    job, _ = compose(f"trainer={kind}", "model=tiny", "data.path=pairs.jsonl")
    job.trainer.args.update({"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "best"})
    job.trainer.args.update({"metric_for_best_model": "eval_loss", **options})
    errors = [line for line in combinations.check(job) if "generation" in line]
    assert errors == ([] if steps is None else errors[:1])
    assert steps is None or f"eval_steps={options['eval_steps']} is no multiple of the {steps} steps" in errors[0]
