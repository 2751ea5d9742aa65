"""PPO as a run: what moves and what is saved, rewards on the policy's base, and mistakes found before weights load."""

import gc
import json

import pytest
import torch

from posttrain.errors import PosttrainError
from posttrain.jobs import preflight
from posttrain.jobs.train import train as job
from posttrain.rewards import calibration
from posttrain.rewards.model import RewardModel
from posttrain.training import online
from posttrain.training.schedule import schedule
from tests.helpers.runs import SMALL, compose, rows, weights

LETTER = ("~reward", "+reward.letter.function=tests.helpers.rewards.letter")
SHORT = (
    *("trainer.args.max_steps=4", "trainer.args.max_completion_length=8", "trainer.args.per_device_train_batch_size=8"),
    *("trainer.args.eval_on_start=false", "trainer.args.learning_rate=1e-2"),
)
RECIPE = "+recipe=ppo_smollm2"


@pytest.fixture
def built(monkeypatch):
    """The trainers that a test's runs build."""
    from posttrain.training import build

    made, original = [], build.build
    monkeypatch.setattr(build, "build", lambda kind, parts: made.append(original(kind, parts)) or made[-1])
    return made


@pytest.fixture
def reward_run(finished):
    return finished("+recipe=reward_smollm2", "trainer.args.learning_rate=1e-2")


@pytest.mark.parametrize("mode", ["adapter", "head"])
def test_adapters_and_head_move_the_base_does_not_and_the_policy_is_saved(train, built, mode):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    from posttrain.data.embedded import tiny

    run = train(RECIPE, *LETTER, *SHORT, f"trainer.args.value_mode={mode}", "probe.prompts=2", "probe.max_new_tokens=4")
    (trainer,) = built
    base = AutoModelForCausalLM.from_pretrained(tiny.tiny_model()).state_dict()
    for name, value in trainer.model.state_dict().items():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if plain in base:
            assert torch.equal(value, base[plain]), f"{name}: the frozen base changed"
        elif "lora_B" in name or "value_head" in name:
            assert value.abs().sum() > 0, f"{name} learnt nothing"
    assert any(".value." in name for name in trainer.model.state_dict()) == (mode == "adapter")
    # The model folder has the policy alone; the checkpoint has what a continued run needs.
    saved = weights(run.model)
    assert saved
    assert all("lora_" in name for name in saved)
    assert not [p.name for p in run.model.iterdir() if p.is_dir() or p.name.startswith(("value", "ppo_state"))]
    checkpoint = run.checkpoints / "checkpoint-4"
    assert {"value_head.safetensors", "ppo_state.json", "optimizer.pt"} <= {p.name for p in checkpoint.iterdir()}
    assert (checkpoint / "value").is_dir() == (mode == "adapter")
    ids = torch.arange(3, 40)[None]
    loaded = AutoPeftModelForCausalLM.from_pretrained(str(run.model)).eval()(input_ids=ids).logits
    assert torch.equal(trainer.model.eval()(input_ids=ids).logits, loaded)


def test_the_run_directory_has_the_vocabulary(train):
    evaluated = "trainer.args.eval_on_start=true"
    run = train(RECIPE, *LETTER, *SHORT, evaluated, "probe=default", "probe.prompts=2", "probe.max_new_tokens=4")
    record = json.loads((run.path / "run.json").read_text())
    assert record["status"] == "finished"
    expected = {"reward", "kl", "objective/kl", "value/explained_variance", "rewards/letter/mean"}
    assert expected | {"eval_reward", "probe/kl", "probe/rewards/letter"} <= record["metrics"].keys()
    logged = [row for row in rows(run.metrics) if "ratio" in row]
    assert [row["step"] for row in logged] == [1, 2, 3, 4]
    assert (logged[0]["objective/kl"], logged[0]["ratio"]) == (0, 1)
    assert next(row for row in rows(run.metrics) if "probe/kl" in row)["probe/kl"] == 0
    assert "`ppo`" in (run.model / "README.md").read_text()


def test_reward_rises(train):
    # The random model has little that an adapter could use, so all weights are trained.
    run = train(
        *(RECIPE, *LETTER, *SHORT, "peft=none", "trainer.args.max_steps=60", "trainer.args.learning_rate=3e-3"),
        *("trainer.args.lr_scheduler_type=constant", "trainer.args.per_device_train_batch_size=16"),
    )
    rewards = [row["reward"] for row in rows(run.metrics) if "reward" in row]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.15


