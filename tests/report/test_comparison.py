"""`posttrain report` on run folders of every kind: what is read, pooled, concluded and printed."""

import csv
import io
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from posttrain.errors import PosttrainError
from posttrain.report import plots, style, tables
from posttrain.report.__main__ import main
from posttrain.report.compare import compare
from posttrain.report.gold import chosen_on_gold
from posttrain.report.runs import find
from tests.helpers.report_runs import write_all, write_run, write_sample


def report(capsys, *args):
    """What the command prints; it must succeed."""
    assert main([str(arg) for arg in args]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def as_json(capsys, *args):
    return json.loads(report(capsys, "--format", "json", *args))


def groups(found):
    return {group["label"]: group for group in found["groups"]}


def test_every_method_and_every_state_is_read(tmp_path, capsys):
    found = as_json(capsys, write_all(tmp_path / "outputs"))
    by = groups(found)
    assert list(by) == [
        *("sft", "dpo beta=0.01", "dpo beta=0.1", "kto", "ppo beta=0.1", "ppo beta=0.2", "grpo"),
        *("rloo beta=0.1", "rloo beta=0.9", "reward"),
    ]
    assert by["ppo beta=0.2"]["status"] == by["rloo beta=0.9"]["status"] == "stopped"
    assert by["ppo beta=0.2"]["metrics"]["probe/kl"]["mean"] == 2.0, "the last whole point; NaN is none"
    assert not by["ppo beta=0.2"]["on_front"], "0.9 at 2 nats would win, but there is no such model"
    assert [alarm["name"] for alarm in by["ppo beta=0.1"]["alarms"]] == ["overoptimisation"]
    assert {run["name"]: run["job"] for run in found["other_runs"]} == {"drawn-1": "sample", "evaluated-1": "evaluate"}
    left_out = {Path(path).name: why for path, why in found["left_out"].items()}
    assert left_out == {
        "holiday": "no run, pipeline or sweep",
        "other": "not a run of posttrain: run.json is not an object",
        "third": "not a run of posttrain: its files hold something else",
    }


@pytest.mark.parametrize("rewards", [{"rm": 3}, {"rm": "good"}, {"rm": {"a": 1}}, {"rm": [1, 10**400]}])
def test_edited_files_of_a_sample_are_named_and_the_rest_is_reported(tmp_path, capsys, rewards):
    write_run(tmp_path / "dpo-1", "dpo", [(0, 0, 0.1), (5, 1.0, 0.4)])
    sample = write_sample(tmp_path / "drawn-1", {"rm": [1.0, 2.0]}, 2)
    (sample / "rewards.jsonl").write_text(json.dumps({"rewards": rewards}))
    record = json.loads((sample / "run.json").read_text())
    (sample / "run.json").write_text(json.dumps({**record, "metrics": {"score": "high", "kept": 8}}))
    found = as_json(capsys, tmp_path)
    assert any(note.startswith("drawn-1: no best-of-n baseline: ") for note in found["notes"])
    assert "kept 8" in report(capsys, "--format", "markdown", tmp_path)


@pytest.mark.parametrize("metric", ["probe/kl", "probe/gold/mood"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_run_that_ended_in_nan_says_so_and_does_not_win(tmp_path, capsys, metric, value):
    better = write_run(tmp_path / "broken-1", "dpo", [(0, 0, 0.1), (5, 1.0, 0.9)], args={"beta": 0.01})
    write_run(tmp_path / "whole-1", "dpo", [(0, 0, 0.1), (5, 1.0, 0.4)], args={"beta": 0.1})
    with (better / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 9, "probe/self_bleu": value, metric: value}) + "\n")
    found = as_json(capsys, tmp_path)
    ended = {
        label: [m for m, mean in group["metrics"].items() if mean["ended_in_nan"]]
        for label, group in groups(found).items()
    }
    assert ended == {"dpo beta=0.01": [metric, "probe/self_bleu"], "dpo beta=0.1": []}
    assert [verdict["best"] for verdict in found["verdicts"]] == ["dpo beta=0.1"]
    assert "dpo beta=0.01: ended in NaN, so the last finite values are of no model to choose" in found["notes"]
    (line,) = [
        s
        for s in report(capsys, "--format", "markdown", tmp_path).splitlines()
        if s.startswith("| dpo beta=0.01 | ") and "1.000" in s
    ]
    assert line.count(", then NaN") == 1
    (row, _) = csv.DictReader(io.StringIO(report(capsys, "--format", "csv", tmp_path)))
    assert row["ended in NaN"] == f"{metric} probe/self_bleu"


def test_seeds_are_pooled_with_their_spread(tmp_path, capsys):
    group = groups(as_json(capsys, write_all(tmp_path / "outputs")))["dpo beta=0.1"]
    gold = group["metrics"]["probe/gold/mood"]
    assert group["seeds"] == [1, 2]
    assert gold["mean"] == pytest.approx(0.51)
    assert gold["error"] == pytest.approx(0.02 / math.sqrt(2))
    assert gold["over"] == "seeds"
    # One seed: the standard error over prompts, as the probe logged it.
    alone = groups(as_json(capsys, tmp_path / "outputs"))["dpo beta=0.01"]["metrics"]["probe/gold/mood"]
    assert (alone["error"], alone["over"]) == (0.05, "prompts")


def test_seeds_of_a_whole_pipeline_pool_and_a_copy_does_not_count_twice(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / f"sft-{seed}", "sft", [(0, 0, 0.1), (9, 1.0, 0.2)], seed=seed, parent=None)
        points = [(0, 0, 0.2), (9, 2.0, 0.3)]
        write_run(tmp_path / f"dpo-{seed}", "dpo", points, seed=seed, parent=f"sft-{seed}")
    write_run(tmp_path / "dpo-copy", "dpo", [(0, 0, 0.2), (9, 2.0, 0.3)], seed=1, parent="sft-1")
    comparison = compare(find([tmp_path]), None, [], None)
    assert {group.label: group.seeds for group in comparison.groups} == {"sft": [1, 2], "dpo": [1, 2]}
    assert list(comparison.found.left_out.values()) == ["the same settings and seed as dpo-1"]
    assert comparison.settings["model.init_from"] == ["", "sft-1"]


def test_seeds_pool_whatever_was_measured_saved_or_logged_and_wherever_it_lies(tmp_path):
    """What counts is what was trained, and on which prompts it was measured."""
    points = [(0, 0, 0.1), (9, 1.0, 0.2)]
    often = {"probe": {"every": 5, "during": True, "prompts": 4}, "tracking": {"backend": "none"}, "output_dir": "/a"}
    noted = {"eval_strategy": "steps", "eval_steps": 2, "logging_steps": 1, "save_steps": 5, "beta": 0.1}
    write_run(tmp_path / "a-1", "dpo", points, seed=1, args={"beta": 0.1}, more={"probe": {"prompts": 4}})
    write_run(tmp_path / "a-2", "dpo", points, seed=2, args=noted, more=often)
    where = {"model": {"path": "embedded:tiny", "init_from": "/elsewhere/outputs/sft-0"}, "probe": {"prompts": 4}}
    write_run(tmp_path / "a-3", "dpo", points, seed=3, args={"beta": 0.1}, more=where)
    comparison = compare(find([tmp_path]), None, [], None)
    assert [group.seeds for group in comparison.groups] == [[1, 2, 3]]
    # Another ruler is another group; and where the best checkpoint is taken, evaluations decide which it is.
    write_run(tmp_path / "b-4", "dpo", points, seed=4, args={"beta": 0.1}, more={"probe": {"prompts": 8}})
    best = {"beta": 0.1, "load_best_model_at_end": True}
    write_run(tmp_path / "c-5", "dpo", points, seed=5, args={**best, "eval_steps": 2}, more={"probe": {"prompts": 4}})
    write_run(tmp_path / "c-6", "dpo", points, seed=6, args={**best, "eval_steps": 3}, more={"probe": {"prompts": 4}})
    comparison = compare(find([tmp_path]), None, [], None)
    assert sorted(group.seeds for group in comparison.groups) == [[1, 2, 3], [4], [5], [6]]
    differing = {"probe.prompts", "trainer.args.eval_steps", "trainer.args.load_best_model_at_end"}
    assert set(comparison.settings) == differing


def test_seeds_of_a_pipeline_pool_over_the_pairs_that_it_samples(tmp_path):
    points = [(0, 0, 0.2), (9, 2.0, 0.3)]
    for seed in (1, 2):
        write_run(tmp_path / f"sft-{seed}", "sft", points, seed=seed, parent=None)
        write_sample(tmp_path / f"pairs-{seed}", {"rm": [1, 2]}, 2, parent=f"sft-{seed}", seed=seed)
        data = {"data": {"path": [f"outputs/pairs-{seed}"]}}
        write_run(tmp_path / f"dpo-{seed}", "dpo", points, seed=seed, parent=f"sft-{seed}", more=data)
    comparison = compare(find([tmp_path]), None, [], None)
    assert {group.label: group.seeds for group in comparison.groups} == {"sft": [1, 2], "dpo": [1, 2]}


def test_of_two_that_are_the_same_the_one_measured_more_often_counts(tmp_path):
    write_run(tmp_path / "a", "dpo", [(0, 0, 0.2), (9, 2.0, 0.3)])
    write_run(tmp_path / "b", "dpo", [(0, 0, 0.2), (5, 1.0, 0.3), (9, 2.0, 0.3)], more={"probe": {"every": 5}})
    comparison = compare(find([tmp_path]), None, [], None)
    assert [run.name for group in comparison.groups for run in group.runs] == ["b"]
    assert list(comparison.found.left_out.values()) == ["the same settings and seed as b"]


def test_a_seed_that_changed_nothing_is_no_second_measurement(tmp_path):
    for seed, content in ((1, "a"), (2, "a"), (3, "b")):
        write_run(tmp_path / f"kto-{seed}", "kto", [(0, 0, 0.2), (9, 2.0, 0.3)], seed=seed, content=content)
    comparison = compare(find([tmp_path]), None, [], None)
    assert [group.seeds for group in comparison.groups] == [[1, 3]]
    assert list(comparison.found.left_out.values()) == ["made the very model of kto-1: its seed changed nothing"]


def test_the_front_and_the_start_of_hand_made_runs(tmp_path, capsys):
    found = as_json(capsys, write_all(tmp_path / "outputs"))
    assert found["metric"] == "probe/gold/mood"
    assert found["start"] == {"probe/gold/mood": pytest.approx(0.1), "probe/rewards/rm": pytest.approx(0.2)}
    assert [label for label, group in groups(found).items() if group["on_front"]] == ["dpo beta=0.01", "dpo beta=0.1"]


def test_what_is_no_better_than_the_start_is_on_no_front(tmp_path, capsys):
    write_run(tmp_path / "ppo-1", "ppo", [(0, 0.0, 0.2), (9, 1.0, 0.1)])
    worse = as_json(capsys, tmp_path)
    assert not groups(worse)["ppo"]["on_front"]
    assert [v["best"] for v in worse["verdicts"]] == ["the starting policy"]
    write_run(tmp_path / "dpo-1", "dpo", [(0, 0.0, 0.2), (9, 2.0, 0.3)])
    better = as_json(capsys, tmp_path)
    assert [label for label, group in groups(better).items() if group["on_front"]] == ["dpo"]
    assert [v["best"] for v in better["verdicts"]] == ["dpo"]


def test_wide_tables_are_split_and_no_number_is_cut(tmp_path, capsys):
    run = write_run(tmp_path / "sft-1", "sft", [(0, 0.0, 0.1), (9, 1.0, 0.2)], seed=2, parent=None)
    write_run(tmp_path / "sft-2", "sft", [(0, 0.0, 0.1), (9, 1.0, 0.2)], seed=1, parent=None)
    measured = {"step": 9, **{f"probe/forgetting/domain_{i}": i + 0.125 for i in range(12)}}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(measured) + "\n")
    tables.show(compare(find([tmp_path]), None, [], None))
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if line[:1] in "┃│┏┡└"]
    assert max(map(len, lines)) <= 120
    for i in range(10):
        assert f"{i + 0.125:.3f}" in text, "whole, in one line"
    assert text.count("forgetting/domain") == 12
    assert "│  1, 2 │" in text, "seeds in order"


