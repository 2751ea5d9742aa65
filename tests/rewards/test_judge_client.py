"""Questions to a model: over HTTP against a server on 127.0.0.1, and to one that is loaded here."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import PosttrainError
from posttrain.rewards.judge_client import open_judge
from tests.helpers import endpoint


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def say(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def shout(body: dict[str, Any]) -> str:
    return body["messages"][-1]["content"].upper()


def test_answers_come_in_order_and_each_question_is_asked_once():
    with endpoint.serve(shout) as server:
        asker = open_judge("m", server.url, concurrency=4)
        words = [f"w{n}" for n in range(20)]
        assert asker.ask([say(w) for w in [*words, "w0"]]) == [w.upper() for w in [*words, "w0"]]
        assert len(server.requests) == 20
        assert (asker.asked, asker.cached) == (20, 0)
        # From disk: another asker, another spelling of the same place.
        again = open_judge("m", server.url + "/chat/completions")
        assert again.ask([say("w3")]) == ["W3"]
        assert (again.asked, again.cached) == (0, 1)
        # Another model, other sampling, another endpoint are other questions.
        open_judge("m2", server.url).ask([say("w3")])
        again.ask([say("w3")], max_tokens=7)
        assert len(server.requests) == 22
    sent = server.requests[-1]
    assert sent == {"model": "m", "messages": say("w3"), "temperature": 0.0, "max_tokens": 7}
    assert server.keys == [None] * 22


def test_cache_can_be_switched_off(tmp_path: Path):
    with endpoint.serve(shout) as server:
        asker = open_judge("m", server.url, cache=False)
        assert asker.ask([say("a")]) + asker.ask([say("a")]) == ["A", "A"]
        assert len(server.requests) == 2
    assert not (tmp_path / "cache").exists()


def test_an_answer_cut_short_on_disk_is_asked_again(tmp_path: Path):
    with endpoint.serve(shout) as server:
        open_judge("m", server.url).ask([say("a")])
        (file,) = (tmp_path / "cache" / "answers").rglob("*.json")
        file.write_text('{"answ')
        assert open_judge("m", server.url).ask([say("a")]) == ["A"]
        assert len(server.requests) == 2


def test_processes_share_the_cache(tmp_path: Path):
    code = "import sys; from posttrain.rewards.judge_client import open_judge; " + (
        "print(open_judge('m', sys.argv[1]).ask([[{'role': 'user', 'content': f'{n}'}] for n in range(30)])[-1])"
    )
    with endpoint.serve(shout) as server:
        command = [sys.executable, "-c", code, server.url]
        both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        assert [p.communicate(timeout=60)[0].strip() for p in both] == ["29", "29"]
        asked = len(server.requests)
        assert open_judge("m", server.url).ask([say("29")]) == ["29"]
        assert len(server.requests) == asked
    assert len(list((tmp_path / "cache").rglob("*"))) - len(list((tmp_path / "cache").rglob("*.json"))) <= 31


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_servers_are_asked_again(status: int):
    with endpoint.serve(shout) as server:
        server.statuses = [status, status]
        assert open_judge("m", server.url, backoff=0.01).ask([say("a")]) == ["A"]
        assert len(server.requests) == 3


def test_retry_after_is_honoured(monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []
    monkeypatch.setattr("posttrain.rewards.endpoint._pause", lambda stop, seconds: waits.append(seconds))
    with endpoint.serve(shout) as server:
        server.statuses, server.headers = [429], {"retry-after": "7"}
        open_judge("m", server.url).ask([say("a")])
    assert len(waits) == 1
    assert 7 <= waits[0] <= 7 * 1.25


def test_what_was_answered_before_a_failure_is_kept():
    def answer(body: dict[str, Any]) -> str:
        if body["messages"][0]["content"] == "bad":
            server.statuses.append(400)
        return shout(body)

    with endpoint.serve(answer) as server:
        asker = open_judge("m", server.url, concurrency=1, retries=0)
        with pytest.raises(PosttrainError, match="400"):
            asker.ask([say(t) for t in ("a", "bad", "c", "d")])
        count = len(server.requests)
        assert count == 3  # nothing is asked after the failure
        assert asker.ask([say("a"), say("bad")]) == ["A", "BAD"]
        assert len(server.requests) == count


def test_the_key_comes_from_the_environment_and_goes_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MY_KEY", "sk-secret-1")
    with endpoint.serve(shout) as server:
        asker = open_judge("m", server.url, key_env="MY_KEY", retries=0)
        asker.ask([say("a")])
        assert server.keys == ["Bearer sk-secret-1"]
        for status in (401, 404, 418, 500):
            server.statuses = [status]
            with pytest.raises(PosttrainError) as error:
                asker.ask([say(f"b{status}")])
            assert str(status) in str(error.value)
            assert "sk-secret-1" not in str(error.value)
    kept = [file.read_text() for file in (tmp_path / "cache").rglob("*.json")]
    assert kept == ['{"answer": "A"}']


def test_what_goes_wrong_is_said_with_the_fix():
    with endpoint.serve(shout) as server:
        server.statuses = [401]
        with pytest.raises(PosttrainError, match="environment variable OPENAI_API_KEY is not set"):
            open_judge("m", server.url).ask([say("a")])
        server.statuses = [401]
        with pytest.raises(PosttrainError, match="OPENAI_API_KEY is not set"):
            open_judge("m", server.url).check_reachable()
        with pytest.raises(PosttrainError, match="no such model, or the base URL lacks /v1"):
            open_judge("m", server.url.removesuffix("/v1")).ask([say("a")])
    with pytest.raises(PosttrainError, match=r"cannot be reached.*start the server"):
        open_judge("m", server.url, retries=1, backoff=0.01).ask([say("b")])
    for wrong in ("localhost:8000", "http://", "http://127.0.0.1/v1?key=1", "ftp://127.0.0.1"):
        with pytest.raises(PosttrainError, match="expected a base URL such as"):
            open_judge("m", wrong)
    with pytest.raises(PosttrainError, match="password"):
        open_judge("m", "http://me:pw@127.0.0.1/v1")


def test_a_server_that_does_not_answer_in_time():
    import time

    def slow(body: dict[str, Any]) -> str:
        time.sleep(0.5)
        return "late"

    with endpoint.serve(slow) as server, pytest.raises(PosttrainError, match="no answer in time"):
        open_judge("m", server.url, timeout=0.1, retries=1, backoff=0.01).ask([say("a")])


def test_a_local_model_answers_greedily_and_is_not_loaded_for_what_is_known(monkeypatch: pytest.MonkeyPatch):
    import torch

    from posttrain.models import weights as model_weights

    asker = open_judge("embedded:tiny")
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = asker.ask([say("a"), say("b b")], max_tokens=4)
    assert torch.equal(before, torch.random.get_rng_state())
    sampled = asker.ask([say("a")], max_tokens=8, temperature=1.0, seed=1)
    assert sampled != asker.ask([say("a")], max_tokens=8, temperature=1.0, seed=2)
    with pytest.raises(PosttrainError, match="stop: a local model does not take it"):
        asker.ask([say("a")], stop=["x"])
    assert len(asker.ask([say("a")], max_tokens=None, temperature=None, max_completion_tokens=4)) == 1
    with pytest.raises(PosttrainError, match="its context is"):
        asker.ask([say("a " * 5000)])
    monkeypatch.setattr(model_weights, "load", None)
    assert open_judge("embedded:tiny").ask([say("b b"), say("a")], max_tokens=4) == first[::-1]


def test_no_such_local_model():
    with pytest.raises(PosttrainError, match="no such run or folder"):
        open_judge("./nowhere")


def test_other_weights_in_the_same_folder_are_another_model(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    before = open_judge("./model").identity
    assert open_judge(str(tmp_path / "model")).identity["model"] == before["model"]
    (tmp_path / "model" / "config.json").write_text("{ }")
    assert open_judge("./model").identity["model"] != before["model"]


def test_an_answer_with_half_a_character_is_kept():
    with endpoint.serve(lambda body: "cut \ud83d") as server:
        first = open_judge("m", server.url).ask([say("a")])
        assert open_judge("m", server.url).ask([say("a")]) == first == ["cut \ud83d"]
        assert len(server.requests) == 1


@pytest.mark.parametrize("key", ["sk-SECRET\nX", "sk-SECR\u00c9T"])
def test_a_key_that_no_header_takes_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, key: str):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with endpoint.serve(shout) as server:
        with pytest.raises(PosttrainError, match=r"^key_env=OPENAI_API_KEY: the environment") as error:
            open_judge("m", server.url, retries=0).check_reachable()
        assert "SECR" not in str(error.value)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-SECRET\n")  # of a file that was read with its line end
        open_judge("m", server.url, retries=0).ask([say("a")])
    assert server.keys == ["Bearer sk-SECRET"]


@pytest.mark.parametrize("url", ["http://h:abc/v1", "http://[::1/v1", "http://a..b/v1", "http://h:0/v1"])
def test_a_base_url_that_no_library_takes(url: str):
    with pytest.raises(PosttrainError, match=r"expected a base URL"):
        open_judge("m", url)


def test_an_empty_answer_is_asked_for_again():
    said = iter((None, "yes"))
    with endpoint.serve(lambda body: next(said)) as server:
        answers = [open_judge("m", server.url).ask([say("a")]) for _ in range(3)]
    assert answers == [[""], ["yes"], ["yes"]]
