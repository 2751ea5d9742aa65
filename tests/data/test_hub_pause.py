"""A hub that did not answer is not asked again by every job of a sweep."""

import time

from datasets import config
from huggingface_hub import constants, is_offline_mode

from posttrain import hub


def test_a_hub_that_did_not_answer_is_asked_again_after_a_pause(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "PAUSE_SECONDS", 0.2)
    assert "the hub cannot be reached" in str(hub.explain(ConnectionError("no route"), "org/model", "model"))
    assert is_offline_mode()
    assert config.HF_HUB_OFFLINE
    deadline = time.monotonic() + 30
    while is_offline_mode() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_offline_mode()
    assert not config.HF_HUB_OFFLINE


def test_what_the_user_switched_off_stays_off(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "PAUSE_SECONDS", 0.0)
    hub.explain(ConnectionError("no route"), "org/model", "model")
    time.sleep(0.2)
    assert is_offline_mode()


def test_another_error_leaves_the_hub_as_it_is(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert hub.explain(ValueError("a broken file"), "org/model", "model") is None
    assert not is_offline_mode()
