"""A hub on the loopback interface that gives files: commits, ranges, trees, gates, faults."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.harness.hub_server import answering

LFS = (".safetensors", ".parquet", ".gz", ".bin")


def commit_of(files: dict[str, bytes]) -> str:
    """The commit of a repository: it changes with its files."""
    names = sorted((name, hashlib.sha1(data).hexdigest()) for name, data in files.items())
    return hashlib.sha1(json.dumps(names).encode()).hexdigest()


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def etag(name: str, data: bytes) -> str:
    """As the hub has it: sha256 of what is stored as LFS, else the id of the git blob."""
    return hashlib.sha256(data).hexdigest() if name.endswith(LFS) else git_id(data)


@dataclass
class FileHub:
    """Repositories by "models/OWNER/NAME" or "datasets/OWNER/NAME": files by name.

    commits  all that were ever pushed, by repository and commit.
    gated    repositories that are given only with a token.
    damaged  names of files whose last byte changes on its way.
    cut      names of files that end after so many bytes; the next requests are answered with 503
             until the name is removed.
    asked    requests that came, as "METHOD PATH", with the range of one that has a range.
    """

    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    cut: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    endpoint: str = ""

    def push(self, name: str, files: dict[str, bytes], *, forget: bool = False) -> str:
        """Make these the files of all branches; forget=True drops the commits before."""
        commit = commit_of(files)
        before = {} if forget else self.commits.get(name, {})
        self.commits[name] = {**before, commit: files}
        self.heads[name] = commit
        return commit


def _route(path: str) -> tuple[str, list[str]]:
    """Repository and the rest of a path."""
    pieces = [unquote(piece) for piece in urlsplit(path).path.strip("/").split("/")]
    if pieces[0] == "api":
        return "/".join(pieces[1:4]), pieces[4:]
    kind = ["datasets"] if pieces[0] == "datasets" else ["models"]
    pieces = pieces[1:] if pieces[0] == "datasets" else pieces
    return "/".join([*kind, *pieces[:2]]), pieces[2:]


@contextmanager
def serving_files() -> Iterator[FileHub]:
    """A hub that answers until the block ends."""
    hub = FileHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            named = {key.replace("_", "-"): value for key, value in headers.items()}
            for key, value in {"Content-Length": str(len(body)), **named}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _json(self, content: Any) -> None:
            self._send(200, json.dumps(content).encode(), Content_Type="application/json")

        def do_GET(self) -> None:
            said = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            name, rest = _route(self.path)
            if self.path == "/api/agent-harnesses":  # what the client asks for itself
                self._send(404)
                return
            limits = self.headers.get("Range")
            hub.asked.append(f"{self.command} {self.path}" + (f" {limits}" if limits else ""))
            if name not in hub.heads:
                self._send(404, X_Error_Code="RepoNotFound")
                return
            if name in hub.gated and not self.headers.get("Authorization") and rest[:1] not in (
                [], ["revision"],
            ):  # fmt: skip
                self._send(403, X_Error_Code="GatedRepo")
                return
            revision = rest[1] if len(rest) > 1 else "main"
            branch = revision == "main" or revision.startswith("refs/")
            commit = hub.heads[name] if branch else revision
            files = hub.commits[name].get(commit)
            if files is None:
                self._send(404, X_Error_Code="RevisionNotFound")
                return
            what = rest[0] if rest else "revision"
            if what == "resolve":
                self._file(commit, files, "/".join(rest[2:]))
            elif what == "paths-info":
                asked = _paths(said)
                self._json([entry(path, files[path]) for path in asked if path in files])
            elif what == "tree":
                under = "/".join(rest[2:])
                inside = [path for path in files if path.startswith(f"{under}/" if under else "")]
                if under and not inside:
                    self._send(404, X_Error_Code="EntryNotFound")
                else:
                    self._json([entry(path, files[path]) for path in inside])
            else:
                gated = "manual" if name in hub.gated else False
                siblings = [{"rfilename": file, "size": len(files[file])} for file in files]
                about = {"id": name.partition("/")[2], "sha": commit, "siblings": siblings}
                self._json({**about, "gated": gated, "private": False, "tags": [], "downloads": 0})

        do_HEAD = do_GET
        do_POST = do_GET

        def _file(self, commit: str, files: dict[str, bytes], path: str) -> None:
            data = files.get(path)
            if data is None:
                self._send(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
                return
            about = {"ETag": f'"{etag(path, data)}"', "X-Repo-Commit": commit}
            if self.command == "HEAD":
                self._send(200, **about, Content_Length=str(len(data)))
                return
            start = int(self.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
            if path in hub.cut and hub.cut[path] <= 0:
                self._send(503)
                return
            if path in hub.damaged:
                data = data[:-1] + bytes([data[-1] ^ 1])
            part = data[start:]
            self.send_response(206 if start else 200)
            for key, value in about.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(part)))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if path in hub.cut:
                self.wfile.write(part[: hub.cut[path]])
                hub.cut[path] = 0
                self.close_connection = True
                return
            self.wfile.write(part)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with answering(Handler) as hub.endpoint:
        yield hub


def entry(path: str, data: bytes) -> dict[str, Any]:
    """A file as the hub lists it."""
    lfs = {"oid": etag(path, data), "size": len(data), "pointerSize": 134}
    about = {"type": "file", "path": path, "size": len(data), "oid": git_id(data)}
    return {**about, **({"lfs": lfs} if path.endswith(LFS) else {})}


def _paths(said: bytes) -> list[str]:
    try:
        return list(json.loads(said)["paths"])
    except ValueError:
        from urllib.parse import parse_qs

        return parse_qs(said.decode()).get("paths", [])
