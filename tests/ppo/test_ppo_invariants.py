"""What must hold in every run, whatever the options."""

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM, TrainerCallback

from posttrain.ppo import PPOTrainer, forward, maths
from posttrain.ppo.rollout import take

from .tiny import PROMPTS, even_codes, logged, lora, weights

FULL = {"peft_config": None}
SETUPS = {
    "value adapter": ({}, {}),
    "shared head": ({}, {"value_mode": "head"}),
    "full fine-tuning": (FULL, {"value_mode": "head"}),
    "gradient checkpointing": ({}, {"gradient_checkpointing": True}),
    "bf16 autocast": ({}, {"bf16": True}),
    "bf16 weights": ({}, {"model_init_kwargs": {"dtype": "bfloat16"}}),
    "two minibatches, accumulated": (
        {},
        {"num_mini_batches": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    ),
}


class Ratios(PPOTrainer):
    """Keeps the probability ratios of every microbatch."""

    def _compute_loss(self, model, inputs):
        original = maths.policy_loss

        def recording(*args):
            result = original(*args)
            self.__dict__.setdefault("ratios", []).append(result[1].detach())
            return result

        maths.policy_loss = recording
        try:
            return super()._compute_loss(model, inputs)
        finally:
            maths.policy_loss = original


@pytest.mark.parametrize("setup", SETUPS)
def test_policy_equals_itself_and_the_reference_before_the_first_step(make_trainer, setup):
    arguments, options = SETUPS[setup]
    trainer = make_trainer(arguments, Ratios, **{**options, "max_steps": 2 * 2 * options.get("num_mini_batches", 1)})
    trainer.train()
    steps = trainer.args.gradient_accumulation_steps
    for ratio in trainer.ratios[:steps]:
        assert (ratio == 1).all()
    assert any((ratio != 1).any() for ratio in trainer.ratios[steps:])
    assert logged(trainer, "approx_kl")[0] == 0
    assert logged(trainer, "objective/kl")[0] == 0
    assert logged(trainer, "kl")[0] == 0
    assert logged(trainer, "objective/kl")[1] != 0


def test_reference_is_the_adapter_that_the_policy_starts_from(make_trainer, load_policy):
    torch.manual_seed(3)
    policy = get_peft_model(load_policy(), lora(init_lora_weights=False))
    trainer = make_trainer({"model": policy, "peft_config": None})
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    assert logged(trainer, "objective/kl")[0] == 0
    assert logged(trainer, "objective/kl")[1] != 0
    frozen = [name for name in before if ".ref." in name]
    assert frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen)


@pytest.mark.parametrize("setup", SETUPS)
def test_exactly_the_trained_parameters_move(make_trainer, setup):
    arguments, options = SETUPS[setup]
    trainer = make_trainer(arguments, **{**options, "max_steps": 8, "learning_rate": 0.05})
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    assert trainer.roles.value_head.weight.dtype == torch.float32
    in_optimizer = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    for name, parameter in trainer.model.named_parameters():
        trained = arguments == FULL or "lora_" in name or "value_head" in name
        assert parameter.requires_grad == trained, name
        assert (id(parameter) in in_optimizer) == trained, name
        assert torch.equal(before[name], after[name]) != trained, name


