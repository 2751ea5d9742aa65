"""Several reward models as one, and reward models whose scores are put right by their calibration."""

import statistics

import pytest

from posttrain import rewards
from posttrain.config.schema import RewardConfig
from posttrain.errors import PosttrainError
from posttrain.jobs import preflight
from posttrain.rewards.calibration import read
from posttrain.rewards.ensemble import combined
from tests.helpers.runs import compose

LORA = ("peft=lora", "peft.lora.r=2")
PROMPTS = [[{"role": "user", "content": "Hi?"}], [{"role": "user", "content": "And you?"}]]
GIVEN = {"prompts": PROMPTS, "completions": [[{"role": "assistant", "content": c}] for c in ("Yes.", "No, no.")]}
ENSEMBLE = ("reward=ensemble", "data.path=embedded:squad")


def test_combined_by_hand():
    """1, 2, 6: mean 3, population variance (4 + 1 + 9) / 3."""
    assert combined([1.0, 2.0, 6.0], "mean", 1.0) == 3.0
    assert combined([1.0, 2.0, 6.0], "min", 1.0) == 1.0
    assert combined([1.0, 2.0, 6.0], "mean_minus_std", 0.5) == pytest.approx(3 - 0.5 * (14 / 3) ** 0.5)


@pytest.fixture
def members(train):
    """Two adapters on one base, and a model trained in full."""
    options = ("trainer.args.max_steps=2", "trainer.args.learning_rate=0.05")
    return [
        str(train("+recipe=reward_smollm2", *LORA, *options).path),
        str(train("+recipe=reward_smollm2", *LORA, *options, "trainer.args.seed=7").path),
        str(train("+recipe=reward_smollm2", "peft=none", *options).path),
    ]


def test_members_score_as_they_do_alone_and_adapters_share_their_base(members, train):
    from posttrain.rewards.ensemble import Ensemble
    from posttrain.rewards.model import RewardModel

    alone = [RewardModel(path)(**GIVEN) for path in members]
    assert len({round(scores[0], 4) for scores in alone}) == 3  # else nothing below would tell them apart
    ensemble = Ensemble(members, combine="mean_minus_std", k=2.0)
    for _ in range(2):
        for member, scores in zip(ensemble.members, alone, strict=True):
            assert member(**GIVEN) == pytest.approx(scores, abs=1e-5)
    one, two, whole = ensemble.members
    assert one.model is two.model
    assert whole.model is not one.model
    logged = {}
    expected = [statistics.fmean(row) - 2 * statistics.pstdev(row) for row in zip(*alone, strict=True)]
    assert ensemble(**GIVEN, log_metric=logged.__setitem__) == pytest.approx(expected, abs=1e-4)
    spreads = [statistics.pstdev(row) for row in zip(*alone, strict=True)]
    assert logged["ensemble/std"] == pytest.approx(statistics.fmean(spreads), abs=1e-4)

    short = ("trainer.args.max_steps=1", "trainer.args.max_completion_length=4", "trainer.args.num_generations=2")
    run = train(
        "+recipe=rloo_smollm2", "reward=ensemble", "reward.ensemble.args.combine=min",
        "reward.ensemble.args.models={a: " + members[0] + ", b: " + members[1] + "}", *short,
    )  # fmt: skip
    parents = [p["path"] for p in run.record()["parents"] if p["role"] == "reward.ensemble"]
    assert parents == members[:2]