def test_full_fine_tuning_moves_every_weight(train):
    from transformers import AutoModelForCausalLM

    from posttrain.data.embedded import tiny

    run = train(RECIPE, *LETTER, *SHORT, "peft=none")
    before = AutoModelForCausalLM.from_pretrained(tiny.tiny_model()).state_dict()
    after = AutoModelForCausalLM.from_pretrained(run.model).state_dict()
    assert before.keys() == after.keys()
    assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_qlora_starts_at_the_reference_and_trains_in_float32(train, built):
    run = train(
        *(RECIPE, *LETTER, *SHORT, "peft=qlora", "trainer.args.bf16=true", "trainer.args.value_mode=adapter"),
        "peft.value.r=4",
    )
    model = built[0].model
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert any("value_head" in name for name in trained)
    assert {p.shape[0] for name, p in trained.items() if "lora_A.value" in name} == {4}
    assert {p.shape[0] for name, p in trained.items() if "lora_A.default" in name} == {16}
    assert all(p.abs().sum() > 0 for name, p in trained.items() if "lora_B" in name)
    first = next(row for row in rows(run.metrics) if "ratio" in row)
    assert (first["objective/kl"], first["ratio"]) == (0, 1)


def test_a_reward_run_scores_on_the_policys_base(train, built, reward_run, monkeypatch, capsys):
    from transformers import PreTrainedModel

    built.clear()
    gc.collect()
    # Kept by id: other tests of this process may have left models behind.
    before = {id(m): m for m in gc.get_objects() if isinstance(m, PreTrainedModel)}
    with monkeypatch.context() as patch:
        patch.setattr(RewardModel, "__init__", lambda *args, **kwargs: pytest.fail("a second base is loaded"))
        run = train(
            *(RECIPE, *SHORT, *LETTER, "reward.letter.weight=0.5"),
            f"+reward.rm={{model: {reward_run.path}, weight: 2}}",
            *("trainer.args.value_mode=adapter", "trainer.args.value_init=reward"),
            *("probe.prompts=8", "probe.max_new_tokens=8", "probe=default"),
        )
    assert "rm (an adapter on the policy's base) x 2" in capsys.readouterr().out
    gc.collect()
    loaded = [m for m in gc.get_objects() if isinstance(m, PreTrainedModel) and id(m) not in before]
    bases, heads = ([m for m in loaded if hasattr(m, name)] for name in ("lm_head", "score"))
    assert len(bases) == 1, "one base in memory"
    assert bases[0] is built[0].model.get_base_model()
    assert not heads
    row = next(row for row in rows(run.metrics) if "rewards/rm/mean" in row)
    # The entry's own weight goes with it, wherever it stands in the config.
    assert row["reward"] == pytest.approx(2 * row["rewards/rm/mean"] + 0.5 * row["rewards/letter/mean"], abs=1e-5)
    [parent] = run.record()["parents"]
    assert parent == {
        "role": "reward.rm",
        "path": str(reward_run.path),
        "name": reward_run.name,
        "content": reward_run.record()["content"],
    }
    # The probe scores by the same adapter; completions that ended are those that the stand-alone model sees whole.
    samples = rows(run.samples)
    assert {"rm", "letter"} <= samples[0].keys()


def test_shared_base_and_own_base_give_the_same_scores(train, built, reward_run):
    recipe = ("+recipe=reward_smollm2", "trainer.args.learning_rate=1e-2")
    train(*recipe, "job=evaluate", f"model.init_from={reward_run.path}")
    args = "args: {scale: zscore, length_penalty: fitted}"
    built.clear()
    prompts = [[{"role": "user", "content": "1?"}], [{"role": "user", "content": "And two?"}]]
    texts, scores = ["yes", "no no"], []
    for shared in ("true", "false"):
        entry = f"+reward.rm={{model: {reward_run.path}, shared: {shared}, {args}}}"
        train(RECIPE, "~reward", entry, *SHORT, "trainer.args.max_steps=2", "reward.rm.weight=1")
        trainer = built[-1]
        tok, eos = trainer.processing_class, trainer.processing_class.eos_token
        scores.append(
            trainer.reward_funcs[0](
                prompts=prompts,
                completions=[[{"role": "assistant", "content": text}] for text in texts],
                prompt_ids=[
                    tok.apply_chat_template(p, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
                    for p in prompts
                ],
                completion_ids=[tok(text + eos, add_special_tokens=False)["input_ids"] for text in texts],
            )
        )
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    known, plain = calibration.read(str(reward_run.path), ""), RewardModel(str(reward_run.path))
    whole = [plain.ids(p, [{"role": "assistant", "content": text}]) for p, text in zip(prompts, texts, strict=True)]
    lengths = [plain.length(p, ids) for p, ids in zip(prompts, whole, strict=True)]
    assert scores[0] == pytest.approx(known.adjust(plain._scores(whole), lengths, "zscore", "fitted"), abs=1e-4)


def refused(*overrides):
    def start():
        run, origin = compose(RECIPE, *SMALL, *overrides)
        preflight.check(run)
        job(run, origin)

    with pytest.raises(PosttrainError) as error:
        start()
    return str(error.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["trainer.args.max_completion_length=5000"], "args.max_completion_length=5000 after the longest prompt"),
        (["trainer.args.per_device_train_batch_size=64"], "32 prompts, fewer than one rollout takes: 64 = "),
        (
            ["trainer.args.lam=2", "trainer.args.gamma=0"],
            "trainer.args.lam=2: expected at least 0 and at most 1\ntrainer.args.gamma=0: expected",
        ),
        (["trainer.args.missing_eos_penalty=-1"], "trainer.args.missing_eos_penalty=-1: expected at least 0"),
        (["trainer.args.reward_weights=[1,2]"], "trainer.args.reward_weights=[1, 2] has 2 weights for 1 rewards"),
        (["trainer.args.kl_target=6", "trainer.args.beta=0"], "trainer.args.kl_target: adapts beta"),
    ],
)
def test_a_mistake_is_found_before_weights_load(pairs, monkeypatch, overrides, said):
    from posttrain.training import build

    monkeypatch.setattr(build, "build", lambda *args: pytest.fail("weights are loaded"))
    assert said in refused(*overrides)


