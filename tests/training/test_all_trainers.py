"""Every trainer of the installed TRL, on the tiny model: it trains its adapter, continues exactly, and is reported.

Those of `SERVED` need a vLLM server and a GPU: their options and rows are checked, and they are not run.
"""

import json
import math
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from posttrain.config import recipes, trainer_names, trainers
from posttrain.errors import PosttrainError
from posttrain.jobs import preflight
from posttrain.jobs.train import train as job
from posttrain.runs.directory import RunDirectory
from tests.helpers.runs import SMALL, compose, rows, weights, write_pairs

SERVED = ("async_distillation", "async_grpo", "server_distillation")
# These have tests of their own: test_train.py, test_continue.py, tests/ppo.
ELSEWHERE = ("sft", "reward", "dpo", "kto", "grpo", "rloo", "ppo")
KINDS = [name for name in trainer_names.names() if name not in (*SERVED, *ELSEWHERE)]
# They learn from pairs, from a teacher, and from completions they draw: that the others continue exactly is told by
# `make test-slow`.
EXAMPLES = ("orpo", "distillation", "online_dpo")
STEPS = 4


def write_rows(folder):
    write_pairs(folder / "pairs.jsonl")
    said = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    reference = [{"role": "assistant", "content": "yes yes"}]
    more = {"triples": {"reference": reference}, "advised": {"privileged_context": "Say yes."}}
    for name, columns in more.items():
        text = "".join(json.dumps({**row, **columns}) + "\n" for row in said)
        (folder / f"{name}.jsonl").write_text(text)


