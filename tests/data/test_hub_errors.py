"""The hub path: recipes under their real names, from a local server that speaks the hub's protocol."""

import json
import os
import shutil

import pytest

from posttrain.data.embedded import cache, tiny
from tests.helpers.hub import Hub
from tests.helpers.runs import ENVIRONMENT

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


@pytest.fixture
def hub(tmp_path):
    """A hub with a tiny Llama and a small UltraFeedback under the names that `dpo_llama` asks for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shutil.copytree(tiny.tiny_model(), tmp_path / "hub/models" / LLAMA)
    data = tmp_path / "hub/datasets/trl-lib/ultrafeedback_binarized/data"
    data.mkdir(parents=True)

    def row(i):
        turns = [{"role": "user", "content": f"{i}?"}]
        return {
            "prompt": f"{i}?",
            "chosen": [*turns, {"role": "assistant", "content": "yes"}],
            "rejected": [*turns, {"role": "assistant", "content": "no"}],
        }

    for split, first in (("train", 0), ("test", 16)):
        table = pa.Table.from_pylist([row(i) for i in range(first, first + 16)])
        pq.write_table(table, data / f"{split}-00000-of-00001.parquet")
    configs = "".join(f"  - split: {s}\n    path: data/{s}-*\n" for s in ("train", "test"))
    (data.parent / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{configs}---\n")
    with Hub(tmp_path / "hub") as server:
        yield server


def environment(hub):
    return {**hub.env(), "POSTTRAIN_CACHE": str(cache.cache_dir())}


QUICK = ("trainer.args.max_steps=2", "trainer.args.logging_steps=1", "tracking=none", "probe=none")


def test_dpo_llama_from_the_hub(cli, hub, tmp_path):
    done = cli("+recipe=dpo_llama", *QUICK, env=environment(hub))
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs").glob("dpo_llama-*")
    record = json.loads((run / "run.json").read_text())
    assert record["model"]["path"] == LLAMA
    assert len(record["model"]["commit"]) == 40
    assert record["quantization"]["bnb_4bit_quant_type"] == "nf4"
    card = (run / "model/README.md").read_text()
    assert f"base_model: {LLAMA}" in card
    assert hub.unimplemented == []


def test_a_gated_model_says_what_to_do(cli, hub, tmp_path):
    hub.gated.add(LLAMA)
    done = cli("+recipe=dpo_llama", *QUICK, env=environment(hub))
    assert done.returncode == 1
    assert f"model.path={LLAMA}: gated on the hub; accept its terms" in done.stderr
    assert "hf auth login" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_missing_model_and_a_missing_data_set(cli, hub, tmp_path):
    env = environment(hub)
    done = cli("+recipe=dpo_llama", *QUICK, "model.path=nobody/nothing", env=env)
    assert done.returncode == 1
    assert "model.path=nobody/nothing: no such model on the hub" in done.stderr
    done = cli("+recipe=dpo_llama", *QUICK, "data.path=nobody/nothing", env=env)
    assert done.returncode == 1
    assert "data.path=nobody/nothing: no such data set on the hub" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow  # the hub's client tries for a minute
def test_no_network_and_nothing_cached(cli, tmp_path):
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    done = cli("+recipe=dpo_llama", *QUICK, env={**os.environ, **ENVIRONMENT, **env})
    assert done.returncode == 1
    assert "the hub cannot be reached" in done.stderr
