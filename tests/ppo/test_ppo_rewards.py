"""Reward models: on the shared base, in full, with the policy's vocabulary or another; values that start from one."""

import json
import shutil

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)
from trl import RewardConfig, RewardTrainer

from posttrain.ppo import forward
from posttrain.ppo.rewards import chat_tail, last_token

from .tiny import PROMPTS, even_codes, logged, lora, weights


def alone(model_dir, reward_dir):
    base = AutoModelForSequenceClassification.from_pretrained(model_dir, num_labels=1, dtype=torch.float32)
    return PeftModel.from_pretrained(base, reward_dir).eval()


def score_alone(model, sequences):
    with torch.no_grad():
        return [model(torch.tensor([ids])).logits[0, 0].item() for ids in sequences]


SEQUENCES = [[5, 6, 7, 2], [40, 41], [70, 71, 72, 73, 74, 75, 2], [9]]


def call(reward, sequences):
    return reward(prompts=["a"] * len(sequences), prompt_ids=[s[:1] for s in sequences],
                  completion_ids=[s[1:] or [9] for s in sequences])  # fmt: skip


def test_adapter_on_the_shared_base_scores_as_it_does_alone(make_trainer, model_dir, reward_dir):
    trainer = make_trainer({"reward_adapter": reward_dir, "reward_funcs": None}, per_device_train_batch_size=1)
    sequences = SEQUENCES[:3]
    assert call(trainer.reward_funcs[0], sequences) == score_alone(alone(model_dir, reward_dir), sequences)


def test_padding_does_not_change_scores(make_trainer, model_dir, reward_dir):
    trainer = make_trainer({"reward_adapter": reward_dir, "reward_funcs": None})
    expected = score_alone(alone(model_dir, reward_dir), SEQUENCES[:3])
    assert call(trainer.reward_funcs[0], SEQUENCES[:3]) == pytest.approx(expected, abs=1e-5)


def test_sequences_in_passes_of_their_own_score_as_alone(make_trainer, model_dir, reward_dir, monkeypatch):
    monkeypatch.setattr(forward, "SPARED_PADDING", 0)
    trainer = make_trainer({"reward_adapter": reward_dir, "reward_funcs": None})
    expected = score_alone(alone(model_dir, reward_dir), SEQUENCES[:3])
    assert call(trainer.reward_funcs[0], SEQUENCES[:3]) == expected


def test_scores_stay_the_same_while_the_policy_trains(make_trainer, reward_dir):
    trainer = make_trainer({"reward_adapter": reward_dir, "reward_funcs": None})
    before = call(trainer.reward_funcs[0], SEQUENCES[:3])
    trainer.train()
    assert call(trainer.reward_funcs[0], SEQUENCES[:3]) == before
    assert logged(trainer, "rewards/reward_adapter/mean") == logged(trainer, "reward")


def test_scores_are_without_dropout_where_the_policy_has_it(make_trainer, reward_dir):
    arguments = {"reward_adapter": reward_dir, "reward_funcs": None, "peft_config": lora(lora_dropout=0.5)}
    trainer = make_trainer(arguments, disable_dropout=False)
    for module in trainer.model.modules():
        if isinstance(module, BaseTunerLayer):
            module.lora_dropout["reward"] = torch.nn.Dropout(0.5)
    trainer.model.train()
    first, second = (call(trainer.reward_funcs[0], SEQUENCES[:3]) for _ in range(2))
    assert first == second
    assert trainer.model.training


def test_adapter_and_functions_together(make_trainer, reward_dir):
    trainer = make_trainer({"reward_adapter": reward_dir}, reward_weights=[0.5, 2.0], max_steps=1)
    trainer.train()
    model, share = logged(trainer, "rewards/reward_adapter/mean")[0], logged(trainer, "rewards/even_codes/mean")[0]
    assert logged(trainer, "reward")[0] == pytest.approx(0.5 * model + 2 * share, rel=1e-5)


def test_adapter_from_the_reward_trainer(make_trainer, model_dir, tokenizer, tmp_path):
    """The folder that TRL's RewardTrainer writes, from training to score."""
    pairs = {"prompt": ["a", "b"] * 2, "chosen": [" eee"] * 4, "rejected": [" xyz"] * 4}
    reward = RewardTrainer(
        model=str(model_dir),
        args=RewardConfig(str(tmp_path / "rm"), max_steps=2, per_device_train_batch_size=4, use_cpu=True, bf16=False,
                          report_to=[], learning_rate=0.05, save_strategy="no", disable_tqdm=True),
        train_dataset=Dataset.from_dict(pairs),
        processing_class=tokenizer,
        peft_config=lora(task_type="SEQ_CLS"),
    )  # fmt: skip
    reward.train()
    reward.save_model(str(tmp_path / "rm"))
    trainer = make_trainer({"reward_adapter": tmp_path / "rm", "reward_funcs": None}, per_device_train_batch_size=1)
    expected = score_alone(reward.model.eval(), SEQUENCES[:3])
    assert call(trainer.reward_funcs[0], SEQUENCES[:3]) == expected


