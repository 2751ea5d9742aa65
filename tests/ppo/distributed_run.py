"""Run by two processes from test_ppo_distributed.py: train, resume, and fail unless all weights are identical.

torchrun --nproc_per_node 2 distributed_run.py MODEL_DIR OUTPUT_DIR
"""

import sys

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from tiny import PROMPTS, even_codes, logged, lora, weights
from transformers import AutoTokenizer

from posttrain.ppo import PPOConfig, PPOTrainer


def make(model_dir: str, output_dir: str, **options) -> PPOTrainer:
    return PPOTrainer(
        model=model_dir,
        reward_funcs=even_codes,
        args=PPOConfig(
            output_dir,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            num_mini_batches=2,
            num_ppo_epochs=2,
            num_train_epochs=2,
            max_completion_length=6,
            learning_rate=0.02,
            logging_steps=1,
            save_steps=4,
            report_to=[],
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            **options,
        ),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=AutoTokenizer.from_pretrained(model_dir, padding_side="left"),
        peft_config=lora(),
    )


def same_everywhere(trainer: PPOTrainer) -> None:
    first, *others = gather_object([{name: value.tolist() for name, value in weights(trainer).items()}])
    assert others
    assert all(other == first for other in others), "the processes hold different weights"


def main(model_dir: str, output_dir: str) -> None:
    torch.set_num_threads(1)
    for mode, checkpointing in (("adapter", True), ("head", False)):
        folder = f"{output_dir}/{mode}"
        whole = make(model_dir, folder, value_mode=mode, gradient_checkpointing=checkpointing)
        assert whole.accelerator.num_processes == 2
        start = weights(whole)
        whole.train()
        same_everywhere(whole)
        assert all(torch.equal(start[n], w) != ("lora_" in n or "value_head" in n) for n, w in weights(whole).items())
        assert logged(whole, "ratio")[0] == 1
        assert logged(whole, "objective/kl")[0] == 0
        prompts = gather_object([list(whole._logs["prompt"])])
        assert prompts[0] == prompts[1]
        assert len(prompts[0]) == whole.args.generation_batch_size == 16
        if mode == "head":
            continue
        # In the middle of the second epoch: 2 rollouts of 4 steps per epoch.
        resumed = make(model_dir, f"{folder}-resumed", value_mode=mode, gradient_checkpointing=checkpointing)
        resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-12")
        same_everywhere(resumed)
        resumed_weights = weights(resumed)
        assert all(torch.equal(value, resumed_weights[name]) for name, value in weights(whole).items())
    print("identical")


if __name__ == "__main__":
    main(*sys.argv[1:])
