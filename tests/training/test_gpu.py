"""What only a CUDA GPU shows; run with `make test-gpu`."""

import json

import pytest
import torch

from tests.helpers.runs import weights

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _cuda():
    assert torch.cuda.is_available(), "these tests need a CUDA GPU"


@pytest.mark.parametrize("peft", ["lora", "qlora", "none"])
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_run_trains_on_the_gpu_in_its_precision(train, kind, peft):
    run = train(f"+recipe={kind}_smollm2", f"peft={peft}", "trainer.args.bf16=null", "trainer.args.learning_rate=1e-2")
    record = json.loads((run.path / "run.json").read_text())
    assert torch.cuda.get_device_name() in record["precision"]
    assert ("mixed precision bf16" in record["precision"]) == torch.cuda.is_bf16_supported(including_emulation=False)
    if peft != "none":
        assert all(v.abs().sum() > 0 for n, v in weights(run.model).items() if "lora_B" in n)


def test_sampling_trainers_run_on_the_gpu(train):
    run = train(
        *(
            "+recipe=grpo_smollm2",
            "trainer.args.bf16=null",
            "trainer.args.max_steps=2",
            "trainer.args.eval_strategy=no",
        ),
        *("trainer.args.max_completion_length=8", "trainer.args.num_generations=4", "probe.prompts=4"),
    )
    assert run.finished()