@pytest.mark.parametrize("seen", ["end", "truncated"])
def test_full_model_with_the_same_vocabulary_is_scored_on_tokens(make_trainer, model_dir, tokenizer, seen):
    torch.manual_seed(5)
    full = LlamaForSequenceClassification.from_pretrained(model_dir, num_labels=1)
    trainer = make_trainer({"reward_funcs": full, "reward_processing_classes": tokenizer})
    completion = [9, 10, tokenizer.eos_token_id] if seen == "end" else [9, 10, 11]
    expected = score_alone(full, [[5, 6, *completion]])
    assert trainer.reward_funcs[0](prompts=["a"], prompt_ids=[[5, 6]], completion_ids=[completion]) == expected
    trainer.train()


def test_full_model_with_another_vocabulary_reads_text(make_trainer, tmp_path):
    letters = {token: i for i, token in enumerate(["<p>", "</s>", "<s>", *"zyxwvutsrqponmlkjihgfedcba "])}
    raw = Tokenizer(models.WordLevel(letters, unk_token="<p>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.add_special_tokens(["<p>", "</s>", "<s>"])
    # As RewardTrainer, on plain text the special tokens that the tokenizer adds.
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", letters["<s>"])])
    other = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<p>", eos_token="</s>", unk_token="<p>")
    torch.manual_seed(6)
    config = LlamaConfig(vocab_size=len(letters), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, num_labels=1)  # fmt: skip
    model = LlamaForSequenceClassification(config)
    model.config._name_or_path = "other"
    trainer = make_trainer({"reward_funcs": [model], "reward_processing_classes": [other]}, max_steps=1)
    trainer.train()
    ids = {"end": [9, trainer._tokenizer.eos_token_id], "truncated": [9, 10]}
    for seen, completion_ids in ids.items():
        text = ["<s>", "abc", *(["</s>"] if seen == "end" else [])]
        expected = score_alone(model, [[letters[c] for part in text for c in ([part] if "s>" in part else part)]])
        actual = trainer.reward_funcs[0](prompts=["ab"], completions=["c"], completion_ids=[completion_ids])
        assert actual == pytest.approx(expected, abs=1e-6)


def test_chat_tail(tokenizer):
    assert chat_tail(tokenizer, [tokenizer.eos_token_id]) == []
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = template.replace("<eos>", "<eos>!?")
        tail = chat_tail(tokenizer, [tokenizer.eos_token_id])
        assert tokenizer.decode(tail) == "!?"
        tokenizer.chat_template = template.replace("<eos>", "")
        assert chat_tail(tokenizer, [tokenizer.eos_token_id]) == []
    finally:
        tokenizer.chat_template = template


def test_conversations_are_scored_with_the_tail_that_the_reward_model_was_trained_on(make_trainer, reward_dir):
    reward = make_trainer({"reward_adapter": reward_dir, "reward_funcs": None}).reward_funcs[0]
    reward.tail, seen = [4, 5], []
    reward.score = lambda ids, mask: seen.extend(ids.tolist()) or torch.zeros(len(ids))
    chat = [{"role": "user", "content": "a"}]
    reward(prompts=[chat, chat], prompt_ids=[[7], [7]], completion_ids=[[8, 2], [8, 9]])
    assert sorted(seen) == [[7, 8, 2, 4, 5], [7, 8, 9, 0, 0]] or sorted(seen) == [[7, 8, 2, 4, 5], [7, 8, 9]]
    seen.clear()
    reward(prompts=["a"], prompt_ids=[[7]], completion_ids=[[8, 2]])
    assert seen == [[7, 8, 2]]


def test_last_token_is_the_last_that_is_not_padding():
    ids = torch.tensor([[5, 6, 2, 0], [5, 0, 0, 0], [5, 6, 7, 8]])
    assert last_token(ids, pad_token_id=0).tolist() == [2, 0, 3]
    assert last_token(ids, pad_token_id=2).tolist() == [3, 3, 3]
    # Where pad is EOS: the token before it.
    assert last_token(torch.tensor([[5, 6, 2, 2]]), pad_token_id=2).tolist() == [1]


def test_value_function_starts_as_the_reward_model(make_trainer, reward_dir):
    trainer = make_trainer(
        {"reward_adapter": reward_dir, "reward_funcs": None, "train_dataset": Dataset.from_dict({"prompt": PROMPTS})},
        value_init="reward",
        max_steps=1,
    )
    parameters = weights(trainer)
    values = [name for name in parameters if ".value." in name]
    assert values
    for name in values:
        assert torch.equal(parameters[name], parameters[name.replace(".value.", ".reward.")])
    assert torch.equal(trainer.roles.value_head.weight, trainer.roles.reward_head.weight)
    rollout = trainer._generate_and_score_completions([{"prompt": p} for p in PROMPTS[:4]])
    # The value before the last token is the score of what comes before it.
    for i in range(4):
        prompt = rollout["prompt_ids"][i][rollout["prompt_mask"][i] == 1].tolist()
        completion = rollout["completion_ids"][i][rollout["completion_mask"][i] == 1].tolist()
        score = trainer.reward_funcs[0](prompts=["a"], prompt_ids=[prompt], completion_ids=[completion[:-1] or [1]])[0]
        if len(completion) > 1:
            assert rollout["old_values"][i, len(completion) - 1].item() == pytest.approx(score, abs=1e-4)


def test_value_function_starts_in_the_units_of_the_weighted_score(make_trainer, reward_dir):
    trainer = make_trainer({"reward_adapter": reward_dir}, value_init="reward", reward_weights=[3.0, 1.0])
    torch.testing.assert_close(trainer.roles.value_head.weight, 3 * trainer.roles.reward_head.weight)


def test_value_function_starts_at_zero(make_trainer):
    trainer = make_trainer(max_steps=1)
    trainer.train()
    assert logged(trainer, "value/mean")[0] == 0


def test_value_adapter_of_its_own_shape(make_trainer):
    trainer = make_trainer({"value_peft_config": lora(r=2, target_modules=["o_proj"])})
    names = [name for name in weights(trainer) if ".value." in name]
    assert names
    assert all("o_proj" in name for name in names)
    trainer.train()


def test_reward_functions_get_token_ids(make_trainer):
    seen = []

    def judge(prompts, completion_ids, prompt_ids, **_):
        seen.extend(zip(prompts, prompt_ids, completion_ids, strict=True))
        return [0.0] * len(prompts)

    trainer = make_trainer({"reward_funcs": [judge, even_codes]}, max_steps=1)
    trainer.train()
    for prompt, prompt_ids, completion_ids in seen:
        assert trainer._tokenizer.decode(prompt_ids) == prompt
        assert completion_ids


@pytest.fixture
def spoiled(tmp_path, reward_dir):
    """A copy of the reward adapter with some of its configuration changed."""

    def make(**changes):
        folder = tmp_path / "spoiled"
        shutil.copytree(reward_dir, folder)
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
        return folder

    return make


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model_name_or_path": "other/model-7b"}, "other/model-7b"),
        ({"task_type": "CAUSAL_LM"}, "SEQ_CLS"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"modules_to_save": ["score", "embed_tokens"]}, "embed_tokens"),
    ],
)
def test_unfit_reward_adapter_is_refused_before_weights_load(make_trainer, spoiled, monkeypatch, changes, message):
    monkeypatch.setattr("trl.trainer.rloo_trainer.create_model_from_path", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=message):
        make_trainer({"reward_adapter": spoiled(**changes)})


