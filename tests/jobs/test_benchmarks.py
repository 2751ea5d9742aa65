"""evaluate.tasks: benchmarks of lm-eval, on a task of one's own that needs no network."""

import json

import pytest

from posttrain.errors import PosttrainError
from posttrain.jobs import preflight
from tests.helpers.runs import compose

TASK = """
task: agrees
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
target_delimiter: ""
doc_to_choice: ["non", "yes"]
doc_to_target: 1
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
EVALUATE = ("job=evaluate", "evaluate.resamples=200")


@pytest.fixture
def tasks(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "questions.jsonl").write_text("".join(json.dumps({"question": f"{n}?"}) + "\n" for n in range(12)))
    (folder / "agrees.yaml").write_text(TASK.format(file=folder / "questions.jsonl"))
    return folder


@pytest.mark.slow
def test_a_run_against_its_start_on_a_task_of_ones_own(train, tasks):
    """The tiny model learns to prefer yes; lm-eval asks both, and every number is its own, with our intervals."""
    pytest.importorskip("lm_eval")
    words = ["trainer=dpo", "data=squad", "data.columns={}", "peft=lora", "trainer.args.learning_rate=3e-2"]
    run = train(*words, "trainer.args.max_steps=8")
    more = [f"evaluate.task_path={tasks}", "evaluate.tasks=[agrees]", "evaluate.against=embedded:tiny"]
    more.append("evaluate.apply_chat_template=true")
    record = train(*words, *EVALUATE, f"model.init_from={run.path}", *more).record()
    found, own = record["metrics"], record["benchmarks"]
    assert [one["agrees"]["acc,none"] for one in own] == [found["tasks/agrees/acc"], found["against/tasks/agrees/acc"]]
    assert found["difference/tasks/agrees/acc"] == found["tasks/agrees/acc"] - found["against/tasks/agrees/acc"]
    assert found["tasks/agrees/acc"] == 1.0 > found["against/tasks/agrees/acc"]
    assert record["counts"]["tasks/agrees/acc"] == 12
    low, high = record["intervals"]["difference/tasks/agrees/acc"]
    assert 0 < low <= found["difference/tasks/agrees/acc"] <= high
    limited = train(*words, *EVALUATE, f"model.init_from={run.path}", *more[:2], "evaluate.limit=5").record()
    assert limited["counts"]["tasks/agrees/acc"] == 5
    with pytest.raises(PosttrainError, match=r"evaluate\.tasks=agreees: lm-eval has no such task; did you mean agrees"):
        train(*words, *EVALUATE, f"model.init_from={run.path}", more[0], "evaluate.tasks=[agreees]")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate.limit=5"], "evaluate.limit: only read with evaluate.tasks"),
        (["evaluate.tasks=[arc_easy]", "evaluate.task_path=nowhere"], "evaluate.task_path=nowhere: no such folder"),
        (["evaluate.tasks=[arc_easy]", "evaluate.limit=0"], "evaluate.limit=0"),
    ],
)
def test_what_is_wrong_is_said_at_once(words, said):
    run, _ = compose("trainer=dpo", "data=squad", "model=tiny", *EVALUATE, *words)
    with pytest.raises(PosttrainError, match=said):
        preflight.check(run)


def test_without_lm_eval_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setattr("posttrain.extras.missing_modules", lambda *names: list(names))
    run, _ = compose("trainer=dpo", "data=squad", "model=tiny", *EVALUATE, "evaluate.tasks=[arc_easy]")
    with pytest.raises(PosttrainError, match=r"evaluate\.tasks: needs lm-eval, .*pip install .*lm-eval"):
        preflight.check(run)


def test_tasks_make_another_evaluation():
    from posttrain.runs.identity import digest

    plain, _ = compose("trainer=dpo", "data=squad", "model=tiny", *EVALUATE)
    tasked, _ = compose("trainer=dpo", "data=squad", "model=tiny", *EVALUATE, "evaluate.tasks=[arc_easy]")
    assert digest(plain) != digest(tasked)
