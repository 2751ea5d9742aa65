"""A stand-in for the Hugging Face hub: the hub's HTTP protocol on loopback, over plain folders.

The hub's own clients (huggingface_hub, transformers, datasets) run unchanged against it, in a process of their own:

    with Hub(tmp_path / "hub") as hub:  # hub/models/ORG/NAME/*, hub/datasets/ORG/NAME/*
        command.run([sys.executable, ...], env=hub.env(), cwd=tmp_path, check=True)
    assert hub.unimplemented == []

The clients read the hub's address and the place of their cache while they are imported. Both are the same in all
tests, so that commands can be forked: the address is one that no network has, with the server as its proxy, and the
cache is in the command's working directory.

It differs from the real hub in that a repository has one commit, that of its files as they lie on disk now; that files
are plain git blobs (no LFS redirect, no Xet), read whole at each request, so keep them small; that an unknown
repository is 404 where the real hub tells an anonymous client 401; and that a gated one is 403 to all, where the real
hub tells an anonymous client 401. Listings are not paginated. Whoever sends the token `TOKEN` can create models and
commit to them; a commit keeps no history, and all its files come in the request, none by LFS or Xet.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

# `??` so that a repository without a namespace (gpt2) is read as one, and answered RepoNotFound.
API = re.compile(r"/api/(models|datasets)/([^/]+(?:/[^/]+)??)(?:/(revision|tree|paths-info|auth-check)(?:/(.+))?)?")
RESOLVE = re.compile(r"/(?:(datasets)/)?([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)")
PUSH = re.compile(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main")
TOKEN = "hf_of_these_tests"
PIECE = 1 << 16
RANGE = re.compile(r"bytes=(\d*)-(\d*)")
Query = dict[str, list[str]]
SETTINGS = {
    "HF_ENDPOINT": "http://hub.test",
    "HF_HOME": "hf-home",
    "HF_HUB_OFFLINE": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # else datasets counts each load at s3.amazonaws.com
}


def alone(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment, with no hub but that of the tests, no other cache and no token."""
    kept = {k: v for k, v in environment.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
    return kept | SETTINGS


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Repository:
    files: dict[str, bytes]
    commit: str

    @classmethod
    def read(cls, folder: Path) -> Repository:
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        listing = "".join(f"{oid('blob', data)} {name}\n" for name, data in files.items())
        return cls(files, oid("commit", listing.encode()))

    def entries(self) -> dict[str, dict[str, Any]]:
        """Every folder and file by path, as the tree and paths-info endpoints describe them."""
        folders = {str(folder) for name in self.files for folder in PurePosixPath(name).parents} - {"."}
        found: list[dict[str, Any]] = [{"type": "directory", "path": p, "oid": oid("tree", b"")} for p in folders]
        found += [{"type": "file", "path": p, "oid": oid("blob", d), "size": len(d)} for p, d in self.files.items()]
        return {entry["path"]: entry for entry in sorted(found, key=lambda entry: entry["path"])}


def oid(kind: str, data: bytes) -> str:
    """Git's object id: 40 hexadecimal digits, as the hub gives for blobs and commits."""
    return hashlib.sha1(b"%s %d\0%s" % (kind.encode(), len(data), data), usedforsecurity=False).hexdigest()


def error(status: int, code: str, message: str, commit: str | None = None) -> Answer:
    # huggingface_hub picks its exception by X-Error-Code; it caches that a file is missing only if it has the commit.
    headers = {"X-Error-Code": code, "X-Error-Message": message} | ({"X-Repo-Commit": commit} if commit else {})
    return Answer(status, json.dumps({"error": message}).encode(), headers)


def reply(content: Any) -> Answer:
    return Answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})


