"""Sweeps whose jobs run elsewhere: joblib's launcher, Slurm's and Ray's in their local modes."""

import json
from pathlib import Path

import pytest

from tests.helpers.runs import rows, write_pairs

# The first stage is the same in both jobs.
PIPELINE = (
    *("job=pipeline", "common.model=tiny", "common.tracking=none", "common.data.path=pairs.jsonl"),
    *("common.data.eval_split=null", "common.data.eval_size=8", "common.data.max_train_rows=null"),
    *("common.probe.prompts=0", "common.probe.greedy_prompts=0", "common.trainer.args.bf16=false"),
    *("+stages.sft.recipe=sft_smollm2", "+stages.sft.trainer.args.max_steps=1"),
    "+stages.dpo={recipe: dpo_smollm2, from: {model.init_from: sft}, trainer.args.max_steps: 1}",
)
LAUNCHERS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", ("hydra.launcher.n_jobs=2",)),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", ("hydra.launcher.timeout_min=20",)),
    "ray": ("hydra_plugins.hydra_ray_launcher", ("+hydra.launcher.ray.init.num_cpus=2",)),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_runs_the_jobs_and_shared_stages_are_trained_once(cli, tmp_path, name):
    plugin, more = LAUNCHERS[name]
    pytest.importorskip(plugin)
    write_pairs(tmp_path / "pairs.jsonl")
    done = cli(
        *("-m", *PIPELINE, f"hydra/launcher={name}", *more, "+stages.dpo.trainer.args.beta=0.1,0.5"), timeout=840
    )
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    jobs = rows(sweep / "jobs.jsonl")
    assert [job["status"] for job in jobs] == ["finished", "finished"]
    assert len({job["run"] for job in jobs}) == 2
    trained = [json.loads(file.read_text()) for file in Path(tmp_path / "outputs").glob("*/run.json")]
    assert sorted(record["trainer"] for record in trained) == ["dpo", "dpo", "sft"]