def test_every_point_of_the_front_picture_can_be_told(tmp_path):
    for beta, kl, gold in ((0.1, 1.0, 0.5), (0.2, 2.0, 0.4), (0.3, 3.0, 0.6)):
        write_run(tmp_path / f"dpo-{beta}", "dpo", [(0, 0.0, 0.1), (9, kl, gold)], args={"beta": beta})
    write_run(tmp_path / "sft-1", "sft", [(0, 0.0, 0.1), (9, 2.5, 0.2)])
    figure = plots.frontier(compare(find([tmp_path]), None, [], None))
    texts = {text.get_text(): text.get_gid() for text in figure.axes[0].texts}
    style.close({"": figure})
    # Of the two below the front one is of no method with several points.
    assert texts == dict.fromkeys(("dpo beta=0.1", "dpo beta=0.3", "beta=0.2"), "method-dpo")


def test_the_picture_of_failure_modes_has_them_all(tmp_path):
    run = write_run(tmp_path / "sft-1", "sft", [(0, 0.0, 0.1), (9, 1.0, 0.2)], parent=None)
    domains = [f"{kind}/{domain}" for kind in ("forgetting", "nll") for domain in ("c4", "code", "web", "wiki")]
    names = [*domains, "win_rate", "repetition", "refusals/harmful", "entropy", "distinct_1", "distinct_2", "ended"]
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 9, **{f"probe/{name}": 0.5 for name in names}}) + "\n")
    figure = plots.failure_modes(compare(find([tmp_path]), None, [], None))
    titles = [axis.get_title() for axis in figure.axes if axis.get_visible()]
    style.close({"": figure})
    assert titles[0] == "length (tokens)"
    assert {"win rate against the start", "repetition (share)", "refusals/harmful", "self-BLEU"} < set(titles)
    assert sum(title.startswith("forgetting/") for title in titles) == 4
    assert not [title for title in titles if title.startswith("nll/")], "the same, from another zero"


