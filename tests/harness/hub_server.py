"""A hub on the loopback interface that speaks as much of the protocol as a plan asks for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote

COMMIT = "0" * 40


@dataclass
class Hub:
    """Repositories by "models/OWNER/NAME" or "datasets/OWNER/NAME": bytes of files by name.

    gated  repositories that are not given to anybody.
    asked  the requests that came, as "METHOD PATH".
    broken  all of them end in an error of the server.
    """

    repositories: dict[str, dict[str, int]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    endpoint: str = ""
    broken: bool = False

    def answer(self, method: str, path: str) -> tuple[int, dict[str, str], object]:
        """Status, headers and content of a request."""
        if path != "/api/agent-harnesses":  # what the client asks for itself
            self.asked.append(f"{method} {path}")
        if self.broken:
            return 503, {}, {}
        pieces = unquote(path.partition("?")[0]).strip("/").split("/")
        if pieces[0] == "api":
            name, rest = "/".join(pieces[1:4]), pieces[4:]
        else:
            kind = ["datasets"] if pieces[0] == "datasets" else ["models"]
            pieces = pieces[1:] if pieces[0] == "datasets" else pieces
            name, rest = "/".join([*kind, *pieces[:2]]), pieces[2:]
        files = self.repositories.get(name)
        if files is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, {}
        if name in self.gated and rest[:1] != ["revision"] and rest:
            return 403, {"X-Error-Code": "GatedRepo"}, {}
        if rest[:1] == ["revision"] and rest[1] not in ("main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, {}
        if rest[:1] == ["resolve"]:
            file = next((each for each in files if "/".join(rest).endswith(each)), None)
            if file is None:
                return 404, {"X-Error-Code": "EntryNotFound"}, {}
            return 200, {"X-Repo-Commit": COMMIT, "X-Linked-Size": str(files[file])}, None
        siblings = [{"rfilename": file, "size": size} for file, size in files.items()]
        gated = "manual" if name in self.gated else False
        about = {"id": name.partition("/")[2], "sha": COMMIT, "siblings": siblings}
        return 200, {}, {**about, "gated": gated, "private": False, "tags": [], "downloads": 0}


@contextmanager
def answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server on loopback that answers by `handler` until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, content = hub.answer(self.command, self.path)
            body = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with answering(Handler) as hub.endpoint:
        yield hub
