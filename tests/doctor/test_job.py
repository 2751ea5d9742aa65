"""The doctor as a command: what it examines is what training gets, and what it leaves behind."""

import json
import random
import runpy
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from datasets import Dataset

from posttrain.doctor import lengths, page, sequences
from posttrain.doctor import pairs as pairs_of
from posttrain.doctor.examine import examine
from posttrain.doctor.lengths import Tokenized
from posttrain.doctor.sequences import Sequence
from posttrain.doctor.texts import of as texts_of
from posttrain.errors import PosttrainError
from posttrain.jobs import preflight
from posttrain.jobs.doctor import prepare as prepare_doctor
from posttrain.runs.identity import digest
from tests.doctor.test_findings import clean
from tests.helpers.runs import compose, rows

KEY = "AKIAIOSFODNN7EXAMPLE"
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> [bold red]not markup[/] \x1b[2J"
DOCTOR = ("job=doctor", "doctor.noise=false")


def write(path, found):
    path.write_text("".join(json.dumps(row) + "\n" for row in found))


def talk(row):
    """A pair of texts as conversations."""
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {name: [{"role": role, "content": row[name]}] for name, role in roles.items()}


def planted():
    """240 pairs with a fault of each kind."""
    found = clean(240)
    found[2]["rejected"] = found[2]["chosen"]
    found[4] = {**found[3], "chosen": found[3]["rejected"], "rejected": found[3]["chosen"]}
    found[6] = dict(found[5])
    found[7]["chosen"] += f" {KEY}"
    found[8]["chosen"] += " itâ€™s jane.doe@mail.example.org"
    found[9]["chosen"] = HOSTILE
    found[10]["prompt"] += " word" * 400
    found[11]["chosen"] += " word" * 400
    return [talk(row) for row in found]


_SICK = []


@pytest.fixture
def sick(train, tmp_path, capsys):
    """The directory of a doctor's run on planted faults, the error that it ended with, and what it printed.

    It is run once: the tests that look at it change nothing.
    """
    if not _SICK:
        write(tmp_path / "planted.jsonl", planted())
        with pytest.raises(PosttrainError) as raised:
            train("trainer=dpo", *DOCTOR, "data.path=planted.jsonl", "data.eval_size=0", "trainer.args.max_length=400")
        (folder,) = (tmp_path / "outputs").glob("dpo-doctor-*")
        _SICK.append((folder, str(raised.value), capsys.readouterr().out))
    return _SICK[0]


def test_each_planted_fault_is_in_the_report(sick):
    folder, message, said = sick
    known = json.loads((folder / "doctor.json").read_text())
    found = {one["name"]: one for one in known["findings"]}
    expected = {
        "secrets": ("error", 1),
        "lengths.dropped": ("warning", 1),
        "lengths.cut": ("warning", 1),
        "pairs.identical": ("warning", 1),
        "pairs.contradictory": ("warning", 1),
        "duplicates.exact": ("warning", 1),
        "duplicates.near": ("warning", 1),  # the pair the other way round
        "encoding": ("warning", 2),  # with the hostile row's escape
        "personal": ("warning", 1),
    }
    assert {name: (found[name]["severity"], found[name]["numbers"]["rows"]) for name in expected} == expected
    quiet = {"tokens", "eos", "length_bias", "diversity", "languages", "empty"}
    quiet |= {"prompt.repeated", "template.left_out", "tokens.control", "tokens.double_bos"}
    assert {one["name"] for one in known["findings"] if one["severity"] == "info"} == quiet
    assert message.startswith("data.path=planted.jsonl: the doctor found secrets; fix the data as ")
    assert json.loads((folder / "run.json").read_text())["metrics"]["errors"] == 1
    assert "doctor.html" in said
    assert "Revoke the keys" in said
    assert KEY not in said
    assert "\x1b[2J" not in said


def test_the_report_is_complete_in_form_and_shows_no_secret(sick):
    folder = sick[0]
    known = json.loads((folder / "doctor.json").read_text())
    assert set(known) == {
        *("schema", "name", "command", "trainer", "model", "data", "settings", "counts", "findings", "sequences"),
        "doubtful_rows",
    }
    assert known["schema"] == 1
    assert known["counts"] == {"error": 1, "warning": 8, "info": 10}
    for one in known["findings"]:
        assert set(one) == {"name", "severity", "says", "numbers", "examples", "consequence", "fix", "mend"}
        assert all(isinstance(value, (int, float)) for value in one["numbers"].values())
        assert all(set(example) == {"split", "row", "text"} for example in one["examples"])
        assert bool(one["consequence"]) == bool(one["fix"]) == bool(one["mend"]) == (one["severity"] != "info")
    assert {key for one in known["sequences"] for key in one} == {"row", "side", "pieces", "cut"}
    for file in folder.rglob("*"):
        if file.is_file() and file.name != ".lock":
            assert KEY not in file.read_text(), file


class Page(HTMLParser):
    """The tags of a page, and every address in it."""

    def __init__(self):
        super().__init__()
        self.tags, self.addresses, self.text = set(), [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.text += data


def test_the_page_stands_alone_and_escapes_rows(sick):
    text = (sick[0] / "doctor.html").read_text()
    found = Page()
    found.feed(text)
    assert not found.tags & {"script", "img", "link", "iframe", "object", "form"}
    assert found.addresses == []
    assert "url(" not in text
    assert "@import" not in text
    assert "<script>alert(1)</script>" in found.text  # as text
    assert "\x1b" not in text
    assert 'name="viewport"' in text


@pytest.mark.browser
def test_the_page_in_a_browser_fits_a_phone_and_runs_nothing(sick, browser):
    tab = browser.new_page(viewport={"width": 360, "height": 740})
    asked, alerts = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
    tab.goto((sick[0] / "doctor.html").as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    assert tab.locator(".finding.error").count() == 1
    assert tab.locator("pre.tokens mark").count() >= 6
    assert (len(asked), alerts) == (1, [])
    tab.close()


def test_clean_data_passes_and_is_not_examined_twice(train, tmp_path, capsys):
    write(tmp_path / "fine.jsonl", [talk(row) for row in clean(160)])
    order = ("trainer=dpo", *DOCTOR, "data.path=fine.jsonl", "data.eval_size=20")
    directory = train(*order)
    known = json.loads((directory.path / "doctor.json").read_text())
    assert [one["name"] for one in known["findings"] if one["severity"] != "info"] == []
    assert {"overlap.exact", "overlap.near"} < {one["name"] for one in known["findings"]}
    assert "nothing wrong found" in capsys.readouterr().out
    before = (directory.path / "doctor.json").stat().st_mtime_ns
    train(*order)
    assert "is finished" in capsys.readouterr().out
    assert (directory.path / "doctor.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(("fail_on", "fails"), [("error", False), ("warning", True), ("never", False)])
def test_what_fails_a_run_is_a_setting(train, tmp_path, fail_on, fails):
    found = [talk(row) for row in clean(120)]
    found[3]["rejected"] = found[3]["chosen"]
    write(tmp_path / "same.jsonl", found)
    order = ("trainer=dpo", *DOCTOR, "doctor.tokens=false", "doctor.language=false", "data.path=same.jsonl")
    order = (*order, "data.eval_size=0", f"doctor.fail_on={fail_on}")
    if fails:
        for _ in range(2):  # what was found does not pass for finished the second time
            with pytest.raises(PosttrainError, match=r"the doctor found pairs\.identical"):
                train(*order)
        (record,) = (tmp_path / "outputs").glob("*/run.json")
        assert json.loads(record.read_text())["status"] == "failed"
    else:
        train(*order)


def prepared(kind, *overrides, count=40):
    """A run of `kind` on clean rows, one of them long, its tokenizer and its rows as training gets them."""
    found = clean(count)
    found[5]["prompt"] += " word" * 400
    found[6]["chosen"] += " word" * 400
    with open("mine.jsonl", "w") as file:
        file.writelines(json.dumps(talk(row)) + "\n" for row in found)
    run, _ = compose(f"trainer={kind}", "model=tiny", "data.path=mine.jsonl", "data.eval_size=0", *overrides)
    plan = prepare_doctor(run)
    return run, plan.tokenizer, plan.data.train


@pytest.mark.parametrize("kind", ["sft", "dpo", "kto", "reward"])
def test_rows_that_vanish_are_those_that_trl_drops(kind):
    # tf32 needs a GPU to train on, and not to look at the data.
    run, tokenizer, data = prepared(kind, "trainer.args.max_length=400", "trainer.args.tf32=true")
    found = sequences.of(run, tokenizer, data, list(range(len(data))))
    numbered = data.add_column("number", list(range(len(data))))
    kept = set(sequences.prepare(run, tokenizer, numbered, 400)["number"])
    gone = {row[0].row for row in found if lengths.vanishes(row, *lengths.limit(run))}
    assert gone == set(range(len(data))) - kept
    assert 0 < len(gone) < len(data) / 4


@pytest.mark.parametrize("kind", ["sft", "dpo", "kto"])
def test_what_is_marked_is_the_answer_and_its_end(kind):
    run, tokenizer, data = prepared(kind)
    for row in sequences.of(run, tokenizer, data, [0, 1, 2]):
        for one in row:
            column = "completion" if one.side == "sequence" else one.side
            answer = data[one.row][column][0]["content"]
            trained = tokenizer.decode([i for i, mark in zip(one.ids, one.trained, strict=True) if mark])
            assert trained.strip() == f"{answer}{tokenizer.eos_token}"


def test_weights_of_messages_are_what_is_marked():
    turns = [("user", "one?", None), ("assistant", "wrong", 0), ("user", "two?", None), ("assistant", "right", 1)]
    messages = [{"role": role, "content": text, "weight": weight} for role, text, weight in turns]
    with open("chats.jsonl", "w") as file:
        file.writelines(json.dumps({"messages": messages}) + "\n" for _ in range(4))
    run, _ = compose("trainer=sft", "model=tiny", "data.path=chats.jsonl", "data.eval_size=0", "doctor.sample=2")
    plan = prepare_doctor(run)
    report = examine(run, plan.tokenizer, plan.data)
    marked = "".join(piece.text for piece in report.shown[0].pieces if piece.trained)
    assert marked.strip() == f"right{plan.tokenizer.eos_token}"


def test_rows_left_out_are_a_finding_and_a_mixture_has_its_parts_named(train, tmp_path, capsys):
    write(tmp_path / "fine.jsonl", [talk(row) for row in clean(60)])
    broken = [talk(row) for row in clean(40, 1)]
    broken[3]["chosen"] = {"said": KEY}
    write(tmp_path / "broken.jsonl", [*broken, {"prompt": 3}])
    order = (
        "data.path=null",
        "data.mix={a: {path: fine.jsonl}, b: {path: broken.jsonl}}",
        "data.on_error=skip",
        "data.eval_size=0",
    )
    with pytest.raises(PosttrainError, match=r"data\.path=fine\.jsonl, broken\.jsonl: the doctor found skipped"):
        train("trainer=dpo", *DOCTOR, *order, "doctor.fail_on=warning", "doctor.language=false", "doctor.tokens=false")
    (folder,) = (tmp_path / "outputs").glob("dpo-doctor-*")
    (found,) = (one for one in json.loads((folder / "doctor.json").read_text())["findings"] if one["name"] == "skipped")
    assert found["numbers"] == {"rows": 2, "share": 2 / 101}
    assert [(one["split"], one["row"]) for one in found["examples"]] == [("broken.jsonl", 4), ("broken.jsonl", 41)]
    said = capsys.readouterr().out
    assert "a 60.6% (60 rows), b 39.4% (39 rows)" in said
    assert "2 rows that do not fit" in said
    assert KEY not in said + (folder / "doctor.html").read_text()


def test_calls_of_tools_are_answers_and_differ():
    call = lambda city: [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": city}}]}]  # noqa: E731
    rows = [{"prompt": [{"role": "user", "content": "?"}], "chosen": call("Rome"), "rejected": call("Oslo")}] * 3
    found = texts_of(Dataset.from_list(rows), "train")
    assert found.answers["chosen"][0] == '{"name": "Rome"}'
    run, _ = compose("trainer=dpo", "model=tiny", "data.path=mine.jsonl")
    assert pairs_of.check_empty(found, run.doctor).severity == "info"
    assert pairs_of.check_identical(found, run.doctor).severity == "info"


def test_a_reward_model_reads_its_score_at_the_last_token():
    run, tokenizer, data = prepared("reward")
    (row,) = sequences.of(run, tokenizer, data, [0])
    assert [one.side for one in row] == ["chosen", "rejected"]
    assert all(one.trained == [False] * (len(one.ids) - 1) + [True] for one in row)


@pytest.mark.parametrize("kind", ["sft", "kto", "grpo", "reward"])
def test_every_kind_of_data_is_examined(train, tmp_path, kind):
    write(tmp_path / "fine.jsonl", [talk(row) for row in clean(120)])
    extra = ("+reward.length.function=posttrain.rewards.text.length",) if kind == "grpo" else ()
    directory = train(f"trainer={kind}", "job=doctor", "data.path=fine.jsonl", *extra)
    known = json.loads((directory.path / "doctor.json").read_text())
    names = {one["name"] for one in known["findings"]}
    assert {"tokens", "empty", "diversity", "languages", "encoding", "secrets", "personal"} <= names
    assert ("balance" in names) == (kind == "kto")
    assert ("eos" in names) == (kind in ("sft", "kto"))
    assert ("noise" in names) == (kind in ("kto", "reward"))
    assert known["sequences"]


def test_sampled_rows_are_said_to_be_sampled():
    draw = random.Random(0)
    row = lambda i: [Sequence(i, "sequence", [1] * 10, [False] * 5 + [True] * 5)]  # noqa: E731
    characters = np.array([draw.randint(1, 99) for _ in range(1000)])
    chosen, longest = sequences.choose(1000, 100, characters)
    assert (len(chosen), len(longest)) == (100, 64)
    rest = set(range(1000)) - set(chosen) - set(longest)
    assert len(rest) == 836
    assert min(characters[longest]) >= max(characters[list(rest)])
    part = Tokenized([row(i) for i in chosen], [row(i) for i in longest], 1000)
    found = lengths._tokens(part)
    assert found.numbers["tokens"] == 10_000
    assert "about 10,000 tokens" in found.says
    assert "(of a sample of 100 rows)" in found.says


def test_an_end_that_is_not_learnt_is_an_error():
    run, _ = compose("trainer=sft", "model=tiny", "data.path=mine.jsonl")
    made = [[Sequence(i, "sequence", [7, 8, 2], [False, True, i < 5])] for i in range(20)]
    from tests.doctor.test_findings import texts

    found = lengths._eos(run, texts(clean(20)), Tokenized(made, [], 20), eos=2)
    assert (found.severity, found.numbers["without"]) == ("error", 15)


def test_numbers_on_the_page():
    assert [page.figure(v) for v in (True, 1234, 0.12345, 3.0, 1234.5)] == ["yes", "1,234", "0.123", "3", "1,234"]


def test_the_doctors_settings_do_not_make_training_another_run():
    plain, doctored = (compose("+recipe=dpo_smollm2", *extra)[0] for extra in ((), ("doctor.near=0.5",)))
    assert digest(plain) == digest(doctored)


def test_the_short_command_is_the_job(monkeypatch):
    called = []
    monkeypatch.setattr("posttrain.jobs.command.run", lambda argv: called.append(argv) or 0)
    monkeypatch.setattr(sys, "argv", ["posttrain.doctor", "+recipe=dpo_smollm2"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("posttrain.doctor", run_name="__main__")
    assert (called, ended.value.code) == ([["+recipe=dpo_smollm2", "job=doctor"]], 0)


def test_a_pipeline_is_examined_by_its_stages():
    with pytest.raises(PosttrainError) as raised:
        compose("+recipe=rlhf_smollm2", "job=doctor")
    assert "job=doctor: this is a pipeline, of " in str(raised.value)
    assert "+recipe=reward_smollm2" in str(raised.value)


def test_bad_settings_are_told_together(pairs):
    run, _ = compose("trainer=dpo", "model=tiny", "data.path=pairs.jsonl", "job=doctor", "doctor.near=2")
    run.doctor.fail_on, run.doctor.sample = "errors", 0
    with pytest.raises(PosttrainError) as raised:
        preflight.check(run)
    assert sorted(str(raised.value).splitlines()) == [
        "doctor.fail_on=errors: did you mean error? choose from error, warning, never",
        "doctor.near=2: expected at least 0 and at most 1",
        "doctor.sample=0: expected at least 1",
    ]


def test_a_missing_library_is_told_with_the_switch_that_does_without(train, pairs, monkeypatch):
    import importlib.util

    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rensa" else there(name))
    with pytest.raises(PosttrainError, match=r"rensa not installed; pip install .*doctor.*duplicates=false"):
        train("trainer=dpo", "job=doctor")


def test_doubtful_pairs_are_written_for_a_second_look(train, tmp_path):
    found = clean(200)
    for i, row in enumerate(found):
        row["chosen"] += " please thanks gladly"
        row["rejected"] += " stupid boring whatever"
        if i % 10 == 0:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    write(tmp_path / "noisy.jsonl", [talk(row) for row in found])
    order = ("data.path=noisy.jsonl", "data.eval_size=0", "doctor.duplicates=false", "doctor.language=false")
    directory = train("trainer=dpo", "job=doctor", *order, "doctor.tokens=false")
    written = rows(directory.path / "doubtful.jsonl")
    assert {row["row"] for row in written[:20]} == set(range(0, 200, 10))
    assert set(written[0]) == {"row", "right", "prompt", "chosen", "rejected"}
    assert "stupid" in written[0]["chosen"]