def test_only_kl_to_the_same_reference_is_compared(tmp_path, capsys):
    outputs = write_all(tmp_path / "outputs")
    write_run(outputs / "grpo-base", "grpo", [(0, 0, 0.1), (9, 0.5, 0.99)], parent=None, args={"beta": 0.3})
    found = as_json(capsys, outputs)
    assert found["reference"] == "sft-0"
    (note,) = found["notes"]
    assert note.startswith("grpo beta=0.3: KL is to embedded:tiny, not to sft-0")
    assert not groups(found)["grpo beta=0.3"]["on_front"]
    other = as_json(capsys, outputs, "--reference", "embedded:tiny")
    assert groups(other)["grpo beta=0.3"]["on_front"]
    assert main([str(outputs), "--reference", "sft-9"]) == 1
    assert "--reference=sft-9: no KL is to that; there are" in capsys.readouterr().err
    write_run(tmp_path / "other" / "sft-0", "sft", [], parent=None)
    assert main([str(tmp_path / "other"), "--reference", "sft-9"]) == 1
    assert "--reference=sft-9: no run here measured a KL; leave it out" in capsys.readouterr().err


def test_best_of_n_of_the_start_is_on_the_same_axes(tmp_path, capsys):
    outputs = write_all(tmp_path / "outputs")
    write_sample(outputs / "hot-1", {"rm": [1, 2], "mood": [0, 1]}, 2, temperature=0.7)
    write_sample(outputs / "else-1", {"rm": [1, 2], "mood": [0, 1]}, 2, parent="sft-7")
    found = as_json(capsys, outputs)
    (baseline,) = found["best_of_n"]
    assert baseline["name"] == "drawn-1"
    assert baseline["chosen_by"] == "rm"
    assert baseline["ns"] == [1, 2, 4]
    assert baseline["kl"] == pytest.approx([0, math.log(2) - 1 / 2, math.log(4) - 3 / 4])
    # Gold is 1 for one of four completions, the one the proxy likes best: in 1/4, 3/6 and all of the subsets.
    assert [mean for mean, _ in baseline["rewards"]["probe/gold/mood"]] == pytest.approx([0.25, 0.5, 1.0])
    (note,) = found["notes"]
    assert note.startswith("hot-1: no best-of-n baseline: sampled with another temperature")


