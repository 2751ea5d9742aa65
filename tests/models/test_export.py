"""Exports load in plain Transformers and PEFT and are what was trained; a merge that is not is refused."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from posttrain.data.embedded import tiny
from posttrain.errors import PosttrainError
from posttrain.export import main
from tests.helpers import command
from tests.helpers.runs import ENVIRONMENT, SMALL, compose, rows, weights, write_pairs

TOKENS = torch.arange(3, 60)[None]
KINDS = {
    "lora": ("+recipe=dpo_smollm2",),
    "qlora": ("+recipe=dpo_smollm2", "peft=qlora", "trainer.args.bf16=true"),
    "full": ("+recipe=sft_smollm2", "peft=none"),
    "reward": ("+recipe=reward_smollm2", "trainer.args.num_train_epochs=4"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`trained(kind)`: a finished run of `KINDS`, trained once and only if a test asks for it."""
    from posttrain.jobs.train import train
    from posttrain.runs.directory import RunDirectory

    folder, made = tmp_path_factory.mktemp("runs"), {}

    def get(kind):
        if kind not in made:
            write_pairs(folder / "pairs.jsonl")
            own = ("trainer.args.learning_rate=2e-2", f"data.path={folder}/pairs.jsonl", f"output_dir={folder}")
            run, origin = compose(KINDS[kind][0], *SMALL, *KINDS[kind][1:], *own)
            train(run, origin)
            made[kind] = RunDirectory.of(run, origin)
        return made[kind]

    return get


@pytest.fixture
def run(trained, tmp_path):
    """`run(kind)`: a copy of that run to write into."""

    def copy(kind):
        target = tmp_path / kind
        shutil.copytree(trained(kind).path, target)
        return target

    return copy


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits.float()


def adapted(run):
    """The run's adapter on its base by plain PEFT, in full precision."""
    from peft import AutoPeftModelForCausalLM

    return AutoPeftModelForCausalLM.from_pretrained(str(run / "model"), dtype="float32")


