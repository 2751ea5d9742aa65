"""Compare one PPO update with TRL 1.12.0's, recorded as numbers.

    python tests/helpers/parity.py MODEL_DIR BUNDLE_DIR

MODEL_DIR is a causal language model with its tokenizer. BUNDLE_DIR holds `inputs.safetensors` (queries, responses,
scores, initial LoRA and value-head weights), `expected.json` (hyperparameters, loss per PPO epoch, logged metrics) and
`expected.safetensors` (advantages, weights after the update). `PPOTrainer` itself does the update: only its sampling is
replaced, by the recorded responses. Prints the largest differences; the exit status is 1 where a loss differs by more
than 1e-6 or a weight by more than 1e-4.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from posttrain.ppo import PPOConfig, PPOTrainer, maths
from posttrain.ppo.roles import POLICY, VALUE

TOLERANCE = {"losses": 1e-6, "weights": 1e-4}
HEAD = "value_head.weight"

# TRL 1.12's metric: ours
METRICS = {
    "objective/kl": "objective/kl",
    "objective/entropy": "objective/entropy",
    "objective/non_score_reward": "objective/non_score_reward",
    "objective/rlhf_reward": "objective/rlhf_reward",
    "objective/scores": "objective/scores",
    "policy/approxkl_avg": "approx_kl",
    "policy/clipfrac_avg": "clip_ratio/region_mean",
    "policy/entropy_avg": "entropy",
    "loss/policy_avg": "loss/policy",
    "loss/value_avg": "loss/value",
    "val/clipfrac_avg": "value/clip_ratio",
    "val/ratio": "ratio",
}


class Replay(PPOTrainer):
    """PPOTrainer with recorded responses instead of sampled ones, keeping the loss of every step."""

    recorded: dict[str, torch.Tensor]
    losses: list[float]

    def _generate(self, prompts: list[Any]) -> tuple[list[list[int]], list[list[int]], list[str]]:
        queries, responses = self.recorded["queries"], self.recorded["responses"]
        pad = self._tokenizer.pad_token_id
        prompt_ids = [row[row != pad].tolist() for row in queries]
        completion_ids = [row[row != pad].tolist() for row in responses]
        return prompt_ids, completion_ids, self._tokenizer.batch_decode(completion_ids)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.losses.append(loss.item())
        return loss


def build(
    model_dir: Path, inputs: dict[str, torch.Tensor], options: dict[str, Any], output_dir: str, **extra: Any
) -> Replay:
    """The trainer that does the recorded update; `extra` are further options of `PPOConfig`."""
    scores, rows = inputs["scores"], len(inputs["queries"])
    args = PPOConfig(
        output_dir,
        max_steps=options["num_ppo_epochs"],
        num_ppo_epochs=options["num_ppo_epochs"],
        max_completion_length=inputs["responses"].size(1),
        learning_rate=options["learning_rate"],
        lr_scheduler_type="constant",
        max_grad_norm=0,
        temperature=options["temperature"],
        gamma=options["gamma"],
        lam=options["lam"],
        vf_coef=options["vf_coef"],
        epsilon=options["cliprange"],
        cliprange_value=options["cliprange_value"],
        beta=options["kl_coef"],
        kl_estimator=options.get("kl_estimator", "k1"),
        whiten_rewards=options["whiten_rewards"],
        shuffle_dataset=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        **{"per_device_train_batch_size": rows, "gradient_checkpointing": False, **extra},
    )
    lora = {"lora_dropout": 0.0, **options["lora"]}
    trainer = Replay(
        model=AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32),
        reward_funcs=lambda **_: scores.tolist(),
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["a"] * rows}),
        processing_class=AutoTokenizer.from_pretrained(model_dir, padding_side="left"),
        peft_config=LoraConfig(**lora),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.recorded, trainer.losses = inputs, []
    initial = {k.removeprefix("init."): v for k, v in inputs.items() if k.startswith("init.")}
    trainer.roles.value_head.weight.data.copy_(initial.pop(HEAD))
    set_peft_model_state_dict(trainer.model, initial, adapter_name=POLICY)
    # The recorded value function is a head on the frozen base. An adapter of zeros in both factors is the base, and as
    # each factor's gradient is a multiple of the other, it stays so.
    for name, parameter in trainer.model.named_parameters():
        if f".{VALUE}." in name:
            parameter.data.zero_()
    return trainer


def run(model_dir: Path, bundle: Path, **extra: Any) -> dict[str, float]:
    """Do the update; returns the largest difference of each kind, and metric by metric."""
    torch.set_num_threads(1)
    inputs = load_file(bundle / "inputs.safetensors")
    expected = load_file(bundle / "expected.safetensors")
    facts = json.loads((bundle / "expected.json").read_text())
    seen: dict[str, torch.Tensor] = {}
    estimate = maths.gae

    def recording_gae(rewards: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        seen["token_rewards"] = rewards
        seen["advantages_raw"], returns = estimate(rewards, *args)
        return seen["advantages_raw"], returns

    with tempfile.TemporaryDirectory() as output_dir, mock.patch.object(maths, "gae", recording_gae):
        trainer = build(model_dir, inputs, facts["hyperparameters"], output_dir, **extra)
        trainer.train()
    seen["advantages"] = trainer._rollout["advantages"]
    # One loss per epoch: gradient accumulation splits it into parts that add up.
    losses = torch.tensor(trainer.losses, dtype=torch.float64).view(len(facts["loss_per_epoch"]), -1).sum(1)
    after = get_peft_model_state_dict(trainer.model, adapter_name=POLICY, save_embedding_layers=False)
    after[HEAD] = trainer.roles.value_head.weight
    weights = {k.removeprefix("after."): v for k, v in expected.items() if k.startswith("after.")}
    if weights.keys() != after.keys():
        raise ValueError(f"{bundle} trains other weights: {sorted(weights.keys() ^ after.keys())}")

    differences = {
        "losses": (losses - torch.tensor(facts["loss_per_epoch"], dtype=torch.float64)).abs().max().item(),
        "weights": max((weights[k] - after[k].detach()).abs().max().item() for k in weights),
    }
    for name in ("advantages_raw", "advantages", "token_rewards"):
        if name in expected:
            differences[name] = (expected[name] - seen[name]).abs().max().item()
    for theirs, ours in METRICS.items():
        values = [entry[ours] for entry in trainer.state.log_history if ours in entry]
        if theirs in facts["logged"]:
            differences[theirs] = abs(facts["logged"][theirs] - sum(values) / len(values))
    return differences


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("bundle_dir", type=Path)
    arguments = parser.parse_args()
    differences = run(arguments.model_dir, arguments.bundle_dir)
    failed = False
    for name, difference in differences.items():
        limit = TOLERANCE.get(name)
        bad = limit is not None and not difference <= limit
        failed |= bad
        note = "" if limit is None else f"  (tolerance {limit:.0e}{', EXCEEDED' if bad else ''})"
        print(f"{name:30} {difference:.2e}{note}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