def test_the_sentence_with_seeds(tmp_path, capsys):
    """Three seeds each: 0.5, 0.6, 0.7 against 0.3, 0.4, 0.5; and the same again, too noisy to tell."""
    for name, beta, golds in (("a", 0.1, (0.5, 0.6, 0.7)), ("b", 0.2, (0.1, 0.2, 0.3))):
        for seed, gold in enumerate(golds):
            points = [(0, 0.0, 0.0), (9, 2.0 if name == "a" else 1.0, gold)]
            write_run(tmp_path / f"{name}-{seed}", "dpo", points, seed=seed, args={"beta": beta})
    (verdict,) = as_json(capsys, tmp_path, "--kl-budget", "2")["verdicts"]
    # Half-width: 2.776 (4 degrees of freedom) times sqrt(2 x 0.01 / 3).
    assert verdict["sentence"] == (
        "With at most 2 nats of KL, dpo beta=0.1 (seeds 0, 1, 2) is best: gold reward mood 0.600 ± 0.100 at a KL of "
        "2.000 ± 0.000 nats, 0.400 more than dpo beta=0.2 (seeds 0, 1, 2) (0.200 ± 0.100 at 1.000 ± 0.000). That is "
        "larger than the noise between seeds (95% interval of the difference 0.173 to 0.627)."
    )
    for seed, gold in enumerate((0.2, 0.6, 0.9)):
        write_run(tmp_path / f"c-{seed}", "dpo", [(0, 0, 0.0), (9, 1.5, gold)], seed=seed, args={"beta": 0.3})
    low, high = as_json(capsys, tmp_path, "--kl-budget", "1.2,2")["verdicts"]
    assert (low["kl_budget"], low["best"], low["next"]) == (1.2, "dpo beta=0.2", "the starting policy")
    assert (high["best"], high["next"]) == ("dpo beta=0.1", "dpo beta=0.3")
    assert "That is not larger than the noise between seeds" in high["sentence"]


def test_points_of_the_front_at_the_same_budget_share_a_sentence(tmp_path, capsys):
    for beta, kl, gold in ((0.3, 0.62, 0.1), (0.2, 0.65, 0.2), (0.1, 2.0, 0.3)):
        write_run(tmp_path / f"b{beta}", "dpo", [(0, 0.0, 0.0), (9, kl, gold)], args={"beta": beta})
    assert [verdict["kl_budget"] for verdict in as_json(capsys, tmp_path)["verdicts"]] == [0.7, None]