def test_a_merged_run_is_a_plain_model_that_answers_as_the_adapter_did(run, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = run("lora")
    assert main([str(path), "--merge"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"KL\(adapter \|\| merged\): mean \S+, largest \S+ nats over \d+ positions of 8 prompts", said)
    folder = path / "merged"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert torch.allclose(logits(model), logits(adapted(path)), atol=1e-5)
    original = AutoModelForCausalLM.from_pretrained(tiny.tiny_model())
    assert not torch.allclose(logits(model), logits(original), atol=1e-2), "training has changed something"
    run_tokenizer = AutoTokenizer.from_pretrained(path / "model")
    chat = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == run_tokenizer.apply_chat_template(
        chat, tokenize=False
    )
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, 0]
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == model.config.pad_token_id
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert model.generate(**prompt, max_new_tokens=4).shape[1] > prompt["input_ids"].shape[1]
    assert {p.suffix for p in folder.iterdir()} <= {".json", ".safetensors", ".jinja", ".md"}
    card = (folder / "README.md").read_text()
    drift = json.loads((folder / "export.json").read_text())["drift"]
    assert f"mean {drift['mean']:.2g}, largest {drift['largest']:.2g}" in card
    assert "AutoModelForCausalLM.from_pretrained" in card


def test_the_eos_of_the_tokenizer_ends_generation_whatever_the_base_says(run):
    path = run("lora")
    config = json.loads((path / "model/tokenizer_config.json").read_text())
    config["eos_token"] = "<|im_start|>"
    (path / "model/tokenizer_config.json").write_text(json.dumps(config))
    assert main([str(path), "--merge"]) == 0
    assert main([str(path)]) == 0
    for folder in ("merged", "export"):
        assert json.loads((path / folder / "generation_config.json").read_text())["eos_token_id"] == [1, 2, 0]


def test_qlora_merges_into_the_weights_it_was_trained_on(run, capsys):
    from transformers import AutoModelForCausalLM

    path = run("qlora")
    assert main([str(path), "--merge", "--dtype", "float32"]) == 0
    drift = json.loads((path / "merged/export.json").read_text())["drift"]
    assert drift["mean"] < 1e-3
    assert drift["original"] > 2 * drift["mean"]
    assert "into the original, unquantized weights it would be" in capsys.readouterr().out
    merged = AutoModelForCausalLM.from_pretrained(path / "merged")
    assert not hasattr(merged.config, "quantization_config")
    assert {type(m).__name__ for m in merged.modules() if hasattr(m, "in_features")} == {"Linear"}
    # By hand, for one matrix: dequantized NF4 of the base, plus scale * B A.
    import bitsandbytes.functional as bnb

    name = "model.layers.0.mlp.up_proj"
    base = AutoModelForCausalLM.from_pretrained(tiny.tiny_model(), dtype="bfloat16").state_dict()[f"{name}.weight"]
    packed, state = bnb.quantize_4bit(base.contiguous(), quant_type="nf4", compress_statistics=True)
    saved = weights(path / "model")
    a, b = (saved[f"base_model.model.{name}.lora_{x}.weight"].float() for x in "AB")
    expected = bnb.dequantize_4bit(packed, state).float() + 2 * b @ a  # lora_alpha 32 over r 16
    assert torch.allclose(merged.state_dict()[f"{name}.weight"], expected, atol=1e-6)


def test_into_original_is_refused_when_it_is_another_model_and_can_be_insisted_on(run, capsys):
    path = run("qlora")
    command = [str(path), "--merge", "--into", "original", "--max-kl"]
    assert main([*command, "1e-6"]) == 1
    said = capsys.readouterr().err
    assert "not the adapter on its base" in said
    option = re.search(r"(--max-kl \S+) accepts it", said)[1].split()
    assert not (path / "merged").exists()
    assert main([*command[:-1], *option]) == 0


def test_a_merge_into_another_base_is_refused(run, monkeypatch, capsys):
    """The base changes between training and merge: as a hub id whose main branch moved on would."""
    from posttrain.models import merge

    path, load = run("lora"), merge.load_base

    def tampered(source, *args):
        model = load(source, *args)
        if source.adapter:
            with torch.no_grad():
                model.model.layers[0].self_attn.o_proj.weight.normal_(generator=torch.Generator().manual_seed(0))
        return model

    monkeypatch.setattr(merge, "load_base", tampered)
    assert main([str(path), "--merge"]) == 1
    said = capsys.readouterr().err
    assert "Allowed is a mean of 0.02, and nothing was kept" in said
    assert not (path / "merged").exists()
    assert not list(path.glob(".*incomplete"))
    assert main([str(path), "--merge", "--max-kl", "100"]) == 0
    assert (path / "merged/model.safetensors").is_file()
    assert main([str(path), "--merge"]) == 1
    assert f"{path}/merged was made with a larger --max-kl" in capsys.readouterr().err


def test_an_adapter_that_rounding_eats_is_refused_in_bfloat16_and_kept_in_float32(run):
    """Base weights of 300, where bfloat16 has steps of 2, and an adapter that adds 0.5 to each."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    from posttrain.models.merge import merge
    from posttrain.runs import lineage

    path = run("lora")
    base = AutoModelForCausalLM.from_pretrained(tiny.tiny_model())
    name = "model.layers.1.mlp.down_proj"
    with torch.no_grad():
        base.get_submodule(name).weight.sign_().mul_(300)
        base.model.norm.weight.mul_(50)  # a model sure of itself, so that a small change shows
    base.save_pretrained("big")
    saved = {key: torch.zeros_like(value) for key, value in weights(path / "model").items()}
    # Of rank 1, and lora_alpha 32 over r 16: 2 * 0.5 * 0.5 in each entry.
    saved[f"base_model.model.{name}.lora_A.weight"][0] = 0.5
    saved[f"base_model.model.{name}.lora_B.weight"][:, 0] = 0.5
    save_file(saved, path / "model/adapter_model.safetensors")
    source = replace(lineage.source(str(path)), base=str(Path("big").absolute()))
    with pytest.raises(PosttrainError, match=r"may be lost in rounding.*--dtype float32 rounds less"):
        merge(source, Path("half"), dtype="bfloat16", threshold=1e-6)
    assert not Path("half").exists()
    lost = merge(source, Path("half"), dtype="bfloat16")
    assert lost.lost, "in bfloat16, 300 + 0.5 is 300"
    kept = merge(source, Path("whole"), dtype="float32", threshold=1e-6)
    assert not kept.lost
    assert kept.mean < kept.effect / 100


def test_weights_that_float16_cannot_hold_are_refused(run, capsys):
    from safetensors.torch import save_file

    path = run("lora")
    saved = weights(path / "model")
    save_file({key: value * 1e4 for key, value in saved.items()}, path / "model/adapter_model.safetensors")
    assert main([str(path), "--merge", "--dtype", "float16"]) == 1
    assert "mean nan" in capsys.readouterr().err
    assert not (path / "merged").exists()


def test_a_reward_model_keeps_its_scores(run):
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoModelForSequenceClassification

    path = run("reward")
    assert main([str(path), "--merge"]) == 0
    merged = AutoModelForSequenceClassification.from_pretrained(path / "merged")
    adapter = AutoPeftModelForSequenceClassification.from_pretrained(str(path / "model"), num_labels=1)
    assert torch.allclose(logits(merged), logits(adapter), atol=1e-5)
    record = json.loads((path / "merged/export.json").read_text())["drift"]
    assert (record["unit"], record["prompts"]) == ("score", 8)
    assert record["largest"] < 1e-4
    card = (path / "merged/README.md").read_text()
    assert "num_labels=1" in card
    assert "add_special_tokens=False)" in card, "the template has them already"
    from posttrain.rewards.model import RewardModel

    row = {"prompts": [[{"role": "user", "content": "Hi"}]], "completions": [[{"role": "assistant", "content": "yes"}]]}
    before, after = (RewardModel(str(p), dtype="float32")(**row) for p in (path, path / "merged"))
    assert after == pytest.approx(before, abs=1e-4)


def test_a_reward_model_with_a_lost_head_is_refused(run, monkeypatch, capsys):
    from posttrain.models import merge

    path, save = run("reward"), merge.save

    def beheaded(model, *args):
        model.score.weight.data += 1
        save(model, *args)

    monkeypatch.setattr(merge, "save", beheaded)
    assert main([str(path), "--merge"]) == 1
    assert re.search(r"score difference .* Allowed is a mean of 0.1,", capsys.readouterr().err)


def test_an_adapter_export_names_a_base_that_means_something_elsewhere(run, capsys):
    from posttrain.models import weights
    from posttrain.runs import lineage

    path = run("lora")
    assert main([str(path)]) == 0
    assert "`embedded:tiny` exists only where it was trained" in " ".join(capsys.readouterr().out.split())
    folder = path / "export"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "embedded:tiny"
    assert {"adapter_model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json"} <= {
        p.name for p in folder.iterdir()
    }
    exported = weights.load(lineage.source(str(folder)), dtype="float32")
    assert torch.equal(logits(exported), logits(adapted(path)))
    record = json.loads((path / "run.json").read_text())
    record["base"] |= {"path": "ORG/NAME", "commit": "c" * 40, "revision": "main"}
    (path / "run.json").write_text(json.dumps(record))
    monkey = str(tiny.tiny_model())
    from posttrain import export

    export.plain(replace(lineage.source(str(path)), base=monkey, revision="c" * 40), Path("hub"))
    config = json.loads(Path("hub/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("ORG/NAME", "c" * 40)
    assert "base_model: ORG/NAME" in Path("hub/README.md").read_text()


def test_the_card_of_a_4_bit_adapter_loads_it_in_4_bit(run):
    path = run("qlora")
    assert main([str(path)]) == 0
    card = (path / "export/README.md").read_text()
    assert "BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4'" in card


def test_a_full_run_is_copied_and_has_nothing_to_merge(run, capsys):
    from transformers import AutoModelForCausalLM

    path = run("full")
    capsys.readouterr()
    assert main([str(path), "--merge", "--max-kl", "-1"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"--merge: {path} trained all weights, so there is nothing to merge; leave --merge out",
        "--max-kl=-1.0: expected a number above 0",
    ]
    assert main([str(path)]) == 0
    ours, theirs = (AutoModelForCausalLM.from_pretrained(path / f) for f in ("export", "model"))
    assert torch.equal(logits(ours), logits(theirs))
    assert ours.generation_config.eos_token_id == [2, 0]


def test_nothing_is_overwritten_and_nothing_done_twice(run, capsys):
    path = run("lora")
    assert main([str(path), "--merge"]) == 0
    before = {p: p.stat().st_mtime_ns for p in (path / "merged").iterdir()}
    assert main([str(path), "--merge"]) == 0
    assert "was there already" in capsys.readouterr().out
    assert main([str(path), "--merge", "--dtype", "bfloat16"]) == 1
    assert "holds another export (dtype float32, now bfloat16), and nothing is overwritten" in capsys.readouterr().err
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    assert main([str(path), "--out", "mine"]) == 1
    assert "--out=mine: is not empty" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in (path / "merged").iterdir()} == before
    assert [p.name for p in Path("mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("file", "keep", "said"),
    [
        ("model.safetensors", 200, "model/model.safetensors is damaged: "),
        ("model.safetensors", -1, "model/model.safetensors is damaged: "),
        ("tokenizer.json", 0, "its tokenizer "),
    ],
)
def test_a_damaged_run_is_refused_by_export_and_chat(run, file, keep, said, monkeypatch, capsys):
    from posttrain import chat

    path = run("full")
    whole = (path / "model" / file).read_bytes()
    (path / "model" / file).write_bytes(whole[:keep])
    monkeypatch.setattr("sys.stdin", io.StringIO("2?"))
    for start, words in ((main, ["--out", "out"]), (chat.main, [])):
        capsys.readouterr()
        assert start([str(path), *words]) == 1
        said_of_it = capsys.readouterr().err
        assert f"RUN={path}: {said}" in said_of_it
        assert "Traceback" not in said_of_it
    assert not Path("out").exists()


def test_an_export_does_not_change_what_is_trained_from_the_run(run):
    from posttrain.runs.identity import digest

    path = run("lora")
    following, _ = compose("+recipe=dpo_smollm2", f"model.path={path}")
    before = digest(following)
    assert main([str(path)]) == 0
    assert digest(following) == before


def test_bad_input_is_said_in_a_line(run, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "none")
    assert main(["nowhere"]) == 1
    assert capsys.readouterr().err == f"RUN=nowhere: no such run directory or folder; {Path.cwd()} has no nowhere\n"
    path = run("lora")
    assert main([str(path), "--dtype", "float32", "--into", "original", "--private"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "--dtype: only for --merge",
        "--into: only for --merge",
        "--private: only for --push-to-hub",
    ]
    assert main([str(path), "--merge", "--into", "original", "--push-to-hub", "a/b/c"]) == 1
    said = capsys.readouterr().err
    assert "--into: the base was not quantized" in said
    assert "--push-to-hub=a/b/c: " in said
    assert "hf auth login" in said
    for folder in ("", ".", ".."):
        assert main([str(path), "--out", folder]) == 1
        assert "expected a new folder, by its name\n" in capsys.readouterr().err
    record = json.loads((path / "run.json").read_text()) | {"status": "running", "command": "posttrain x"}
    (path / "run.json").write_text(json.dumps(record))
    assert main([str(path)]) == 1
    assert "this run is not finished; continue it with: posttrain x" in capsys.readouterr().err
    assert main([str(path / "model"), "--merge"]) == 1
    assert "--out: needed" in capsys.readouterr().err


def test_an_adapter_folder_without_a_run_merges_on_general_prompts(run):
    path = run("lora")
    assert main([str(path / "model"), "--merge", "--out", "plain"]) == 0
    assert json.loads(Path("plain/export.json").read_text())["drift"]["prompts"] == 8
    assert "The merge" in Path("plain/README.md").read_text()


def test_a_run_keeps_held_out_prompts(run):
    kept = rows(run("lora") / "prompts.jsonl")
    assert len(kept) == 8
    assert kept[0]["prompt"][0] == {"role": "system", "content": "s"}
    assert kept[0]["prompt"][-1]["role"] == "user"


def test_a_kill_in_the_middle_leaves_no_half_folder(run):
    """Killed while the weights are being written, then started again."""
    path = run("lora")
    code = (
        "import os, signal, sys; from posttrain import export; from posttrain.models import merge; save = merge.save\n"
        "def killed(*args): save(*args); os.kill(os.getpid(), signal.SIGKILL)\n"
        "merge.save = killed; export.main(sys.argv[1:])"
    )
    done = command.run([sys.executable, "-c", code, str(path), "--merge"], env={**os.environ, **ENVIRONMENT})
    assert done.returncode == -signal.SIGKILL
    assert not (path / "merged").exists()
    assert (path / ".merged.incomplete").exists()
    assert main([str(path), "--merge"]) == 0
    assert not (path / ".merged.incomplete").exists()


def test_help_is_fast_and_imports_no_torch():
    code = (
        "import sys; from posttrain import chat, export\n"
        "try: export.main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--push-to-hub" in done.stdout


def test_a_damaged_record_is_no_export(run, tmp_path, capsys):
    path = run("full")
    for text in ('{"made"', "[]", '{"made": 1}'):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out/export.json").write_text(text)
        assert main([str(path), f"--out={tmp_path}/out"]) == 1
        assert f"--out={tmp_path}/out: is not empty, and nothing is overwritten" in capsys.readouterr().err


def test_out_may_be_a_link_or_in_the_home_folder(run, tmp_path, monkeypatch):
    path = run("lora")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert main([str(path), "--merge", "--out=~/link"]) == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk/model.safetensors").is_file()
    assert not list(tmp_path.glob(".*.incomplete"))