def test_callbacks_that_switch_adapters_freeze_nothing(make_trainer, reward_dir):
    """PEFT's `disable_adapter` and `set_adapter` freeze all adapters but the active one."""

    class Probe(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            with torch.no_grad(), model.disable_adapter():
                model(input_ids=torch.tensor([[5, 6]]))

    arguments = {"callbacks": [Probe()], "reward_adapter": reward_dir, "reward_funcs": None}
    trainer = make_trainer(arguments, max_steps=6, learning_rate=0.05)
    before = weights(trainer)
    trainer.train()
    for name, value in weights(trainer).items():
        trained = ("lora_" in name or "value_head" in name) and ".reward." not in name
        assert torch.equal(before[name], value) != trained, name


def test_switching_adapters_before_training_freezes_nothing(make_trainer):
    trainer = make_trainer(max_steps=6, learning_rate=0.05)
    with trainer.model.disable_adapter():
        before = weights(trainer)
    trainer.train()
    for name, value in weights(trainer).items():
        assert torch.equal(before[name], value) != ("lora_" in name or "value_head" in name), name


def test_base_and_reward_adapter_stay_bit_equal(make_trainer, reward_dir):
    trainer = make_trainer({"reward_adapter": reward_dir, "reward_funcs": None})
    before, head = weights(trainer), trainer.roles.reward_head.weight.clone()
    trainer.train()
    after = weights(trainer)
    frozen = [name for name in before if "lora_" not in name and "value_head" not in name]
    reward = [name for name in before if ".reward." in name]
    assert frozen
    assert reward
    assert all(torch.equal(before[name], after[name]) for name in [*frozen, *reward])
    assert torch.equal(head, trainer.roles.reward_head.weight)


@pytest.mark.parametrize(("epochs", "minibatches", "accumulation"), [(1, 1, 1), (3, 2, 1), (2, 3, 2)])
def test_optimizer_steps(make_trainer, epochs, minibatches, accumulation):
    class Count(TrainerCallback):
        steps = 0

        def on_optimizer_step(self, *args, **kwargs):
            self.steps += 1

    count, rollouts = Count(), 2
    trainer = make_trainer(
        {
            "callbacks": [count],
            "train_dataset": Dataset.from_dict({"prompt": ["abc"] * 2 * minibatches * accumulation * rollouts}),
        },
        max_steps=-1,
        num_train_epochs=1,
        per_device_train_batch_size=2,
        num_ppo_epochs=epochs,
        num_mini_batches=minibatches,
        gradient_accumulation_steps=accumulation,
    )
    generations = []
    generate = trainer._generate
    trainer._generate = lambda prompts: generations.append(len(prompts)) or generate(prompts)
    trainer.train()
    assert count.steps == epochs * minibatches * rollouts
    assert generations == [2 * minibatches * accumulation] * rollouts
    assert len(logged(trainer, "ratio")) == epochs * minibatches * rollouts


@pytest.mark.parametrize(
    ("setup", "reentrant"),
    [("value adapter", False), ("value adapter", True), ("shared head", False), ("full fine-tuning", False)],
)
def test_gradient_checkpointing_changes_nothing(make_trainer, setup, reentrant):
    arguments, options = SETUPS[setup]

    def train(**extra):
        trainer = make_trainer(arguments, **options, **extra)
        trainer.train()
        return trainer, weights(trainer)

    _, plain = train()
    trainer, checkpointed = train(
        gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": reentrant}
    )
    assert trainer.model.is_gradient_checkpointing
    for name in plain:
        torch.testing.assert_close(plain[name], checkpointed[name], rtol=0, atol=1e-5)


def test_gradient_checkpointing_recomputes_both_adapters(make_trainer):
    trainer = make_trainer(gradient_checkpointing=True, max_steps=1, num_ppo_epochs=1)
    calls = []
    trainer.roles.base.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    trainer.train()
    # Policy and value: once in the forward pass, once more in the backward pass. All else is without gradients.
    assert sum(calls) == 4


def test_division_into_microbatches_changes_nothing(make_trainer):
    def train(size, accumulation):
        trainer = make_trainer(per_device_train_batch_size=size, gradient_accumulation_steps=accumulation)
        trainer.train()
        return weights(trainer)

    whole, divided = train(8, 1), train(2, 4)
    for name in whole:
        torch.testing.assert_close(whole[name], divided[name], rtol=0, atol=1e-4)


def test_microbatches_are_cut_to_their_longest_row_and_lose_nothing(make_trainer):
    trainer = make_trainer(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    trainer.train()
    rollout = trainer._rollout
    widths = set()
    for rows in torch.arange(8).split(2):
        batch = take(rollout, rows)
        widths.add(batch["prompt_ids"].size(1))
        assert batch["prompt_mask"].sum() == rollout["prompt_mask"][rows].sum()
        assert batch["completion_mask"].sum() == rollout["completion_mask"][rows].sum()
        assert batch["prompt_mask"].any(0).all()
        assert batch["completion_mask"].any(0).all()
    assert len(widths) > 1


def test_every_pass_over_a_rollout_is_shuffled_anew(make_trainer):
    seen = []

    class Watch(PPOTrainer):
        def _divide(self, arrangement):
            seen.append([sorted(torch.cat(rows).tolist()) for rows in arrangement])
            return super()._divide(arrangement)

    make_trainer(cls=Watch, per_device_train_batch_size=4, num_mini_batches=4, num_ppo_epochs=4, max_steps=16).train()
    assert len({str(passes) for passes in seen}) == 4
    assert all(sorted(row for rows in passes for row in rows) == list(range(16)) for passes in seen)


def test_target_kl_skips_steps_without_moving_by_momentum(make_trainer):
    snapshots = []

    class Watch(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model=None, **kwargs):
            snapshots.append([p.detach().clone() for p in model.parameters() if p.requires_grad])

    trainer = make_trainer({"callbacks": [Watch()]}, target_kl=1e-6, num_ppo_epochs=4, max_steps=8, learning_rate=0.05)
    trainer.train()

    def moved(i):
        return any(not torch.equal(a, b) for a, b in zip(snapshots[i - 1], snapshots[i], strict=True))

    # The first step of a rollout has ratio 1; the second one exceeds the target, and nothing moves until the next.
    assert [moved(i) for i in range(1, 8)] == [False, False, False, True, False, False, False]
    assert logged(trainer, "early_stop") == [0, 1, 0, 1]
    assert trainer.state.global_step == 8


def test_dropout_is_off_in_all_adapters(make_trainer):
    trainer = make_trainer({"peft_config": lora(lora_dropout=0.5)})
    dropouts = [m for m in trainer.model.modules() if isinstance(m, torch.nn.Dropout)]
    assert dropouts
    assert all(m.p == 0 for m in dropouts)


def test_a_head_trained_in_full(make_trainer):
    """PEFT's wrapper of such a module has no weight while the value adapter is active."""
    trainer = make_trainer({"peft_config": lora(modules_to_save=["lm_head"])}, Ratios, max_steps=2)
    trainer.train()
    assert (trainer.ratios[0] == 1).all()
    assert logged(trainer, "objective/kl")[0] == 0


@pytest.mark.parametrize("held", [True, False])
def test_a_model_whose_head_reads_its_decoder_and_whose_dropout_is_a_number(make_trainer, tokenizer, monkeypatch, held):
    if not held:
        monkeypatch.setattr(forward, "KEPT_LOGITS", 0)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "word_embed_proj_dim": 16, "ffn_dim": 64, "num_hidden_layers": 2, "init_std": 0.3}
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = OPTConfig(vocab_size=len(tokenizer), num_attention_heads=2, dropout=0.5, **shape, **ids)
    trainer = make_trainer({"model": OPTForCausalLM(config)}, Ratios, max_steps=2)
    trainer.train()
    assert (trainer.ratios[0] == 1).all()
    assert logged(trainer, "objective/kl")[0] == 0


@pytest.mark.parametrize("mode", ["adapter", "head"])
def test_value_learning_rate(make_trainer, mode):
    trainer = make_trainer(value_mode=mode, value_learning_rate=0.5, learning_rate=0.25)
    optimizer = trainer.create_optimizer()
    value = {id(p) for p in trainer.roles.value_parameters}
    for group in optimizer.param_groups:
        assert {id(p) in value for p in group["params"]} <= {group["lr"] == 0.5}
    total = sum(len(group["params"]) for group in optimizer.param_groups)
    assert total == len({id(p) for p in trainer.roles.trained_parameters})


def test_evaluation(make_trainer):
    trainer = make_trainer({"eval_dataset": Dataset.from_dict({"prompt": PROMPTS[:6]})}, kl_target=1.0, max_steps=2)
    before, coefficient = trainer.evaluate(), trainer.kl_controller.value
    assert before["eval_objective/kl"] == 0
    trainer.train()
    adapted, moved = trainer.kl_controller.value, weights(trainer)
    after = trainer.evaluate()
    assert adapted != coefficient
    assert trainer.kl_controller.value == adapted
    assert after["eval_objective/kl"] != 0
    assert {"eval_loss", "eval_reward", "eval_objective/scores", "eval_completions/mean_length"} <= after.keys()
    assert all(torch.equal(moved[name], value) for name, value in weights(trainer).items())


def test_metrics(make_trainer):
    trainer = make_trainer(log_completions=False, target_kl=100.0, max_steps=2)
    trainer.train()
    names = {name for entry in trainer.state.log_history for name in entry}
    assert names >= {
        "objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward", "objective/scores",
        "loss/policy", "loss/value", "ratio", "approx_kl", "clip_ratio/region_mean", "early_stop",
        "value/mean", "value/clip_ratio", "value/explained_variance", "advantages/mean", "kl_coef",
        "reward", "reward_std", "kl", "entropy", "rewards/even_codes/mean", "completions/mean_length",
        "completions/clipped_ratio", "tokens_per_second", "time/generation", "time/scoring", "time/rewards",
        "time/value", "time/policy",
    }  # fmt: skip
    assert set(trainer._logs["extra"]) == {"score"}
    assert len(trainer._logs["prompt"]) == len(trainer._logs["extra"]["score"]) == len(trainer._logs["advantages"])


def test_metrics_are_the_rollouts(make_trainer):
    trainer = make_trainer({"reward_funcs": lambda completions, **_: [2.0] * len(completions)}, beta=0.5, max_steps=4)
    trainer.train()
    kl, coefficient = logged(trainer, "objective/kl")[1], 0.5
    assert logged(trainer, "objective/scores")[1] == 2
    assert logged(trainer, "objective/non_score_reward")[1] == pytest.approx(-coefficient * kl, rel=1e-5)
    assert logged(trainer, "objective/rlhf_reward")[1] == pytest.approx(2 - coefficient * kl, rel=1e-5)


def test_no_charge_still_measures_kl(make_trainer):
    trainer = make_trainer(beta=0.0)
    trainer.train()
    assert logged(trainer, "objective/kl")[1] != 0
    assert logged(trainer, "objective/non_score_reward")[1] == 0


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_reward_is_charged_by_the_chosen_estimator(make_trainer, estimator):
    trainer = make_trainer(kl_estimator=estimator, beta=1.0)
    trainer.train()
    rollout = trainer._rollout
    kl = maths.kl_estimate(rollout["old_logps"], rollout["ref_logps"], estimator)
    expected = -(kl * rollout["completion_mask"]).sum(1).mean()
    assert logged(trainer, "objective/non_score_reward")[-1] == pytest.approx(expected.item(), rel=1e-4)


def test_missing_eos_is_penalized_after_clipping(make_trainer):
    trainer = make_trainer(
        {"reward_funcs": lambda completions, **_: [5.0] * len(completions)},
        reward_clip_range=(-1.0, 1.0),
        missing_eos_penalty=3.0,
        max_steps=8,
        max_completion_length=16,
    )
    scored = []
    penalize = trainer._penalize
    trainer._penalize = lambda scores, ended: scored.append((penalize(scores, ended), ended)) or scored[-1][0]
    trainer.train()
    for scores, ended in scored:
        assert torch.equal(scores, torch.where(ended, 1.0, -2.0))


def test_minimum_length(make_trainer):
    trainer = make_trainer(min_completion_length=6, max_completion_length=8, max_steps=8)
    trainer.train()
    assert min(logged(trainer, "completions/min_length")) >= 6


def test_completions_without_a_judgement_teach_nothing(make_trainer):
    trainer = make_trainer({"reward_funcs": lambda completions, **_: [None, *[1.0] * (len(completions) - 1)]})
    trainer.train()
    assert trainer._rollout["loss_mask"][0].sum() == 0
    assert trainer._rollout["advantages"][0].abs().sum() == 0
    assert all(torch.isfinite(w).all() for w in weights(trainer).values())


def test_truncated_completions_can_be_masked(make_trainer):
    trainer = make_trainer(mask_truncated_completions=True, max_completion_length=2)
    before = weights(trainer)
    trainer.train()
    ended = (trainer._rollout["completion_ids"] == trainer._tokenizer.eos_token_id).any(1)
    assert torch.equal(trainer._rollout["loss_mask"].sum(1) > 0, ended)
    assert before.keys() == weights(trainer).keys()


def test_values_and_log_probabilities_do_not_depend_on_padding(make_trainer):
    """Rows alone, without padding, give what they give in a padded batch."""
    trainer = make_trainer(value_mode="head", num_ppo_epochs=1, max_steps=1)
    torch.nn.init.normal_(trainer.roles.value_head.weight)
    rollout = trainer._generate_and_score_completions([{"prompt": p} for p in PROMPTS[:4]])
    with torch.no_grad():
        for i in range(4):
            alone = take(rollout, torch.tensor([i]))
            output = trainer._completion_forward(trainer.model, alone, ("log_probs", "value"))
            length = int(rollout["completion_mask"][i].sum())
            torch.testing.assert_close(output.log_probs[0], rollout["old_logps"][i, :length], rtol=0, atol=1e-5)
            torch.testing.assert_close(output.value[0], rollout["old_values"][i, :length], rtol=0, atol=1e-5)


def test_log_probabilities_are_those_of_the_full_logits(make_trainer):
    trainer = make_trainer(temperature=0.7)
    rollout = trainer._generate_and_score_completions([{"prompt": p} for p in PROMPTS[:4]])
    ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], 1)
    mask = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], 1)
    with torch.no_grad():
        logits = trainer.model(input_ids=ids, attention_mask=mask).logits[:, :-1] / 0.7
    logps = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    width = rollout["completion_ids"].size(1)
    expected = logps[:, -width:] * rollout["completion_mask"]
    torch.testing.assert_close(rollout["old_logps"], expected, rtol=0, atol=1e-4)