def test_the_sentence_with_one_seed_is_over_prompts_and_says_so(tmp_path, capsys):
    start = (0, 0.0, 0.0)
    write_run(tmp_path / "a-1", "dpo", [start, (9, 2.0, 0.6)])
    write_run(tmp_path / "b-1", "ppo", [start, (9, 1.0, 0.4)])
    (verdict,) = as_json(capsys, tmp_path, "--kl-budget", "5")["verdicts"]
    # Prompt by prompt the two differ by 0.2 throughout, however much the prompts differ.
    assert verdict["over"] == "prompts"
    assert verdict["interval"] == pytest.approx([0.2, 0.2])
    assert "larger than the noise over prompts" in verdict["sentence"]
    assert "with one seed of dpo and ppo the noise between seeds is not known" in verdict["sentence"]
    for run in ("a-1", "b-1"):
        (tmp_path / run / "samples.jsonl").unlink()
    (verdict,) = as_json(capsys, tmp_path, "--kl-budget", "5")["verdicts"]
    assert verdict["interval"] is None
    assert "One seed does not show whether that is more than noise: train each with two seeds" in verdict["sentence"]


def test_the_sentence_with_two_seeds_each(tmp_path, capsys):
    """Variance 0.005 within each setting, 3 degrees of freedom: 3.182 times sqrt(0.005), or with one seed sqrt(0.0075).

    All four others within 95% together: 5.39 or so times as much, which 0.25 does not reach, but 0.6 does.
    """
    settings = {0.1: (0.6, 0.7), 0.2: (0.35, 0.45), 0.3: (0.0, 0.1), 0.4: (0.55,)}
    for beta, golds in settings.items():
        for seed, gold in enumerate(golds):
            points = [(0, 0.0, 0.0), (9, 1 - beta, gold)]
            write_run(tmp_path / f"{beta}-{seed}", "dpo", points, seed=seed, args={"beta": beta})
    verdict = as_json(capsys, tmp_path)["verdicts"][-1]
    assert verdict["sentence"] == (
        "At any KL, dpo beta=0.1 (seeds 0, 1) is best: gold reward mood 0.650 ± 0.071 at a KL of 0.900 ± 0.000 nats, "
        "0.100 more than dpo beta=0.4 (seed 0) (0.550 ± 0.050 at 0.600 ± 0.100). That is not larger than the noise "
        "between seeds (95% interval of the difference -0.176 to 0.376; standard deviation between seeds 0.071, "
        "pooled over 3 settings, and taken to hold for dpo beta=0.4): more seeds would tell. The same holds for "
        "dpo beta=0.2; of all these dpo beta=0.4 has the least KL."
    )
    assert (verdict["over"], verdict["ties"]) == ("pooled seeds", ["dpo beta=0.4", "dpo beta=0.2"])
    assert verdict["spread"] == {"variance": pytest.approx(0.005), "freedom": 3, "groups": 3}


def test_more_than_the_noise_between_seeds_may_be_noise_over_prompts(tmp_path, capsys):
    for beta, gold, spread in ((0.1, 0.5, (-3, -1, 1, 3)), (0.2, 0.3, (3, 1, -1, -3))):
        for seed in (0, 1, 2):
            points = [(0, 0.0, 0.0), (9, 1.0, gold + seed / 1000)]
            write_run(tmp_path / f"{beta}-{seed}", "dpo", points, seed=seed, args={"beta": beta}, spread=spread)
    sentence = as_json(capsys, tmp_path)["verdicts"][-1]["sentence"]
    assert "That is larger than the noise between seeds (95% interval of the difference 0.198 to 0.202)" in sentence
    assert re.search(r", but not than that over prompts \(-\d\.\d+ to \d\.\d+, paired\)\.$", sentence)


def test_best_of_n_by_gold_is_no_match_for_those_that_never_saw_it(tmp_path, capsys):
    outputs = write_all(tmp_path / "outputs")
    write_sample(outputs / "by-gold", {"mood": [0, 0, 0, 1]}, 4)
    config = yaml.safe_load((outputs / "by-gold" / "config.yaml").read_text())
    config["reward"]["mood"]["weight"] = 1.0
    (outputs / "by-gold" / "config.yaml").write_text(yaml.safe_dump(config))
    found = as_json(capsys, outputs)
    assert [one["chosen_by"] for one in found["best_of_n"]] == ["rm", "mood"]
    assert all("by mood, with no training" not in verdict["sentence"] for verdict in found["verdicts"])
    (baseline,) = (one for one in compare(find([outputs]), None, [], None).best_of if one.chosen_by == "mood")
    assert chosen_on_gold(baseline, "probe/gold/mood")
    assert chosen_on_gold(replace(baseline, chosen_by="rm + 0.5 mood"), "probe/gold/mood")
    assert not chosen_on_gold(baseline, "probe/rewards/mood")


