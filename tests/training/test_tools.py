"""Tools, environments and rollouts in GRPO, with TRL's own meaning, in training and in the probe's samples.

The policy is scripted: what it would draw is put in the place of the model's own random bytes, and TRL does the rest.
"""

import json

import pytest

from posttrain.data.embedded.calculator import calculate
from posttrain.errors import PosttrainError
from posttrain.jobs import preflight
from tests.helpers.runs import rows

CODE = '''
class Doors:
    """Behind one of three doors is the prize."""

    def reset(self, **row):
        self.opened = None
        return " Three doors."

    def open(self, door: int) -> str:
        """Open a door.

        Args:
            door: Its number.
        """
        self.opened = door
        return "prize" if door == 2 else "nothing"

    def get_reward(self) -> float:
        return float(self.opened == 2)


def right(completions, **columns):
    return [float(turns[-1]["content"] == "5") for turns in completions]


def rollout(prompts, trainer):
    tokenizer = trainer.processing_class
    ids = tokenizer("yes", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    return {"prompt_ids": [[5, 6]] * len(prompts), "completion_ids": [ids] * len(prompts), "logprobs": None}


def nothing(prompts, trainer):
    return None


def half(prompts, trainer):
    return {"prompt_ids": [[5, 6]] * len(prompts)}


def fails(prompts, trainer):
    return 1 / 0


def short(completions, **columns):
    return [float(turns[-1]["content"] == "yes") for turns in completions]
'''
STEPS = ("trainer.args.max_steps=2", "trainer.args.num_generations=4", "trainer.args.eval_strategy=no")
SAMPLES = ("probe.prompts=4", "probe.batch_size=3", "trainer.args.max_completion_length=200")
TRAINED = ("trainer=grpo", "data=squad", "data.columns={}", "peft=lora", *STEPS, *SAMPLES)


