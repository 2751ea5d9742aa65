"""Run directories with damaged files, and places that cannot be written: one message with the path."""

import json

import pytest

from posttrain import chat, export
from posttrain.errors import PosttrainError
from posttrain.report.__main__ import main as report
from posttrain.runs import lineage, stored_config
from posttrain.runs.content import content
from posttrain.runs.journal import Journal


def test_a_damaged_line_of_a_journal_is_named(tmp_path):
    path = tmp_path / "completions.jsonl"
    path.write_text('{"batch": 0}\n{"bat\n{"batch": 2}\n')
    with pytest.raises(PosttrainError, match=r"completions.jsonl:2: is damaged"):
        Journal(path)


@pytest.mark.parametrize("text", ['{"a": ', "[1]", ""])
def test_a_damaged_adapter_config_is_named(tmp_path, text):
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(PosttrainError, match=r"adapter_config\.json: is damaged"):
        lineage.source(str(tmp_path))


def test_a_run_without_a_whole_base_is_refused(tmp_path):
    record = {"status": "finished", "base": {"path": "embedded:tiny"}, "adapter": None}
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(PosttrainError, match="does not say what it was trained on"):
        lineage.source(str(tmp_path))


@pytest.mark.parametrize("text", [None, "a: [", "- 1", ""])
def test_a_missing_or_damaged_config_is_named(tmp_path, text):
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(PosttrainError, match=r"config.yaml: .*train the run again"):
        stored_config.load(tmp_path)


@pytest.mark.parametrize("text", ['{"content": "ab', "[]"])
def test_a_damaged_record_does_not_break_the_digest(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    assert content(tmp_path)


@pytest.mark.parametrize("main", [chat.main, export.main, lambda argv: report([*argv, "--out=x"])])
def test_a_name_that_is_too_long_is_no_traceback(main, capsys):
    assert main(["a" * 300]) == 1
    assert "File name too long" in capsys.readouterr().err
