"""Errors of libraries are explained by their kind; a path may hold any word."""

import pytest
from huggingface_hub import constants, is_offline_mode

from posttrain import hub


@pytest.mark.parametrize("path", ["offline-pairs", "trust_remote_code", "is a gated dataset", "a/offline/b"])
def test_words_of_a_path_explain_nothing(monkeypatch, path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert hub.explain(ValueError(f"{path}/config.json is damaged"), path, "model") is None
    assert not is_offline_mode()


def test_the_phrases_of_the_libraries_do():
    code = ValueError("Please pass the argument `trust_remote_code=True` to allow custom code to be run.")
    assert "brings its own code" in str(hub.explain(code, "org/model", "model"))
    gated = ValueError("Dataset 'org/data' is a gated dataset on the Hub.")
    assert "gated on the hub" in str(hub.explain(gated, "org/data", "data set"))