def command(name, *more):
    kind = trainers.of(name)
    words = [f"trainer={name}", "data=squad", *SMALL, "peft=lora", "trainer.args.learning_rate=1e-2", "data.columns={}"]
    words += [f"trainer.args.max_steps={STEPS}", "trainer.args.gradient_checkpointing=false", "data.max_eval_rows=null"]
    if kind.reads in ("triples", "advised"):
        words.append(f"data.path={kind.reads}.jsonl")
    if kind.takes_rewards:
        words.append("+reward.letter.function=tests.helpers.rewards.letter")
    if kind.has("success_reward_threshold"):
        words.append("trainer.args.success_reward_threshold=0.5")
    if kind.has_teacher:
        words += ["trainer.teacher.model=outputs/teacher"]
    for option in ("max_completion_length", "max_new_tokens"):
        if kind.has(option):
            words += [f"trainer.args.{option}=8", "data.eval_size=2"]
    return [*words, *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all runs of this file lie; `outputs/teacher` is a run that the others may learn from."""
    place = tmp_path_factory.mktemp("trainers")
    before = os.getcwd()
    os.chdir(place)
    try:
        write_rows(place)
        words = ["trainer=sft", "data=squad", *SMALL, "data.columns={}", "peft=lora", "trainer.args.learning_rate=3e-2"]
        run, origin = compose(*words, "name=teacher", "data.max_eval_rows=null")
        job(run, origin)
        RunDirectory.of(run, origin).path.rename(place / "outputs/teacher")
    finally:
        os.chdir(before)
    return place


@pytest.fixture(autouse=True)
def _there(folder, monkeypatch, _elsewhere):
    monkeypatch.chdir(folder)


def stopped_at(step, monkeypatch):
    """The run is told to end after `step`, as by SIGTERM."""
    from posttrain.training.resume import Resumable

    heed = Resumable.stop_on_signal

    def heed_signals(self):
        if self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
            while not self.signals.number:
                time.sleep(0.01)
        heed(self)

    monkeypatch.setattr(Resumable, "stop_on_signal", heed_signals)


def trained(name):
    """The weights that a run saves, once it is seen to have learned."""
    kind = trainers.of(name)
    run, origin = compose(*command(name, f"name={name}"))
    preflight.check(run)
    job(run, origin)
    whole = RunDirectory.of(run, origin)
    logged = rows(whole.metrics)
    losses = [row["loss"] for row in logged if "loss" in row]
    assert len(losses) == STEPS
    assert all(map(math.isfinite, losses))
    held_out = [row["eval_loss"] for row in logged if "eval_loss" in row]
    if kind.evaluates and not kind.takes_rewards and name not in ("sdft", "iw_opd"):
        assert held_out[-1] < held_out[0], "it learns on held-out rows"
    saved = weights(whole.model)
    assert all("lora_" in weight for weight in saved)
    assert all(value.abs().sum() > 0 for weight, value in saved.items() if "lora_B" in weight)
    card = (whole.model / "README.md").read_text()
    assert f"trained by `{name}`" in card
    return saved


@pytest.mark.parametrize("name", [name for name in KINDS if name not in EXAMPLES])
def test_it_trains(name):
    trained(name)


@pytest.mark.parametrize(
    "name", [*EXAMPLES, *(pytest.param(name, marks=pytest.mark.slow) for name in KINDS if name not in EXAMPLES)]
)
def test_it_trains_and_continues_exactly(name, monkeypatch):
    saved = trained(name)
    run, origin = compose(*command(name, f"name={name}-parts"))
    with monkeypatch.context() as patch:
        stopped_at(STEPS // 2, patch)
        with pytest.raises(SystemExit):
            job(run, origin)
    job(run, origin)
    parts = weights(RunDirectory.of(run, origin).model)
    different = [weight for weight in saved if not torch.equal(saved[weight], parts[weight])]
    assert different == []


# What falls or rises as it learns, where the loss does not show it: the metric, on held-out rows or in training,
# whether it rises, and settings with which some seconds show it beyond chance.
SIGNS = {
    "a2po": ("eval_reward", True, []),
    "gmpo": ("reward", True, ["peft=none", "trainer.args.learning_rate=3e-3", "data.max_eval_rows=1"]),
    "online_dpo": ("objective/scores", True, ["peft=none", "trainer.args.learning_rate=3e-3"]),
    "iw_opd": ("eval_loss", False, []),
    # Their teacher is the model itself, told more; as one that stays it is something to come nearer to.
    "sdft": ("eval_loss", False, ["trainer.args.learning_rate=1e-3", "trainer.args.teacher_model_kind=base"]),
    "sdpo": ("eval_sdpo/distillation_loss", False, ["trainer.args.teacher_model_kind=base"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SIGNS)
def test_one_whose_loss_says_little_learns(name):
    metric, rises, more = SIGNS[name]
    batch = 32 if "peft=none" in more else 8
    words = [f"trainer.args.per_device_train_batch_size={batch}", "trainer.args.max_steps=30", *more]
    found = [
        abs(row[metric]) for row in rows(job_of(*command(name, f"name={name}-learns", *words)).metrics) if metric in row
    ]
    few = max(len(found) // 6, 1)
    before, after = sum(found[:few]) / few, sum(found[-few:]) / few
    assert after > 1.1 * before if rises else after < 0.7 * before, (before, after)


@pytest.mark.parametrize("name", SERVED)
def test_one_that_needs_a_server_is_checked(name):
    kind = trainers.of(name)
    assert kind.samples_completions
    run, _ = compose(*command(name))
    preflight.check(run)
    run.trainer.args["max_completion_lenght"] = 8
    with pytest.raises(PosttrainError, match="did you mean max_completion_length"):
        preflight.check(run)


def test_all_stand_in_one_report(capsys):
    from posttrain.report.__main__ import main

    assert main(["outputs"]) in (0, None)
    said = capsys.readouterr().out
    for name in KINDS:
        if (Path("outputs") / name).exists() or list(Path("outputs").glob(f"{name}-*")):
            assert name in said


def test_a_class_of_the_users_own_needs_no_entry(folder, monkeypatch):
    """One that inherits TRL's conventions: what it is, is told from the class."""
    (folder / "mine.py").write_text(
        "from dataclasses import dataclass, field\n"
        "from trl import DPOConfig, DPOTrainer\n"
        "@dataclass\n"
        "class BoldConfig(DPOConfig):\n"
        "    boldness: float = field(default=2.0)\n"
        "class BoldTrainer(DPOTrainer):\n"
        "    def __init__(self, model, args: BoldConfig | None = None, **kwargs):\n"
        "        super().__init__(model, args=args, **kwargs)\n"
        "    def _compute_loss(self, *args, **kwargs):\n"
        "        return super()._compute_loss(*args, **kwargs) * self.args.boldness\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    kind = trainers.of("mine.BoldTrainer")
    assert (kind.reads, kind.reference, kind.default("boldness")) == ("pairs", True, 2.0)
    words = [word for word in command("dpo") if not word.startswith("trainer=")]
    run, origin = compose("trainer=dpo", *words, "trainer.kind=mine.BoldTrainer", "+trainer.args.boldness=3.0")
    preflight.check(run)
    job(run, origin)
    first = next(row["loss"] for row in rows(RunDirectory.of(run, origin).metrics) if "loss" in row)
    assert first == pytest.approx(3 * math.log(2), rel=1e-4)
    assert RunDirectory.of(run, origin).name.startswith("BoldTrainer-")
    run.trainer.args["boldnes"] = 1.0
    with pytest.raises(PosttrainError, match="boldnes: not an option of BoldConfig; did you mean boldness"):
        preflight.check(run)


def test_a_reference_that_follows_at_once_leaves_nothing_to_prefer(monkeypatch):
    """With alpha 1 at every step the policy is its own reference, so DPO's loss stays log 2, and a run continues so."""
    sync = ["trainer.args.sync_ref_model=true", "trainer.args.ref_model_mixup_alpha=1.0"]
    run, origin = compose(*command("dpo", "name=follows", *sync, "trainer.args.ref_model_sync_steps=1"))
    preflight.check(run)
    job(run, origin)
    logged = rows(RunDirectory.of(run, origin).metrics)
    assert [row["loss"] for row in logged if "loss" in row] == pytest.approx([math.log(2)] * STEPS, rel=1e-5)

    slow = command("dpo", *sync[:1], "trainer.args.ref_model_mixup_alpha=0.5", "trainer.args.ref_model_sync_steps=2")
    whole = job_of(*slow, "name=slow")
    assert min(row["eval_loss"] for row in rows(whole.metrics) if "eval_loss" in row) < math.log(2)
    run, origin = compose(*slow, "name=slow-parts")
    with monkeypatch.context() as patch:
        stopped_at(3, patch)
        with pytest.raises(SystemExit):
            job(run, origin)
    job(run, origin)
    first, second = weights(whole.model), weights(RunDirectory.of(run, origin).model)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not (whole.model / "ref").exists()


def job_of(*words):
    run, origin = compose(*words)
    job(run, origin)
    return RunDirectory.of(run, origin)


def table_of_the_docs():
    """`trainer=` -> class, what it is said to be tested by, of docs/trainers.md."""
    text = (recipes.PACKAGE.parent / "docs/trainers.md").read_text()
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `") and "Trainer`" in line]
    cells = [[cell.strip() for cell in line] for line in lines]
    return {name.strip("` "): (row[1].strip("`"), row) for row in cells for name in row[0].split(",")}


def test_the_page_lists_every_trainer_of_the_installed_trl():
    """A trainer that a newer TRL has and the page has not, or the other way round, fails here."""
    from importlib.metadata import version

    said = table_of_the_docs()
    assert set(trainer_names.names()) == set(said) - {"simpo"}
    for name, (path, row) in said.items():
        kind = trainers.of("cpo" if name == "simpo" else name)
        assert kind.path == path
        assert ("`reward`" in row[3]) == kind.takes_rewards, name
        assert ("teacher" in row[3]) == (kind.has_teacher and name not in SERVED), name
        assert ("options only" in row[4]) == (name in SERVED), name
    assert f"TRL {'.'.join(version('trl').split('.')[:2])}" in (recipes.PACKAGE.parent / "docs/trainers.md").read_text()


@pytest.mark.parametrize("name", ["distillation", "gkd"])
def test_a_teacher_is_loaded_in_4_bit(name, monkeypatch):
    """Its weights alone: the student and its adapter stay as they are."""
    from bitsandbytes.nn import Linear4bit

    from posttrain.training import build

    made, original = {}, build.build
    monkeypatch.setattr(build, "build", lambda kind, parts: made.setdefault("trainer", original(kind, parts)))
    words = ["trainer.teacher.quantization={load_in_4bit: true, bnb_4bit_quant_type: nf4}", "trainer.args.max_steps=2"]
    run = job_of(*command(name, f"name={name}-4bit", *words))
    teacher = made["trainer"].teacher_model
    assert any(isinstance(module, Linear4bit) for module in teacher.modules())
    assert not any(isinstance(module, Linear4bit) for module in made["trainer"].model.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    losses = [row["loss"] for row in rows(run.metrics) if "loss" in row]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    assert all(value.abs().sum() > 0 for weight, value in weights(run.model).items() if "lora_B" in weight)


def test_bema_follows_the_policy_by_way_of_a_callback(monkeypatch):
    """TRL's moving average of the weights (BEMA) as a callback: averaged, and saved with the run."""
    from posttrain.training import build

    made, original = {}, build.build
    monkeypatch.setattr(build, "build", lambda kind, parts: made.setdefault("trainer", original(kind, parts)))
    words = ["peft=none", "trainer.args.learning_rate=1e-3", "trainer.callbacks=[{trl.BEMACallback: {update_freq: 1}}]"]
    run = job_of(*command("sft", "name=bema", *words))
    callback = next(c for c in made["trainer"].callback_handler.callbacks if type(c).__name__ == "BEMACallback")
    averaged = dict(callback.running_model.named_parameters())
    trained = dict(made["trainer"].model.named_parameters())
    moved = [name for name in trained if not torch.equal(trained[name], averaged[name])]
    assert moved, "the average is behind the policy"
    assert run.finished()
    assert list(run.path.rglob("bema"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("orpoo", "did you mean orpo"),
        ("nash_md", r"TRL \S+ has no such trainer; choose from .*tpo, or package.module.Class"),
        ("trl.experimental.nash_md.NashMDTrainer", "no such class"),
        ("trl.CPOTrainer", "CPOTrainer is trainer=cpo here, at trl.experimental.cpo.CPOTrainer"),
        ("trl.PPOTrainer", "PPOTrainer is trainer=ppo here, at posttrain.ppo.PPOTrainer"),
        ("trl.TrlParser", "no config class is found"),
    ],
)
def test_a_trainer_that_is_not_there_gets_one_message(name, said):
    run, _ = compose("trainer=dpo", "data=squad", *SMALL, f"trainer.kind={name}")
    with pytest.raises(PosttrainError, match=said) as error:
        preflight.check(run)
    assert len(str(error.value).splitlines()) == 1


TOOL = '''
def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a + b


from transformers import TrainerCallback


class Counts(TrainerCallback):
    steps = 0

    def __init__(self, every: int = 1):
        self.every = every

    def on_step_end(self, args, state, control, **kwargs):
        Counts.steps += self.every


class Sees(TrainerCallback):
    seen = None

    def __init__(self, trainer):
        Sees.seen = type(trainer).__name__
'''


def test_tools_and_callbacks_are_the_users_own_code(folder, monkeypatch):
    import trl

    from posttrain.training import build

    (folder / "own_code.py").write_text(TOOL)
    monkeypatch.syspath_prepend(str(folder))
    template = Path(trl.__file__).parent / "chat_templates/qwen3.jinja"
    words = ["trainer.tools=[own_code.add]", f"model.chat_template={template}", "trainer.args.max_steps=1"]
    words += ["trainer.callbacks=[{own_code.Counts: {every: 5}}, own_code.Sees]", "trainer.args.num_generations=4"]
    run, origin = compose(*command("grpo", "name=tools", *words, "trainer.args.eval_strategy=no"))
    preflight.check(run)
    made, original = {}, build.build
    monkeypatch.setattr(build, "build", lambda kind, parts: made.setdefault("trainer", original(kind, parts)))
    job(run, origin)
    import own_code

    assert made["trainer"].tools == [own_code.add]
    assert (own_code.Counts.steps, own_code.Sees.seen) == (5, "GRPOTrainer")


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("dpo", ["trainer.tools=[os.getcwd]"], "trainer.tools: dpo takes none; choose trainer=.*grpo"),
        ("grpo", ["trainer.tools=[os.getcwdd]"], "trainer.tools=os.getcwdd: .*getcwdd"),
        ("grpo", ["trainer.environment=nowhere.Env"], "trainer.environment=nowhere.Env: no module"),
        ("sft", ["trainer.callbacks=[trl.Nothing]"], "trainer.callbacks=trl.Nothing: no such class"),
        (
            "sft",
            ["trainer.callbacks=[{trl.BEMACallback: {updates: 2}}]", "peft=none"],
            "trainer.callbacks.trl.BEMACallback.updates: takes update_freq",
        ),
        ("sft", ["trainer.callbacks=[trl.BEMACallback]"], "it averages all weights .*; set peft=none"),
        ("distillation", ["trainer.teacher.model=null"], "trainer.teacher.model: distillation learns from a teacher"),
        ("dpo", ["trainer.teacher.model=embedded:tiny"], "dpo has no teacher; choose trainer=.*distillation"),
        (
            "distillation",
            ["trainer.teacher.quantization={load_in_4bits: true}"],
            "trainer.teacher.quantization.load_in_4bits: not an option of BitsAndBytesConfig; did you mean",
        ),
        (
            "grpo",
            ["trainer.environment=collections.Counter"],
            "Counter: has no method reset, which begins each rollout",
        ),
        ("grpo", ["trainer.tools=[os.getcwd,os.path.getcwd]"], "trainer.tools: several are called getcwd"),
        (
            "sft",
            ["trainer.callbacks=[transformers.EarlyStoppingCallback]"],
            "EarlyStoppingCallback: watches a metric; set trainer.args.metric_for_best_model=eval_loss",
        ),
    ],
)
def test_what_is_wrong_with_code_and_teachers_is_said_before_anything_loads(name, words, said):
    run, _ = compose(*command(name, *words))
    with pytest.raises(PosttrainError, match=said):
        preflight.check(run)


def test_an_argument_of_a_callback_has_the_type_that_its_class_states():
    from posttrain.training import trainer_arguments

    for value, said in (("fast", "expected int"), (3, None)):
        words = ["peft=none", f"trainer.callbacks=[{{trl.BEMACallback: {{update_freq: {value}}}}}]"]
        run, _ = compose(*command("sft", *words))
        preflight.check(run)
        if said is None:
            trainer_arguments.check_code(run)
        else:
            with pytest.raises(PosttrainError, match=f"trl.BEMACallback: update_freq='{value}': {said}"):
                trainer_arguments.check_code(run)


def test_an_attention_is_left_to_the_trainers_that_have_their_own(monkeypatch):
    """TRL gives them one for rows that are packed without padding; another would be given twice, or be wrong."""
    from types import SimpleNamespace

    from posttrain.jobs import train
    from posttrain.models import hardware

    assert {name for name in trainer_names.names() if trainers.of(name).own_attention} == {
        "async_grpo",
        "async_distillation",
    }
    directory = SimpleNamespace(checkpoints="x", name="x")
    for name, setting, given in (
        ("async_grpo", "auto", None),
        ("grpo", "auto", "sdpa"),
        ("async_grpo", "eager", "eager"),
    ):
        run, _ = compose(*command(name, f"model.attn_implementation={setting}"))
        precision = hardware.precision(run.model, run.peft, run.trainer.args)
        plan = SimpleNamespace(
            precision=precision, start=SimpleNamespace(revision=None), data=SimpleNamespace(eval=None), steps=10
        )
        args = train.trainer_args(run, plan, directory, "none")
        assert args["model_init_kwargs"].get("attn_implementation") == given


def test_a_teacher_that_is_the_student_is_named_in_the_plan(capsys):
    run, origin = compose(*command("distillation", "trainer.teacher.model=embedded:tiny", "dry_run=true"))
    job(run, origin)
    said = " ".join(capsys.readouterr().out.split())
    assert "teacher embedded:tiny: the model that is trained, so nothing will change; set trainer.teacher.model" in said


def test_a_teacher_of_another_vocabulary_is_refused_before_its_weights_load(tmp_path):
    from transformers import AutoTokenizer

    from posttrain.jobs import train_plan
    from posttrain.runs.pretrained import pretrained_path

    place = tmp_path / "other"
    tiny = Path(pretrained_path("embedded:tiny"))
    place.mkdir()
    for file in tiny.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.add_tokens(["<another>"])
    tokenizer.save_pretrained(place)
    run, _ = compose(*command("distillation", f"trainer.teacher.model={place}"))
    with pytest.raises(PosttrainError, match=r"its tokens are not those of model\.path=embedded:tiny"):
        train_plan.prepare(run, tmp_path)
