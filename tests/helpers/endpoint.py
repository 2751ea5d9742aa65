"""An OpenAI-compatible endpoint on 127.0.0.1 for tests: answers by a function, counts, fails when told to."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Served:
    """`url` is the base URL; `requests` are the bodies that came; `statuses` are given first, then 200."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)


@contextmanager
def serve(answer: Callable[[dict[str, Any]], Any]) -> Iterator[Served]:
    """Answer each chat completion, or request of embeddings, with `answer(body)` while the block lasts."""
    served, lock = Served(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            status = served.statuses[0] if served.statuses else 200
            self._send(status, {"data": []})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                served.requests.append(body)
                served.keys.append(self.headers.get("authorization"))
                status = served.statuses.pop(0) if served.statuses else 200
            if self.path not in ("/v1/chat/completions", "/v1/embeddings"):
                status = 404
            if status != 200:
                self._send(status, {"error": {"message": f"refused {self.headers.get('authorization')}"}})
            elif self.path == "/v1/embeddings":
                self._send(200, {"data": answer(body)})
            else:
                self._send(200, {"choices": [{"message": {"role": "assistant", "content": answer(body)}}]})

        def _send(self, status: int, payload: dict[str, Any]) -> None:
            text = json.dumps(payload).encode()
            self.send_response(status)
            for name, value in (served.headers if status != 200 else {}).items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