def test_where_nothing_beats_the_start_it_says_so(tmp_path, capsys):
    write_run(tmp_path / "a-1", "dpo", [(0, 0.0, 0.5), (9, 2.0, 0.4)])
    (verdict,) = as_json(capsys, tmp_path)["verdicts"]
    assert verdict["best"] == "the starting policy"


def test_runs_that_differ_in_much_go_by_their_names(tmp_path):
    points, much = [(0, 0, 0.1), (9, 1.0, 0.2)], {"learning_rate": 1e-3, "max_length": 64, "max_steps": 9, "beta": 1.0}
    write_run(tmp_path / "sft-0a1b2c3d", "sft", points)
    for seed in (1, 2):
        write_run(tmp_path / f"chosen_seed{seed}-0a1b2c3d", "sft", points, seed=seed, args=much)
    labels = {group.label: group.seeds for group in compare(find([tmp_path]), None, [], None).groups}
    assert labels == {"sft": [1], "sft chosen": [1, 2]}


def test_one_trainer_on_several_rewards_is_several_methods(tmp_path, capsys):
    """PPO on a learned reward and PPO on gold itself, on one axis; the sentence for who has no gold to train on."""
    mood, rm = {"function": "rewards.mood", "weight": 1.0}, {"model": "outputs/reward", "weight": 1.0}
    for name, beta, reward, gold in (
        ("a", 1, {"rm": rm}, 0.3),
        ("b", 1, {"mood": mood}, 0.7),
        ("c", 2, {"rm": rm}, 0.5),
    ):
        folder = write_run(tmp_path / name, "ppo", [(0, 0, 0.1), (9, 2.0, gold)], args={"beta": beta})
        config = yaml.safe_load((folder / "config.yaml").read_text())
        probe = {} if "mood" in reward else {"gold": {"mood": mood}}
        (folder / "config.yaml").write_text(yaml.safe_dump({**config, "reward": reward, "probe": probe}))
        if "mood" in reward:  # measured as its own reward
            log = (folder / "metrics.jsonl").read_text().replace("probe/rewards/rm", "probe/reward")
            log = log.replace("probe/gold/", "probe/rewards/").replace("probe/gold_stderr/", "probe/rewards_stderr/")
            (folder / "metrics.jsonl").write_text(log)
    found = as_json(capsys, tmp_path)
    by = groups(found)
    assert [(label, g["method"]) for label, g in by.items()] == [
        ("ppo on mood", "ppo on mood"),
        ("ppo on rm beta=1", "ppo on rm"),
        ("ppo on rm beta=2", "ppo on rm"),
    ]
    gold = by["ppo on mood"]["metrics"]["probe/gold/mood"]
    assert (gold["mean"], gold["error"]) == (0.7, 0.05)
    assert "ppo on mood: trained on gold reward mood itself, which the other runs never saw" in found["notes"]
    sentences = [verdict["sentence"] for verdict in found["verdicts"]]
    assert sentences[0].startswith("At any KL, ppo on mood (seed 1) is best: gold reward mood 0.700 ± 0.050")
    assert sentences[1].startswith(
        "Of those that never saw gold reward mood: at any KL, ppo on rm beta=2 (seed 1) is best"
    )
    looks_of = {group.method: style.style(group) for group in compare(find([tmp_path]), None, [], None).groups}
    assert looks_of == {"ppo on rm": ("#D55E00", "^"), "ppo on mood": ("#753400", "<")}


def test_less_is_better_by_name_by_weight_or_by_option(tmp_path, capsys):
    write_run(tmp_path / "a-1", "dpo", [(0, 0.0, 0.5), (9, 2.0, 0.4)])
    write_run(tmp_path / "b-1", "dpo", [(0, 0.0, 0.5), (9, 3.0, 0.7)], args={"beta": 0.5})
    diverse = as_json(capsys, tmp_path, "--metric", "self_bleu")
    assert diverse["better"] == "lower"
    assert diverse["start"]["probe/self_bleu"] == 0.1
    assert list(diverse["groups"][0]["metrics"])[:2] == ["probe/kl", "probe/self_bleu"]
    assert as_json(capsys, tmp_path, "--metric", "gold/mood")["verdicts"][-1]["best"] == "dpo beta=0.5"
    lower = as_json(capsys, tmp_path, "--metric", "mood", "--lower-is-better")
    assert lower["verdicts"][-1]["best"] == "dpo"
    for run in ("a-1", "b-1"):
        config = (tmp_path / run / "config.yaml").read_text()
        (tmp_path / run / "config.yaml").write_text(f"{config}probe: {{gold: {{mood: {{weight: -1.0}}}}}}\n")
    assert as_json(capsys, tmp_path)["better"] == "lower"