@pytest.fixture(autouse=True)
def _code(tmp_path, monkeypatch):
    (tmp_path / "tool_code.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "tool_code", raising=False)


@pytest.fixture
def policy(monkeypatch):
    """Let the policy say `first`, and `second` once a tool has answered; the texts of the prompts that it saw."""
    from trl import GRPOTrainer

    def script(first, second):
        seen = []

        def single_turn(self, prompt_ids, *_, **__):
            texts = [self.processing_class.decode(ids) for ids in prompt_ids]
            seen.extend(texts)
            said = [second if "<tool_response>" in text.split("<tool_call>")[-1] else first for text in texts]
            end = self.processing_class.eos_token_id
            return [self.processing_class(text, add_special_tokens=False)["input_ids"] + [end] for text in said], None

        monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", single_turn)
        return seen

    return script


def call(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def test_a_tool_is_called_in_training_and_in_the_samples(train, policy):
    seen = policy(call("calculate", expression="2 + 3"), "5")
    words = ["trainer.tools=[posttrain.data.embedded.calculator.calculate]", "model.chat_template=trl:qwen2_5"]
    run = train(*TRAINED, *words, "+reward.right.function=tool_code.right")
    assert "Compute an arithmetic expression" in seen[0]
    logged = rows(run.metrics)
    assert [row["tools/call_frequency"] for row in logged if "tools/call_frequency" in row] == [1.0, 1.0]
    assert [row["reward"] for row in logged if "reward" in row] == [1.0, 1.0]
    assert [row["probe/rewards/right"] for row in logged if "probe/rewards/right" in row] == [1.0, 1.0]
    drawn = len(call("calculate", expression="2 + 3")) + len("5") + 2  # bytes, and an EOS for each turn
    assert [row["probe/length"] for row in logged if "probe/length" in row] == [drawn, drawn]
    assert all(row["probe/kl"] >= 0 for row in logged if "probe/kl" in row)
    samples = rows(run.samples)
    assert len(samples) == 8
    for sample in samples:
        assert '"expression": "2 + 3"' in sample["completion"]
        assert "<tool_response>\n5\n</tool_response>" in sample["completion"]


def test_a_tool_that_fails_tells_the_policy_why(train, policy):
    seen = policy(call("calculate", expression="2 +"), "5")
    words = ["trainer.tools=[posttrain.data.embedded.calculator.calculate]", "model.chat_template=trl:qwen2_5"]
    run = train(*TRAINED, *words, "+reward.right.function=tool_code.right", "probe.prompts=0")
    assert [row["tools/failure_frequency"] for row in rows(run.metrics) if "reward" in row] == [1.0, 1.0]
    assert any("no arithmetic expression: 2 +" in text for text in seen)


def test_an_environment_gives_tools_observations_and_the_reward(train, policy):
    seen = policy(call("open", door=2), "found")
    words = ["trainer.environment=tool_code.Doors", "model.chat_template=trl:qwen2_5"]
    run = train(*TRAINED, *words)
    assert "Three doors." in seen[0]
    assert "Open a door" in seen[0]
    logged = rows(run.metrics)
    assert [row["rewards/Doors/mean"] for row in logged if "reward" in row] == [1.0, 1.0]
    assert [row["probe/reward"] for row in logged if "probe/reward" in row] == [1.0, 1.0]
    assert {sample["Doors"] for sample in rows(run.samples)} == {1.0}
    assert "<tool_response>\nprize\n</tool_response>" in rows(run.samples)[0]["completion"]


def test_a_rollout_draws_the_completions(train):
    run = train(*TRAINED, "trainer.rollout=tool_code.rollout", "+reward.short.function=tool_code.short")
    logged = rows(run.metrics)
    assert [row["reward"] for row in logged if "reward" in row] == [1.0, 1.0]
    assert [row["probe/rewards/short"] for row in logged if "probe/rewards/short" in row] == [1.0, 1.0]
    assert {sample["completion"] for sample in rows(run.samples)} == {"yes"}


@pytest.mark.parametrize(
    ("rollout", "said"),
    [
        ("nothing", "returned NoneType; return a dict with prompt_ids, completion_ids, logprobs"),
        ("half", "returned a dict with prompt_ids; return a dict with"),
        ("fails", r"ZeroDivisionError: .*tool_code.py:"),
    ],
)
def test_a_rollout_that_fails_is_named(train, rollout, said):
    with pytest.raises(PosttrainError, match=f"trainer.rollout=tool_code.{rollout}: {said}"):
        train(*TRAINED, f"trainer.rollout=tool_code.{rollout}", "+reward.short.function=tool_code.short")


def test_a_template_without_calls_is_refused_before_weights_load(train):
    words = ["trainer.tools=[posttrain.data.embedded.calculator.calculate]", "+reward.right.function=tool_code.right"]
    with pytest.raises(PosttrainError, match=r"trainer\.tools: TRL cannot read calls .* such as trl:qwen2_5"):
        train(*TRAINED, *words)


def test_a_template_that_trl_does_not_bring_is_told():
    from tests.helpers.runs import compose

    run, _ = compose("trainer=sft", "data=squad", "model=tiny", "model.chat_template=trl:qwen2_6")
    with pytest.raises(PosttrainError, match=r"TRL brings no such template; did you mean .*qwen2_5"):
        preflight.check(run)


@pytest.mark.parametrize(
    ("expression", "value"),
    [("12 + 7", "19"), ("(2 - 5) * 4", "-12"), ("1 / 3", "0.333333"), ("0.1 + 0.2", "0.3"), ("-7 / 7", "-1")],
)
def test_the_calculator_computes_exactly(expression, value):
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("2 ** 9", "only numbers"),
        ("__import__('os')", "only numbers"),
        ("True + 1", "only numbers"),
        ("1 / 0", "division by zero"),
        ("two", "only numbers"),
        ("", "no arithmetic expression"),
        ("1" * 201, "longer than"),
    ],
)
def test_the_calculator_evaluates_nothing_else(expression, said):
    with pytest.raises(ValueError, match=said):
        calculate(expression)


def test_the_demonstrations_show_the_calculator_as_it_is():
    from transformers.utils import get_json_schema

    from posttrain.data.embedded import arithmetic

    data = arithmetic.load()
    assert data["demonstrations"][0]["tools"] == [get_json_schema(calculate)]
    for row in data["demonstrations"].select(range(20)):
        call, result, answer = row["messages"][2:]
        expression = call["tool_calls"][0]["function"]["arguments"]["expression"]
        assert expression in row["messages"][1]["content"]
        assert calculate(expression) == result["content"]
        assert result["content"] in answer["content"]
    asked = [row["prompt"][1]["content"] for name in ("train", "eval") for row in data[name]]
    assert len(set(asked)) == len(asked)
    assert data["train"].to_list() == arithmetic.load()["train"].to_list()