def test_data_without_prompts_is_refused(tmp_path):
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert "ppo needs prompt" in refused("data.path=text.jsonl", "data.eval_size=0")


def test_reward_adapters_that_do_not_fit_are_refused(train, pairs, reward_run, tmp_path):
    policy = train("+recipe=dpo_smollm2")
    said = refused("~reward", f"+reward.rm.model={policy.path}")
    assert "reward.rm.model=" in said
    assert "is a LORA adapter for CAUSAL_LM" in said
    config = reward_run.model / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "acme/other"}))
    said = refused("~reward", f"+reward.rm.model={reward_run.path}")
    assert "was trained on 'acme/other', but the policy's base model is" in said
    assert "reward.rm.shared=false" in said
    said = refused("~reward", f"+reward.rm={{model: {reward_run.path}, args: {{batch_size: 2}}}}")
    assert "reward.rm.args.batch_size: a reward model on the policy's base takes scale, length_penalty, cal" in said


def test_steps_are_counted_in_whole_rollouts(pairs):
    run, _ = compose(
        *(RECIPE, *SMALL, *LETTER, "trainer.args.max_steps=-1", "trainer.args.num_train_epochs=2"),
        *("trainer.args.per_device_train_batch_size=3", "trainer.args.gradient_accumulation_steps=2"),
        *("trainer.args.num_mini_batches=2", "trainer.args.num_ppo_epochs=3"),
    )
    # 32 prompts are two rollouts of 12; each is learned from 3 times in 2 steps.
    assert schedule(run, 32) == (2 * 2 * 6, 12, 6)


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize("name", ["ppo_smollm2", "ppo_hacking", "ppo_sentiment_smollm2"])
def test_recipe_trains_on_its_own_data(train, name):
    run = train(
        *(f"+recipe={name}", "model=tiny", "data.max_train_rows=8", "data.max_eval_rows=4", "tracking=none"),
        *("probe.prompts=1", "probe.greedy_prompts=1", "probe.max_new_tokens=4", "trainer.args.max_steps=2"),
        *("trainer.args.per_device_train_batch_size=4", "trainer.args.max_completion_length=4"),
        small=False,
    )
    assert run.finished()


@pytest.mark.slow
def test_the_kl_penalty_decides_whether_the_reward_is_hacked(train):
    last = {}
    for beta in (0.0001, 0.2):
        run = train("+recipe=ppo_hacking", f"trainer.args.beta={beta}", "tracking=none", "probe=none", small=False)
        last[beta] = json.loads((run.path / "run.json").read_text())["metrics"]
    assert last[0.0001]["rewards/words/mean"] > 2 * last[0.2]["rewards/words/mean"]
    assert last[0.0001]["objective/kl"] > 10 * last[0.2]["objective/kl"]
    assert last[0.0001]["entropy"] < last[0.2]["entropy"] - 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], ": PPO takes the reward on its base, rm, before the others; set reward.NAME.weight in its place"),
        (["reward.rm.shared=false"], None),
        (["reward.rm.shared=false", "reward.letter.weight=0.5"], " would replace reward.letter.weight=0.5; set"),
    ],
)
def test_weights_that_would_go_to_other_rewards_are_refused(tmp_path, overrides, said):
    (tmp_path / "rm").mkdir()
    (tmp_path / "rm" / "adapter_config.json").write_text("{}")
    rewards = (*LETTER, f"+reward.rm={{model: {tmp_path / 'rm'}, shared: true}}", "trainer.args.reward_weights=[0,1]")
    found = online.check(compose(RECIPE, *SMALL, *rewards, *overrides)[0])
    assert [error[:36] for error in found] == (["trainer.args.reward_weights=[0, 1]" + said[:2]] if said else [])
    assert said is None or said in found[0]


def test_logged_completions_do_not_steer_the_terminal(train, pairs, capsys):
    row = json.loads(pairs.read_text().splitlines()[0])
    row["prompt"][-1]["content"] = "\x1b]0;owned\x07?\x1b[31m"
    pairs.write_text((json.dumps(row) + "\n") * 16)
    train(RECIPE, *LETTER, *SHORT, "trainer.args.max_steps=1", "trainer.args.log_completions=true", "data.eval_size=0")
    said = capsys.readouterr().out
    assert "]0;owned" in said
    assert "\x1b" not in said