def test_only_the_settings_that_differ_are_listed(tmp_path, capsys):
    found = as_json(capsys, write_all(tmp_path / "outputs"))
    assert list(found["settings"]) == ["model.init_from", "trainer.args.beta"], "neither name, seed nor what is equal"
    assert found["settings"]["trainer.args.beta"]["dpo beta=0.01"] == "0.01"
    alone = as_json(capsys, tmp_path / "outputs" / "dpo-1", tmp_path / "outputs" / "dpo-2")
    assert alone["settings"] == {}


def test_the_fits_are_of_gold_and_proxy_by_method(tmp_path, capsys):
    """Gold on the curve of Gao et al. with alpha 0.5 and beta 0.2; the proxy is twice that."""
    kls = [0.0, 0.5, 1.0, 2.0, 4.0, 9.0, 16.0]
    gold = [0.1 + (math.sqrt(kl) * (0.5 - 0.2 * math.log(math.sqrt(kl))) if kl else 0.0) for kl in kls]
    write_run(tmp_path / "ppo-1", "ppo", [(i, kl, g) for i, (kl, g) in enumerate(zip(kls, gold, strict=True))])
    fits = as_json(capsys, tmp_path)["fits"]
    fitted = fits["probe/gold/mood"]["ppo"]
    assert (fitted["alpha"], fitted["beta"]) == pytest.approx((0.5, 0.2))
    assert fitted["peak"] == pytest.approx([math.exp(1.5) ** 2, 0.2 * math.exp(1.5)])
    assert fits["probe/rewards/rm"]["ppo"]["alpha"] == pytest.approx(1.0)


def test_a_sweep_and_a_pipeline_lead_to_their_runs(tmp_path, capsys):
    outputs = tmp_path / "outputs"
    write_run(outputs / "dpo-1", "dpo", [(0, 0, 0.1), (9, 1.0, 0.2)])
    write_run(outputs / "dpo-2", "dpo", [(0, 0, 0.1), (9, 2.0, 0.3)], args={"beta": 0.3})
    write_run(outputs / "ppo-9", "ppo", [(0, 0, 0.1)], status="running")
    sweep, pipeline = outputs / "sweeps" / "monday", outputs / "rlhf-1"
    sweep.mkdir(parents=True)
    jobs = [
        {"command": "run dpo-1", "status": "finished", "run": "/where/it/was/dpo-1"},
        {"command": "run ppo-9", "status": "failed", "error": "out of memory", "run": None},
        {"command": "run gone", "status": "finished", "run": "/where/it/was/gone-1"},
    ]
    (sweep / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    pipeline.mkdir()
    stages = {
        "dpo": {"status": "finished", "run": str(outputs / "dpo-2")},
        "ppo": {"status": "failed"},
    }
    (pipeline / "pipeline.json").write_text(json.dumps({"status": "failed", "error": "gate", "stages": stages}))
    swept = as_json(capsys, sweep)
    assert {Path(run).name for group in swept["groups"] for run in group["runs"]} == {"dpo-1", "ppo-9"}
    assert swept["failed"] == {"run ppo-9": "out of memory"}
    assert [Path(path).name for path in swept["left_out"]] == ["gone-1"]
    piped = as_json(capsys, pipeline)
    assert [Path(run).name for group in piped["groups"] for run in group["runs"]] == ["dpo-2"]
    assert piped["failed"] == {"rlhf-1: stage ppo": "gate"}
    assert piped["pipelines"] == {
        str(pipeline): {"status": "failed", "stages": {"dpo": "finished", "ppo": "failed"}},
    }
    assert "| rlhf-1 | pipeline |  | failed | dpo finished, ppo failed |" in report(
        capsys, "--format", "markdown", pipeline
    )
    every = as_json(capsys, outputs)
    assert {Path(run).name for group in every["groups"] for run in group["runs"]} == {"dpo-1", "dpo-2", "ppo-9"}


def test_a_run_that_a_process_has_is_running(tmp_path, capsys):
    write_run(tmp_path / "dpo-1", "dpo", [(0, 0, 0.1), (5, 1.0, 0.2)], status="running")
    with FileLock(tmp_path / "dpo-1" / ".lock"):
        assert as_json(capsys, tmp_path)["groups"][0]["status"] == "running"
    assert as_json(capsys, tmp_path)["groups"][0]["status"] == "stopped"


def test_the_formats_hold_the_same_numbers(tmp_path, capsys):
    outputs = write_all(tmp_path / "outputs")
    rows = list(csv.DictReader(io.StringIO(report(capsys, "--format", "csv", outputs))))
    found = groups(as_json(capsys, outputs))
    assert [row["run"] for row in rows] == list(found)
    assert float(rows[2]["probe/gold/mood"]) == found["dpo beta=0.1"]["metrics"]["probe/gold/mood"]["mean"]
    markdown = report(capsys, "--format", "markdown", outputs)
    assert "| dpo beta=0.1 | 2.000 ± 0.000 | 0.510 ± 0.014 | 1.020 ± 0.028 |" in markdown
    assert "<script" not in markdown
    assert not Path("report").exists(), "what is piped writes no page"


def test_the_table_and_its_files(tmp_path, capsys):
    out = report(capsys, write_all(tmp_path / "outputs"))
    assert "dpo beta=0.1" in " ".join(out.split())
    assert "left out: " in out
    assert "holiday: no run, pipeline or sweep" in out
    names = {path.name for path in Path("report").iterdir()}
    pictures = {"frontier.png", "overoptimisation.png", "failure_modes.png", "training.png"}
    assert names == {"index.html", "report.json", *pictures}
    assert all((Path("report") / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    assert out.splitlines()[-1].startswith("At any KL, dpo beta=0.01 (seed 1) is best: gold reward mood 0.600 ± 0.050")
    # A report may be written again, over itself and nothing else; pictures of before are gone.
    report(capsys, tmp_path / "outputs" / "reward-1")
    assert {path.name for path in Path("report").iterdir()} == {"index.html", "report.json"}
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    assert main([str(tmp_path / "outputs"), "--out", "mine"]) == 1
    assert "--out=mine: holds something else than a report" in capsys.readouterr().err
    assert [path.name for path in Path("mine").iterdir()] == ["notes.txt"]


def test_a_run_without_a_probe_is_listed_and_why_there_is_no_frontier(tmp_path, capsys):
    write_run(tmp_path / "sft-1", "sft", [], parent=None)
    out = report(capsys, tmp_path)
    assert "there is no picture against KL" in out
    assert "+probe.rewards.NAME.function=MODULE.FUNCTION" in out
    assert not Path("report/frontier.png").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["nowhere", "gone"],
            "PATH=nowhere: no such folder; {here} has no nowhere\nPATH=gone: no such folder; {here} has no gone\n",
        ),
        (["empty"], "PATH=empty: no run in there; a run is a folder with a run.json"),
        (["outputs", "--metric", "gold/mod"], "--metric=gold/mod: not probed; there are probe/gold/mood, probe/kl"),
    ],
)
def test_mistakes_are_said_in_one_message(tmp_path, capsys, args, message):
    Path("empty").mkdir()
    write_run(tmp_path / "outputs" / "dpo-1", "dpo", [(0, 0, 0.1), (9, 1.0, 0.2)])
    assert main(args) == 1
    assert message.format(here=tmp_path) in capsys.readouterr().err
    assert not Path("report").exists()