def test_logits_held_and_not_held_agree(make_trainer, monkeypatch):
    trainer = make_trainer(temperature=0.7)
    rollout = trainer._generate_and_score_completions([{"prompt": p} for p in PROMPTS[:4]])
    found = {}
    for limit in (forward.KEPT_LOGITS, 0):
        monkeypatch.setattr(forward, "KEPT_LOGITS", limit)
        trainer.model.zero_grad()
        output = trainer._completion_forward(trainer.model, rollout, ("log_probs",))
        (output.log_probs * torch.linspace(-1, 1, output.log_probs.numel()).view_as(output.log_probs)).sum().backward()
        gradients = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
        found[limit] = {"log_probs": output.log_probs, "entropy": output.entropy, **gradients}
    held, fused = found.values()
    assert held.keys() == fused.keys()
    assert len(held) > 4, "there are gradients among them"
    for name, value in held.items():
        torch.testing.assert_close(value, fused[name], rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_rows_are_split_where_padding_costs_more_than_a_pass(monkeypatch):
    monkeypatch.setattr(forward, "SPARED_PADDING", 10)
    # Alone and padded to 4, 5, 9 and 20 tokens: 0, 1, 1 + 4 * 2 = 9, then a pass of its own.
    assert forward.split_rows(torch.tensor([[4], [5], [9], [20]])) == [slice(0, 3), slice(3, 4)]
    # Prompt and completion are padded each by itself: (9 - 1) + (9 - 1) tokens.
    assert forward.split_rows(torch.tensor([[1, 9], [9, 1]])) == [slice(0, 1), slice(1, 2)]
    assert forward.split_rows(torch.tensor([[7, 3]] * 50)) == [slice(0, 50)]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_rows_in_passes_of_their_own_and_in_one_pass_agree(make_trainer, monkeypatch, checkpointing):
    trainer = make_trainer(value_mode="head", temperature=0.7, gradient_checkpointing=checkpointing)
    torch.nn.init.normal_(trainer.roles.value_head.weight)
    rollout = trainer._generate_and_score_completions([{"prompt": p} for p in PROMPTS[:4]])
    widths, found = [], {}
    trainer.roles.base.model.embed_tokens.register_forward_hook(lambda _m, args, _o: widths.append(args[0].shape))
    for padding in (10_000, 0):
        monkeypatch.setattr(forward, "SPARED_PADDING", padding)
        trainer.model.zero_grad()
        output = trainer._completion_forward(trainer.model, rollout, ("log_probs", "value"))
        ramp = torch.linspace(-1, 1, output.log_probs.numel()).view_as(output.log_probs) * rollout["completion_mask"]
        (output.log_probs * ramp + output.value * ramp**2).sum().backward()
        gradients = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
        value = output.value * rollout["completion_mask"]
        found[padding] = {"log_probs": output.log_probs, "entropy": output.entropy, "value": value, **gradients}
    lengths = rollout["prompt_mask"].sum(1) + rollout["completion_mask"].sum(1)
    assert widths[0][0] == 4
    assert widths[1:] == [(1, length) for length in lengths.tolist()]
    whole, split = found.values()
    assert whole.keys() == split.keys()
    for name, value in whole.items():
        torch.testing.assert_close(value, split[name], rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("setup", ["value adapter", "shared head", "full fine-tuning", "bf16 weights"])
def test_policy_equals_itself_and_the_reference_where_rows_have_passes_of_their_own(make_trainer, monkeypatch, setup):
    monkeypatch.setattr(forward, "SPARED_PADDING", 0)
    test_policy_equals_itself_and_the_reference_before_the_first_step(make_trainer, setup)


def test_absolute_positions_survive_left_padding(make_trainer, tokenizer):
    torch.manual_seed(0)
    shape = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape, **ids))
    trainer = make_trainer({"model": model, "peft_config": lora(target_modules=["c_attn"], fan_in_fan_out=True)})
    rollout = trainer._generate_and_score_completions([{"prompt": p} for p in PROMPTS[:4]])
    with torch.no_grad():
        for i in range(4):
            output = trainer._completion_forward(trainer.model, take(rollout, torch.tensor([i])), ("log_probs",))
            length = int(rollout["completion_mask"][i].sum())
            torch.testing.assert_close(output.log_probs[0], rollout["old_logps"][i, :length], rtol=0, atol=1e-4)


