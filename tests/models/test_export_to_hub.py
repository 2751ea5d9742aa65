"""Pushing an export: the real client against the local hub."""

import httpx2
import huggingface_hub.constants
import pytest

from posttrain.export import main
from tests.helpers.hub import TOKEN, Hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A local hub that this process's client talks to, logged in."""
    with Hub(tmp_path / "hub") as server:
        for name, value in (("ENDPOINT", server.url), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
        huggingface_hub.close_session()  # one made offline stays so
        yield server
    huggingface_hub.close_session()


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_push_creates_the_repository_and_uploads_the_very_folder(hub, train, capsys):
    run = train("+recipe=sft_smollm2")
    command = [str(run.path), "--push-to-hub", "me/model"]
    assert main([*command, "--private"]) == 0, capsys.readouterr().err
    assert f"hub      {hub.url}/me/model" in capsys.readouterr().out
    assert hub.private == {"me/model"}
    assert files(hub.root / "models/me/model") == files(run.path / "export")
    assert (run.path / "export/adapter_model.safetensors").is_file()
    assert not [p for p in run.path.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]
    # The same again: the export is there already, and the upload is a commit on top.
    assert main(command) == 0, capsys.readouterr().err
    assert "was there already" in capsys.readouterr().out
    assert hub.unimplemented == []


def unreachable(*_, **__):
    raise httpx2.ConnectError("")


def test_push_says_what_the_hub_refuses(hub, train, capsys, monkeypatch):
    run = train("+recipe=sft_smollm2")
    (hub.root / "models/me/public").mkdir(parents=True)
    capsys.readouterr()  # what training said
    assert main([str(run.path), "--push-to-hub", "me/public", "--private"]) == 1
    said = "--private: me/public exists and is public; change that on its page, or take another name\n"
    assert capsys.readouterr().err == said
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    assert main([str(run.path), "--push-to-hub", "me/model"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("--push-to-hub=me/model: ")
    assert "401" in said
    assert f"the export stays in {run.path / 'export'}" in said
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
        patch.setattr("huggingface_hub.HfApi.create_repo", unreachable)
        assert main([str(run.path), "--push-to-hub", "me/model"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("--push-to-hub=me/model: ConnectError; the export stays in"), "an error without a text"
    monkeypatch.delenv("HF_TOKEN")
    before = len(hub.requests)
    assert main([str(run.path), "--push-to-hub", "me/model"]) == 1
    assert "--push-to-hub: not logged in; run `hf auth login`" in capsys.readouterr().err
    assert len(hub.requests) == before, "said before anything is done"