def test_a_broken_budget_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["outputs", "--kl-budget", "five"])
    assert "expected numbers of nats, such as 5 or 2,5,10" in capsys.readouterr().err


def test_a_budget_below_every_run_is_noted(tmp_path):
    write_run(tmp_path / "dpo-1", "dpo", [(9, 1.0, 0.2)])
    comparison = compare(find([tmp_path]), None, [0.5], None)
    assert comparison.verdicts == []
    assert comparison.notes == ["--kl-budget 0.5: no finished run has as little KL"]
    with pytest.raises(PosttrainError, match="no such folder"):
        find([tmp_path / "gone"])


def test_neither_torch_nor_transformers_is_imported(tmp_path):
    write_run(tmp_path / "dpo-1", "dpo", [(0, 0, 0.1), (9, 1.0, 0.2)])
    code = (
        "import sys; from posttrain.report.__main__ import main; main([sys.argv[1], '--format', 'json']); "
        "sys.exit(','.join(sorted({'torch', 'transformers', 'trl', 'matplotlib'} & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("budget", "status"), [(["--kl-budget", "1"], "finished"), ([], "running")])
def test_without_another_to_choose_the_one_trained_on_gold_stands_alone(tmp_path, capsys, budget, status):
    gold = {"mood": {"function": "my.mood"}}
    seen = write_run(tmp_path / "seen", "grpo", [(10, 0.5, 0.8)], more={"reward": gold})
    log = (seen / "metrics.jsonl").read_text().replace("probe/gold/mood", "probe/rewards/mood")
    (seen / "metrics.jsonl").write_text(log)
    more = {"reward": {"rm": {"model": "x"}}, "probe": {"gold": gold}}
    write_run(tmp_path / "blind", "ppo", [(10, 5.0, 0.4)], more=more, status=status)
    (verdict,) = as_json(capsys, tmp_path, *budget)["verdicts"]
    assert verdict["best"] == "grpo"
