"""Files that are missing, cut or changed are named; processes that meet leave what is finished alone."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from posttrain.errors import PosttrainError
from posttrain.runs import checkpoint as checkpoints
from posttrain.runs import damage as damages
from posttrain.runs.directory import RunDirectory
from tests.faults.test_stops import command
from tests.helpers.faults import KILLED, differences, directory, dying, run, start, wait
from tests.helpers.runs import write_pairs

ARGS = command("sft", "trainer.args.eval_strategy=no", "probe.prompts=0", "trainer.args.eval_on_start=false")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run killed before its end, with checkpoints of steps 4 and 6; and the same run whole."""
    folder = tmp_path_factory.mktemp("stopped")
    write_pairs(folder / "pairs.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)

        def doomed():
            dying("transformers:Trainer.training_step", 7)()
            run(*ARGS)

        assert wait(start(doomed, folder / "log.txt")) == KILLED
        shutil.copytree(folder / "outputs", folder / "kept")
        run(*ARGS)
    return folder


@pytest.fixture
def again(stopped, tmp_path, pairs):
    """A copy of the killed run, to damage; its last checkpoint."""
    shutil.copytree(stopped / "kept", tmp_path / "outputs")
    here = directory(*ARGS)
    assert [p.name for p in here._checkpoints()] == ["checkpoint-6", "checkpoint-4"]
    return here.checkpoints / "checkpoint-6"


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


DAMAGE = {
    "optimizer.pt": ("is missing", lambda path: path.unlink()),
    "rng_state.pth": ("bytes instead of", cut),
    "scheduler.pt": ("is damaged", flip),
    "adapter_model.safetensors": ("is damaged", flip),
    "adapter_config.json": ("is missing", lambda path: path.unlink()),
    "trainer_state.json": ("bytes instead of", lambda path: path.write_text("{}")),
    "progress.json": ("is missing", lambda path: path.unlink()),
    "files.json": ("is damaged", cut),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_does_not_count(name, again):
    said, damage = DAMAGE[name]
    damage(again / name)
    assert said in damages.damage(again)
    assert directory(*ARGS).last_checkpoint().name == "checkpoint-4"


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "adapter_model.safetensors", "scheduler.pt"])
@pytest.mark.parametrize("damage", [cut, lambda path: path.unlink()], ids=["cut", "missing"])
def test_without_its_list_of_files_a_checkpoint_is_judged_by_what_they_hold(name, damage, again):
    (again / "files.json").unlink()  # as an earlier version wrote it
    assert damages.damage(again) is None
    damage(again / name)
    assert name.split(".")[0] in damages.damage(again) or "safetensors" in damages.damage(again)


def test_the_one_before_is_taken_and_said_and_the_end_is_the_same(again, stopped, capsys):
    (again / "optimizer.pt").unlink()
    done = run(*ARGS)
    out = capsys.readouterr().out
    assert "checkpoint-6 is not whole and is removed: optimizer.pt is missing; resuming from checkpoint-4" in out
    assert differences(RunDirectory(next((stopped / "outputs").iterdir())), done) == []


class Payload:
    def __reduce__(self):
        return (open, ("ran", "w"))


def pickled(path):
    path.write_bytes(pickle.dumps(Payload()))


def in_torch(path):
    torch.save(Payload(), path)


CHANGED = {
    "optimizer.pt pickled": ("optimizer.pt", pickled),
    "scheduler.pt pickled by torch": ("scheduler.pt", in_torch),
    "rng_state.pth pickled by torch": ("rng_state.pth", in_torch),
    "optimizer.pt of nothing": ("optimizer.pt", lambda path: torch.save({}, path)),
    "scheduler.pt of a list": ("scheduler.pt", lambda path: torch.save([1], path)),
    "rng_state.pth of nothing": ("rng_state.pth", lambda path: torch.save({}, path)),
    "progress.json of nothing": ("progress.json", lambda path: path.write_text("{}")),
    "trainer_state.json with more": ("trainer_state.json", lambda path: path.write_text(
        json.dumps({**json.loads(path.read_text()), "invented": 1}))),
    "trainer_state.json of a list": ("trainer_state.json", lambda path: path.write_text("[1]")),
    "another run's weights": ("adapter_model.safetensors", lambda path: save_file({"a": torch.ones(1)}, path)),
}  # fmt: skip


TAKES_THE_ONE_BEFORE = ("trainer_state.json with more", "trainer_state.json of a list")


@pytest.mark.parametrize("what", CHANGED)
def test_a_file_that_was_changed_with_the_list_of_files(what, again, capsys):
    """Nothing in it runs; one message says which checkpoint, or the one before is taken, and said."""
    name, change = CHANGED[what]
    change(again / name)
    checkpoints.seal(again)
    if what in TAKES_THE_ONE_BEFORE:
        run(*ARGS)
        assert "checkpoint-6 is not whole and is removed: " in capsys.readouterr().out
    else:
        why = r"checkpoint-6: cannot be continued from: [^\n]+ resumes from the checkpoint before it, or starts again$"
        with pytest.raises(PosttrainError, match=why):
            run(*ARGS)
    assert not Path("ran").exists()


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"status": "runn', b"\xff\xfe"])
def test_a_damaged_run_json_is_named(content, again):
    here = directory(*ARGS)
    (here.path / "run.json").write_bytes(content)
    with pytest.raises(PosttrainError, match=r"run\.json: is damaged .* remove it"):
        run(*ARGS)


def test_damaged_metrics_are_named_with_their_line(again):
    here = directory(*ARGS)
    lines = here.metrics.read_bytes().splitlines(keepends=True)
    here.metrics.write_bytes(lines[0] + b'{"step": 3, "lo\n' + b"".join(lines[2:]))
    with pytest.raises(PosttrainError, match=r"metrics\.jsonl:2: is damaged; restore the file, or remove"):
        here.rewind(again)


def test_half_a_character_at_the_end_of_the_metrics_is_cut_off(again):
    here = directory(*ARGS)
    with here.metrics.open("ab") as file:
        file.write(b'{"step": 7, "x": "\xe2\x82')
    here.rewind(again)
    assert [json.loads(line)["step"] for line in here.metrics.read_text().splitlines()] == [3, 6]


def test_who_comes_second_finds_a_finished_run_and_leaves_it_alone(again, stopped, monkeypatch, capsys):
    """Both looked before either had begun; the other one has finished when this one gets the directory."""
    here = directory(*ARGS)
    finished = next((stopped / "outputs").iterdir())
    claim = RunDirectory.claim

    def late(self):
        claim(self)
        if not self.finished():
            shutil.rmtree(self.path)
            shutil.copytree(finished, self.path)

    monkeypatch.setattr(RunDirectory, "claim", late)
    run(*ARGS)
    assert (here.path / "run.json").read_bytes() == (finished / "run.json").read_bytes()
    assert (here.path / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    assert "training" not in capsys.readouterr().out