def test_vllm_is_sent_the_model_without_heads(make_trainer, reward_dir):
    """vLLM itself was not run: this watches what its weight synchronisation would walk over."""
    trainer = make_trainer({"reward_adapter": reward_dir}, max_steps=1)
    sent = []

    class Engine:
        def sync_weights(self):
            sent.extend(name for name, _ in trainer.model.named_parameters() if trainer.model.prefix not in name)

        def generate(self, prompts, **_):
            return None, [[10, 11, trainer._tokenizer.eos_token_id] for _ in prompts], None, None

    trainer.use_vllm, trainer.vllm_generation, trainer._last_loaded_step = True, Engine(), -1
    trainer._generate_single_turn([[5, 6]], None, {})
    assert sent
    assert not [name for name in sent if "head" in name.replace("lm_head", "") or "score" in name]
    assert trainer.roles.value_head is not None


def test_several_rewards_with_weights(make_trainer):
    def length(completions, **_):
        return [float(len(text)) for text in completions]

    trainer = make_trainer({"reward_funcs": [even_codes, length]}, reward_weights=[2.0, -0.5], max_steps=1)
    trainer.train()
    share, size = logged(trainer, "rewards/even_codes/mean")[0], logged(trainer, "rewards/length/mean")[0]
    assert logged(trainer, "reward")[0] == pytest.approx(2 * share - 0.5 * size, rel=1e-5)


