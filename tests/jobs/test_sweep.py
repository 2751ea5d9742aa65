"""Hydra multirun: every job a run of its own, failures named with the command that repeats them, an objective back."""

import json
from pathlib import Path

import pytest

from tests.helpers.runs import SMALL, rows, write_pairs


def test_a_sweep_trains_each_job_and_names_the_one_that_failed(cli, tmp_path):
    write_pairs(tmp_path / "pairs.jsonl")
    # The second job asks for a longer sequence than the model's context: known only once the model's config is read.
    done = cli(
        *("-m", "+recipe=dpo_smollm2", *SMALL, "tracking=wandb"),
        *("trainer.args.max_length=128,999999,256", "objective=eval_rewards/margins"),
    )
    assert done.returncode == 1
    assert "2 of 3 jobs finished" in done.stderr
    begun = [line.split(" ", 2)[1:] for line in done.stdout.splitlines() if line.startswith("job ")]
    assert [number for number, _ in begun] == ["1", "2", "3"]
    assert "trainer.args.max_length=256" in begun[2][1]
    (failed,) = [line for line in done.stderr.splitlines() if line.startswith("failed ")]
    assert failed.split()[1:3] == ["posttrain", "+recipe=dpo_smollm2"]
    assert "trainer.args.max_length=999999" in failed
    assert "the model's context is 2048" in done.stderr
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    jobs = rows(sweep / "jobs.jsonl")
    assert [job["status"] for job in jobs] == ["finished", "failed", "finished"]
    runs = sorted((tmp_path / "outputs").glob("dpo*"))
    assert len(runs) == 2
    margins = {json.loads((run / "run.json").read_text())["metrics"]["eval_rewards/margins"] for run in runs}
    assert {job["objective"] for job in jobs if job["status"] == "finished"} == margins
    assert len(list((tmp_path / "outputs").glob("dpo*/wandb/offline-run-*"))) == 2, "a W&B run per job"
    assert [job["run"] and Path(job["run"]) in runs for job in jobs] == [True, None, True], "where the report finds it"


@pytest.mark.slow
def test_optuna_draws_a_front_of_two_objectives(cli, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    write_pairs(tmp_path / "pairs.jsonl")
    done = cli(
        *("-m", "+recipe=dpo_smollm2", *SMALL, "probe.prompts=4", "probe.during=true", "probe.max_new_tokens=8"),
        *("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.direction=[maximize,minimize]"),
        *("objective=[eval_rewards/margins at kl 5,probe/kl]", "trainer.args.beta=interval(0.05,0.5)"),
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    tried = [tuple(job["objective"]) for job in rows(sweep / "jobs.jsonl")]
    assert len(tried) == 2
    best = (sweep / "optimization_results.yaml").read_text()
    assert any(all(str(number) in best for number in numbers) for numbers in tried)


def test_an_unknown_objective_lists_what_was_measured(train):
    from posttrain.errors import PosttrainError

    with pytest.raises(PosttrainError, match=r"objective=eval_aux_loss: not measured; there are .*eval_loss"):
        train("+recipe=sft_smollm2", "objective=eval_aux_loss")


def test_a_typo_stops_a_sweep_before_any_job(cli, tmp_path):
    done = cli("-m", "+recipe=dpo_smollm2", "trainer.kidn=sft,dpo")
    assert done.returncode == 1
    assert "kidn" in done.stderr
    assert not list((tmp_path / "outputs").glob("dpo*"))