class Hub:
    """The server, up while the context is open.

    `gated` holds ids of repositories whose files are refused, `private` those created so; `requests` every (method,
    path as sent, without its query) so far, and `unimplemented` those of them that are no endpoint here: they were
    answered 404. `pause` is what it waits, in seconds, before each 64 KiB it sends.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pause = 0.0
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        self.unimplemented: list[tuple[str, str]] = []

    def __enter__(self) -> Hub:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def env(self) -> dict[str, str]:
        """This process's environment, for a command that knows no hub but this one and has no token."""
        through = dict.fromkeys(("HTTP_PROXY", "http_proxy"), self.url)
        return alone(os.environ) | through | dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1")

    def answer(self, method: str, target: str, span: str, body: bytes, authorization: str = "") -> Answer:
        url = urlsplit(target)
        self.requests.append((method, url.path))
        if url.hostname and url.hostname.startswith("datasets-server."):  # which has seen no data set yet
            return Answer(404, b"")
        push = PUSH.fullmatch(url.path)
        if method == "POST" and (push or url.path in ("/api/repos/create", "/api/validate-yaml")):
            if authorization != f"Bearer {TOKEN}":
                return error(401, "", "Invalid username or password.")
            return self._push(*push.groups(), body) if push else self._create(url.path, json.loads(body))
        if method in ("GET", "HEAD") and (match := RESOLVE.fullmatch(url.path)):
            kind, repo_id, revision, path = match.groups()
            return self._file(kind or "models", repo_id, unquote(revision), unquote(path), span)
        if match := API.fullmatch(url.path):
            kind, repo_id, action, rest = match.groups()
            revision, _, path = (rest or "main").partition("/")
            query = parse_qs(body.decode() if action == "paths-info" else url.query)
            if method == ("POST" if action == "paths-info" else "GET") and (not path or action == "tree"):
                return self._api(kind, repo_id, action or "revision", unquote(revision), unquote(path), query)
        self.unimplemented.append((method, url.path))
        return Answer(404, b"")

    def _create(self, path: str, request: dict[str, Any]) -> Answer:
        if path == "/api/validate-yaml":
            return reply({"errors": [], "warnings": []})
        name = f"{request['organization']}/{request['name']}"
        if (self.root / "models" / name).exists():
            body = {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
            return Answer(409, json.dumps(body).encode(), {"Content-Type": "application/json"})
        (self.root / "models" / name).mkdir(parents=True)
        if request.get("private") or request.get("visibility") == "private":
            self.private.add(name)
        return reply({"url": f"{self.url}/{name}"})

    def _push(self, repo_id: str, action: str, body: bytes) -> Answer:
        folder = self.root / "models" / repo_id
        if not folder.is_dir():
            return error(404, "RepoNotFound", "Repository not found")
        if action == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            return reply({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in files]})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                target = folder / line["value"]["path"]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(base64.b64decode(line["value"]["content"]))
        commit = Repository.read(folder).commit
        return reply({"commitUrl": f"{self.url}/{repo_id}/commit/{commit}", "commitOid": commit, "success": True})

    def _open(self, kind: str, repo_id: str, revision: str, files: bool) -> Repository | Answer:
        folder = self.root / kind / repo_id
        if folder not in (self.root / kind).glob("*/*"):  # a name of ours only: no `..`, no missing namespace
            return error(404, "RepoNotFound", "Repository not found")
        if files and repo_id in self.gated:
            what = repo_id if kind == "models" else f"datasets/{repo_id}"
            refusal = f"Access to {kind[:-1]} {repo_id} is restricted and you are not in the authorized list."
            return error(403, "GatedRepo", f"{refusal} Visit {self.url}/{what} to ask for access.")
        repository = Repository.read(folder)
        if revision not in ("main", repository.commit):
            return error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository

    def _file(self, kind: str, repo_id: str, revision: str, path: str, span: str) -> Answer:
        repository = self._open(kind, repo_id, revision, files=True)
        if isinstance(repository, Answer):
            return repository
        if path not in repository.files:
            return error(404, "EntryNotFound", "Entry not found", repository.commit)
        data = repository.files[path]
        sent = {"X-Repo-Commit": repository.commit, "ETag": f'"{oid("blob", data)}"', "Accept-Ranges": "bytes"}
        match = RANGE.fullmatch(span)
        if match is None or not any(match.groups()):
            return Answer(200, data, sent)
        first, last = match.groups()
        start = int(first) if first else max(len(data) - int(last), 0)
        stop = min(int(last) + 1, len(data)) if first and last else len(data)
        if start >= stop:
            return Answer(416, b"", sent | {"Content-Range": f"bytes */{len(data)}"})
        return Answer(206, data[start:stop], sent | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})

    def _api(self, kind: str, repo_id: str, action: str, revision: str, path: str, query: Query) -> Answer:
        repository = self._open(kind, repo_id, revision, files=action == "auth-check")
        if isinstance(repository, Answer):
            return repository
        entries = repository.entries()
        if action == "paths-info":
            return reply([entries[name] for name in query.get("paths", []) if name in entries])
        if action == "tree":
            if path and entries.get(path, {}).get("type") != "directory":
                return error(404, "EntryNotFound", f"{path} does not exist on {revision}", repository.commit)
            deep = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            inside = (name for name in entries if not path or name.startswith(f"{path}/"))
            return reply([entries[name] for name in inside if deep or str(PurePosixPath(name).parent) == (path or ".")])
        info = {
            "id": repo_id,
            "sha": repository.commit,
            "private": repo_id in self.private,
            "disabled": False,
            "tags": [],
        }
        gated = "manual" if repo_id in self.gated else False
        return reply(info | {"gated": gated, "siblings": [{"rfilename": name} for name in repository.files]})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep-alive, as the clients expect
    disable_nagle_algorithm = True  # headers and body are two writes, else 40 ms apart

    def __init__(self, hub: Hub, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        sent = {name: self.headers.get(name, "") for name in ("Range", "Authorization")}
        answer = self.hub.answer(self.command, self.path, sent["Range"], body, sent["Authorization"])
        self.send_response(answer.status)
        for name, value in (answer.headers | {"Content-Length": str(len(answer.body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            for start in range(0, len(answer.body), PIECE):
                time.sleep(self.hub.pause)
                self.wfile.write(answer.body[start : start + PIECE])

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = respond

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: `Hub.requests` is the log."""