def test_several_completions_per_prompt(make_trainer):
    trainer = make_trainer(num_generations=2)
    trainer.train()
    assert len(set(trainer._logs["prompt"])) < len(trainer._logs["prompt"])


def test_conversational_prompts(make_trainer):
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]

    def judge(completions, **_):
        assert all(message["role"] == "assistant" for completion in completions for message in completion)
        return [1.0] * len(completions)

    trainer = make_trainer({"train_dataset": Dataset.from_dict({"prompt": chats}), "reward_funcs": judge})
    trainer.train()
    assert trainer.state.global_step == 4


def test_asynchronous_rewards(make_trainer):
    async def judge(completions, **_):
        return [float(len(text)) for text in completions]

    trainer = make_trainer({"reward_funcs": [judge, even_codes]}, max_steps=1)
    trainer.train()
    assert logged(trainer, "rewards/judge/mean")[0] >= 0


def test_end_of_sequence_is_learned_where_it_is_also_the_padding(make_trainer, model_dir):
    tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    trainer = make_trainer({"processing_class": tokenizer}, max_completion_length=16, max_steps=2)
    trainer.train()
    rollout = trainer._rollout
    ends = (rollout["completion_ids"] == tokenizer.eos_token_id) & (rollout["completion_mask"] == 1)
    assert ends.any()
    assert (ends.sum(1) <= 1).all()
    assert (rollout["old_logps"][ends] != 0).all()
    assert (rollout["advantages"][ends] != 0).all()


def test_streaming_dataset(make_trainer):
    stream = Dataset.from_dict({"prompt": PROMPTS}).to_iterable_dataset()
    trainer = make_trainer({"train_dataset": stream}, max_steps=4)
    trainer.train()
    assert trainer.state.global_step == 4


def test_a_skipped_step_logs_no_gradient_norm(make_trainer):
    trainer = make_trainer(target_kl=1e-6, num_ppo_epochs=4, max_steps=8, learning_rate=0.05)
    trainer.train()
    assert [row["step"] for row in trainer.state.log_history if "grad_norm" in row] == [1, 5]


@pytest.mark.parametrize("judged", [0, 1, 2])
def test_scores_are_averaged_over_completions_that_have_one(make_trainer, judged):
    trainer = make_trainer(
        {"reward_funcs": lambda completions, **_: [*[3.0] * judged, *[None] * (len(completions) - judged)]}, max_steps=1
    )
    trainer.train()
    for name in ("reward", "objective/scores", "objective/rlhf_reward"):  # without KL at the first rollout
        assert logged(trainer, name) == [3.0 if judged else None]
