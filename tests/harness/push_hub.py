"""A hub on the loopback interface that takes commits: modes, LFS objects, commits as they come."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.harness.file_hub import commit_of, git_id
from tests.harness.hub_server import answering

TOKEN = "hf_mine"


@dataclass
class PushHub:
    """Repositories by "OWNER/NAME": bytes of files by name, of the last commit.

    objects  the LFS objects that arrived, by sha256.
    put      sha256 of every LFS object that was sent, in order.
    broken   what is answered with 503: "commit", or the sha256 of an object.
    made     the bodies of the requests that made repositories.
    """

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    put: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    made: list[dict[str, Any]] = field(default_factory=list)
    endpoint: str = ""

    def get(self, name: str) -> tuple[int, Any]:
        files = self.repositories.get(name)
        if files is None:
            return 404, "RepoNotFound"
        siblings = [{"rfilename": file} for file in files]
        return 200, {"id": name, "sha": commit_of(files), "siblings": siblings, "tags": []}

    def post(self, path: str, body: bytes) -> tuple[int, Any]:
        pieces = path.partition("?")[0].strip("/").split("/")
        if path.startswith("/api/validate-yaml"):
            return 200, {"errors": [], "warnings": []}
        if path.startswith("/api/repos/create"):
            given = json.loads(body)
            self.made.append(given)
            name = (
                f"{given['organization']}/{given['name']}"
                if "organization" in given
                else given["name"]
            )
            self.repositories.setdefault(name, {".gitattributes": b"*.safetensors filter=lfs\n"})
            return 200, {"url": f"{self.endpoint}/{name}"}
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {"objects": [self.action(each) for each in json.loads(body)["objects"]]}
        name, what = "/".join(pieces[2:4]), pieces[4]
        files = self.repositories[name]
        if what == "preupload":
            return 200, {
                "files": [self.mode(each["path"], files) for each in json.loads(body)["files"]]
            }
        if what == "paths-info":
            asked = [each for each in files if each.encode() in body]
            return 200, [
                {"type": "file", "path": each, "size": len(files[each]), "oid": git_id(files[each])}
                for each in asked
            ]
        if what == "commit":
            return self.commit(name, [json.loads(line) for line in body.splitlines()])
        return 404, "EntryNotFound"

    def action(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Where an LFS object is to be sent; nowhere if it is here."""
        href = f"{self.endpoint}/lfs/{wanted['oid']}"
        actions = {} if wanted["oid"] in self.objects else {"actions": {"upload": {"href": href}}}
        return {**wanted, **actions}

    @staticmethod
    def mode(path: str, files: dict[str, bytes]) -> dict[str, Any]:
        mode = "lfs" if path.endswith(".safetensors") else "regular"
        oid = git_id(files[path]) if path in files and mode == "regular" else None
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def commit(self, name: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        if "commit" in self.broken:
            return 503, "Broken"
        files = dict(self.repositories[name])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.repositories[name] = files
        commit = commit_of(files)
        url = f"{self.endpoint}/{name}/commit/{commit}"
        return 200, {"commitUrl": url, "commitOid": commit}


@contextmanager
def taking_commits() -> Iterator[PushHub]:
    """A hub that answers until the block ends; it knows TOKEN alone."""
    hub = PushHub()

    class Handler(BaseHTTPRequestHandler):
        def _send(self, status: int, content: Any) -> None:
            body = json.dumps(content if status == 200 else {}).encode()
            self.send_response(status)
            if status != 200:
                self.send_header("X-Error-Code", content)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _known(self) -> bool:
            if (
                self.path.startswith("/lfs/")
                or self.headers.get("Authorization") == f"Bearer {TOKEN}"
            ):
                return True
            self._send(401, "InvalidToken")
            return False

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def do_GET(self) -> None:
            if self._known():
                self._send(*hub.get("/".join(self.path.partition("?")[0].split("/")[3:5])))

        def do_POST(self) -> None:
            body = self._body()
            if self._known():
                self._send(*hub.post(self.path, body))

        def do_PUT(self) -> None:
            body, oid = self._body(), self.path.rpartition("/")[2]
            if oid in hub.broken:
                self._send(403, "Broken")  # a refused address is not tried again
                return
            assert hashlib.sha256(body).hexdigest() == oid
            hub.objects[oid] = body
            hub.put.append(oid)
            self._send(200, {})

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with answering(Handler) as hub.endpoint:
        yield hub
