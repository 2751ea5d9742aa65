"""Memory that is not there: one message with what was asked for, what there is, the batch, and what to change."""

import pytest
import torch

from posttrain.errors import PosttrainError
from posttrain.training import out_of_memory
from tests.faults.test_stops import command
from tests.helpers.faults import run

GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 8 GiB")


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (MemoryError(), None),
        (OSError(12, "Cannot allocate memory"), None),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), None),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4000000000 bytes."), "4.0 GB"),
        (GPU, "2.7 GB"),
    ],
)
def test_every_way_to_say_it_is_known(error, asked):
    assert out_of_memory.is_out_of_memory(error)
    said = out_of_memory.out_of_memory_message(error, "take less", "training")
    assert said.startswith("out of memory in training: ")
    assert said.endswith("are free on this machine; take less")
    assert (f"{asked} were asked for" in said) == (asked is not None)


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("out of memory"), OSError(2, "gone")])
def test_other_errors_are_left_alone(error):
    assert not out_of_memory.is_out_of_memory(error)


def test_memory_that_the_machine_does_not_have_is_asked_for_in_training(tmp_path, pairs, monkeypatch):
    """The error is torch's own, for 2^50 numbers, in the third step and in an evaluation."""
    from trl import SFTTrainer

    loss = SFTTrainer.compute_loss

    def greedy(self, model, *args, **kwargs):
        if self.state.global_step == 2 and model.training:
            torch.empty(1 << 50)
        return loss(self, model, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "compute_loss", greedy)
    with pytest.raises(PosttrainError) as error:
        run(*command("sft"))
    said = str(error.value)
    assert said.startswith("out of memory in training, after step 2, a batch of 8 rows of ")
    assert "4503.6 TB" not in said
    assert "4503599.6 GB were asked for" in said
    assert "halve trainer.args.per_device_train_batch_size" in said
    assert "checkpoint-2" in said


@pytest.mark.parametrize("where", ["load", "save"])
def test_a_merge_that_gets_no_memory(where, tmp_path, monkeypatch, capsys):
    """While the adapter on its base is loaded, and while the merged model is written."""
    from posttrain import export
    from posttrain.models import merge
    from posttrain.runs import lineage

    run = tmp_path / "run"
    run.mkdir()
    (run / "adapter_config.json").write_text("{}")
    source = lineage.Source("run", str(run), str(run), adapter=str(run))
    monkeypatch.setattr(lineage, "source", lambda path: source)
    monkeypatch.setattr(merge, "held_out", lambda source: [])
    monkeypatch.setattr(merge, "identity", lambda source: {})
    greedy = lambda *args: torch.empty(1 << 50)  # noqa: E731
    if where == "load":
        monkeypatch.setattr(merge, "_merge", greedy)
    else:
        monkeypatch.setattr(merge, "_merge", lambda *args: (args[1].joinpath("half").touch(), greedy()))
    assert export.main([str(run), "--merge", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("out of memory in the merge: 4503599.6 GB were asked for, ")
    assert "--dtype bfloat16" in said
    assert len(said.strip().splitlines()) <= 3
    assert not (tmp_path / "out").exists()