def test_reward_adapter_with_other_layers_is_refused(make_trainer, spoiled):
    with pytest.raises(ValueError, match="does not fit"):
        make_trainer({"reward_adapter": spoiled(target_modules=["q_proj", "k_proj"])})


def test_reward_adapter_with_another_vocabulary_is_refused(make_trainer, spoiled, tokenizer, monkeypatch):
    monkeypatch.setattr("trl.trainer.rloo_trainer.create_model_from_path", lambda *a, **k: pytest.fail("loaded"))
    folder = spoiled()
    other = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    other.add_tokens(["<new>"])
    other.save_pretrained(folder)
    with pytest.raises(ValueError, match="another vocabulary"):
        make_trainer({"reward_adapter": folder, "reward_funcs": None})


def test_folder_without_an_adapter_is_refused(make_trainer, model_dir):
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        make_trainer({"reward_adapter": model_dir})


def test_an_adapter_on_embeddings_is_copied_with_the_others(make_trainer):
    """PEFT names the parameters of such an adapter `lora_embedding_A.default`, without an end behind the name."""
    trainer = make_trainer(
        {"peft_config": lora(target_modules=["q_proj", "embed_tokens"], init_lora_weights=False)}, value_mode="adapter"
    )
    trainer.roles._copy_adapter("default", "value")
    parameters = dict(trainer.roles.model.named_parameters())
    pairs = [(name, name.replace(".default", ".value")) for name in parameters if ".default" in name]
    assert any("lora_embedding" in name for name, _ in pairs)
    for policy, value in pairs:
        assert torch.equal(parameters[policy], parameters[value]), policy