def test_an_evaluation_calibrates_and_rewards_read_it(train):
    from posttrain.rewards.model import RewardModel

    options = ("+recipe=reward_smollm2", *LORA, "trainer.args.max_steps=4", "trainer.args.learning_rate=0.05")
    reward = train(*options)
    key = {"rm": RewardConfig(model=str(reward.path), args={"scale": "zscore"})}
    [error] = rewards.check_reachable(key, "reward")
    assert "calibration.json is not there; it is measured by job=evaluate" in error
    found = train(*options, "job=evaluate", f"model.init_from={reward.path}")
    assert rewards.check_reachable(key, "reward") == []
    known = read(str(reward.path), "")
    from posttrain.rewards.ensemble import Ensemble

    one = Ensemble({"a": str(reward.path), "b": str(reward.path)}, scale="zscore", calibration={"b": str(found.path)})
    assert one(**GIVEN) == pytest.approx(rewards.resolve(key)["rm"](**GIVEN), abs=1e-4)
    assert known == read(str(found.path), "")
    assert found.record()["calibration"]["raw"]["mean"] == known.raw.mean
    assert known.pairs == 8
    assert known.raw.accuracy == found.record()["metrics"]["accuracy"]
    assert any("expected calibration error" in note for note in found.record()["notes"])

    plain = RewardModel(str(reward.path))
    scores = plain(**GIVEN)
    lengths = [plain.length(p, plain.ids(p, c)) for p, c in zip(PROMPTS, GIVEN["completions"], strict=True)]
    # The byte-level tokenizer: a byte a token, the end of the turn and the newline after it.
    assert lengths == [len("Yes.") + 2, len("No, no.") + 2]

    def given(**args):
        [function] = rewards.resolve({"rm": RewardConfig(model=str(reward.path), args=args)}).values()
        return function(**GIVEN)

    assert given(scale="zscore") == pytest.approx([(s - known.raw.mean) / known.raw.std for s in scores], abs=1e-4)
    assert given(scale="temperature") == pytest.approx([s / known.raw.temperature for s in scores], rel=1e-4)
    assert given(scale="batch") == pytest.approx([1.0, -1.0] if scores[0] > scores[1] else [-1.0, 1.0], abs=1e-4)
    penalised = [s - 0.5 * n for s, n in zip(scores, lengths, strict=True)]
    assert given(length_penalty=0.5) == pytest.approx(penalised, abs=1e-4)
    residual = [s - known.slope * (n - known.length) for s, n in zip(scores, lengths, strict=True)]
    assert given(length_penalty="fitted", calibration=str(found.path)) == pytest.approx(residual, abs=1e-4)

    model = ("+recipe=rloo_smollm2", "reward=rm", f"reward.rm.model={reward.path}", "reward.rm.shared=false")
    from posttrain.runs.identity import digest

    digests = [digest(compose(*model, *more)[0]) for more in ((), ("reward.rm.args.scale=zscore",))]
    (reward.path / "calibration.json").write_text((reward.path / "calibration.json").read_text() + " ")
    again = [digest(compose(*model, *more)[0]) for more in ((), ("reward.rm.args.scale=zscore",))]
    assert again[0] == digests[0]
    assert again[1] != digests[1]  # another calibration, another run


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["reward.ensemble.args.models=[a]"], "args.models=['a']: expected at least two runs or hub ids"),
        (["reward.ensemble.args.models=[a,a]"], "args.models: a is named twice"),
        (["reward.ensemble.args.models=[a,b]", "reward.ensemble.args.combine=max"], "combine=max: choose from mean"),
        (["reward.ensemble.args.models=[a,b]", "reward.ensemble.args.k=-1"], "args.k=-1: expected a number"),
        (["reward.ensemble.args.models=[a,b]", "reward.ensemble.args.k=nan"], "args.k=nan: expected a number"),
        (
            ["reward.ensemble.args.models=[a,b]", "reward.ensemble.args.calibration=5"],
            "args.calibration=5: expected a folder, or null, for each of models",
        ),
        (["reward.ensemble.args.models=[a,b]", "+reward.ensemble.args.scale=z"], "args.scale=z: choose from none"),
        (
            ["reward.ensemble.args.models=[a,b]", "reward.ensemble.args.calibration=[c]"],
            "args.calibration=['c']: expected a folder, or null, for each of models",
        ),
        ([], "reward.ensemble.args.models: required"),
    ],
)
def test_settings_are_checked_before_anything_loads(overrides, said):
    with pytest.raises(PosttrainError) as error:
        preflight.check(compose("+recipe=grpo_smollm2", *ENSEMBLE, *overrides)[0])
    assert said in str(error.value)


def test_args_of_a_reward_model_are_checked():
    model = ("reward=rm", "reward.rm.model=x", "data.path=embedded:squad")
    run, _ = compose("+recipe=grpo_smollm2", *model, "+reward.rm.args={batchsize: 3, scale: minmax}")
    with pytest.raises(PosttrainError) as error:
        preflight.check(run)
    assert "reward.rm.args.batchsize: a reward model takes batch_size" in str(error.value)
    assert "reward.rm.args.scale=minmax: choose from none" in str(error.value)


def test_models_are_looked_at_before_weights_load(monkeypatch, tmp_path):
    from posttrain.models import weights as model_weights

    def reached(models, **args):
        args = {"models": models, **args}
        return rewards.check_reachable(
            {"e": RewardConfig(function="posttrain.rewards.ensemble.Ensemble", args=args)}, "reward"
        )

    assert reached(["./a", "embedded:tiny"]) == [
        f"reward.e.args.models=./a: no such run or folder; {tmp_path} has no a",
        "reward.e.args.models=embedded:tiny: not a reward model; train one with trainer=reward",
    ]
    monkeypatch.setattr(model_weights, "check_model", lambda *args, **kwargs: None)
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
    [error] = reached([str(tmp_path / "x"), str(tmp_path / "y")])
    assert "trained on different bases" in error
    assert "scale=zscore" in error
    assert reached([str(tmp_path / "x"), str(tmp_path / "y")], scale="batch") == []


def test_members_are_given_the_rows_tools():
    from posttrain.rewards.ensemble import Ensemble

    ensemble, seen = Ensemble.__new__(Ensemble), []
    ensemble.combine, ensemble.k = "mean", 1.0
    ensemble.members = [lambda **given: seen.append(given) or [0.0]] * 2
    assert ensemble(completions=["a"], prompts=["q"], tools=[["t"]], self=[1]) == [0.0]
    assert [given["tools"] for given in seen] == [[["t"]]] * 2
