"""A small server on this machine that speaks what huggingface_hub asks the Hub for: repositories
made, files committed (inside of the request, or by LFS), listed and given."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_thisIsTheSecretOfATest"
LARGE = 100_000  # bytes from which a file goes by LFS
_API = re.compile(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(\w+)(?:/([^/]+))?)?")
_FILE = re.compile(r"/(?:(dataset)s/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_LFS = re.compile(r"/(?:(dataset)s/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch")


@dataclass
class Repository:
    """Commits, the newest last: (hash, content by name)."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def commit(self, files: dict[str, bytes]) -> str:
        number = f"{len(self.commits)} {sorted(files)}".encode()
        self.commits.append((hashlib.sha1(number).hexdigest(), files))
        return self.commits[-1][0]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((one for one in self.commits if one[0] == revision), None)


@dataclass
class Hub:
    """repositories: by type and id. asked: requests, as `METHOD path`. lfs: contents by hash."""

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    lfs: dict[str, bytes] = field(default_factory=dict)
    address: str = ""

    def files(self, repo: str, kind: str = "model") -> dict[str, bytes]:
        return self.repositories[kind, repo].commits[-1][1]


@contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def fail(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self.answer(status, {"error": message}, headers)

    @property
    def is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def repository(self, kind: str | None, repo: str) -> Repository | None:
        found = self.hub.repositories.get((kind or "model", repo))
        if found is None or (found.private and not self.is_known):
            self.fail(401 if not self.is_known else 404, "RepoNotFound", "Repository not found")
            return None
        return found

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.hub.asked.append(f"{self.command} {path}")
        if match := _FILE.fullmatch(path):
            return self.give_file(*match.groups())
        match = _API.fullmatch(path)
        if match is None:
            return self.fail(404, "EntryNotFound", "no such page")
        kind, repo, what, revision = match.groups()
        found = self.repository(kind, repo)
        if found is None:
            return None
        at = found.at(unquote(revision or "main"))
        if at is None:
            return self.fail(404, "RevisionNotFound", "Invalid rev id")
        if what == "tree":
            entries = [entry(name, content) for name, content in at[1].items()]
            return self.answer(200, entries)
        about: dict[str, Any] = {
            "id": repo,
            "sha": at[0],
            "private": found.private,
            "tags": [],
            "downloads": 0,
        }
        return self.answer(200, {**about, "siblings": [{"rfilename": name} for name in at[1]]})

    def give_file(self, kind: str | None, repo: str, revision: str, name: str) -> None:
        found = self.repository(kind, repo)
        if found is None:
            return None
        at = found.at(unquote(revision))
        content = at and at[1].get(unquote(name))
        if at is None or content is None:
            return self.fail(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": at[0], "ETag": f'"{oid(content)}"'}
        return self.answer(200, content, headers)

    def do_PUT(self) -> None:
        self.hub.asked.append(f"PUT {self.path}")
        name, content = self.path.rpartition("/")[2], self.body()
        if hashlib.sha256(content).hexdigest() != name:
            return self.fail(400, "BadRequest", "another content than was announced")
        self.hub.lfs[name] = content
        return self.answer(200, {})

    def do_POST(self) -> None:
        path, body = urlsplit(self.path).path, self.body()
        self.hub.asked.append(f"POST {path}")
        if not self.is_known:
            return self.fail(401, "", "Invalid username or password.")
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if match := _LFS.fullmatch(path):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return self.answer(200, {"transfer": "basic", "objects": objects})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        match = _API.fullmatch(path)
        found = match and self.repository(match[1], match[2])
        if match is None or found is None:
            return None
        if match[3] == "preupload":
            files = json.loads(body)["files"]
            modes = ["lfs" if one["size"] >= LARGE else "regular" for one in files]
            named = zip(files, modes, strict=True)
            return self.answer(
                200,
                {
                    "files": [
                        {"path": one["path"], "uploadMode": mode, "shouldIgnore": False}
                        for one, mode in named
                    ]
                },
            )
        return self.commit(found, match[2], body)

    def create(self, asked: dict[str, Any]) -> None:
        key = asked.get("type") or "model", f"{asked['organization']}/{asked['name']}"
        if asked["organization"] == "others":
            return self.fail(403, "", "You don't have the rights to create a model under others")
        if key in self.hub.repositories:
            return self.answer(
                409, {"error": "You already created this repo", "url": self.url(key)}
            )
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[key] = Repository(private)
        self.hub.repositories[key].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        return self.answer(200, {"url": self.url(key)})

    def url(self, key: tuple[str, str]) -> str:
        return f"{self.hub.address}/{'datasets/' if key[0] == 'dataset' else ''}{key[1]}"

    def commit(self, found: Repository, repo: str, body: bytes) -> None:
        files = dict(found.commits[-1][1])
        for line in body.splitlines():
            one = json.loads(line)
            value = one["value"]
            if one["key"] == "header":
                if value.get("parentCommit") not in (None, found.commits[-1][0]):
                    return self.fail(412, "", "A commit has happened since")
            elif one["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif one["key"] == "lfsFile":
                files[value["path"]] = self.hub.lfs[value["oid"]]
            elif one["key"] == "deletedFile":
                del files[value["path"]]
        sha = found.commit(files)
        url = f"{self.hub.address}/{repo}/commit/{sha}"
        return self.answer(200, {"success": True, "commitOid": sha, "commitUrl": url})


def oid(content: bytes) -> str:
    if len(content) >= LARGE:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\x00" % len(content) + content).hexdigest()


def entry(name: str, content: bytes) -> dict[str, Any]:
    """A file of a tree."""
    found = {"type": "file", "path": name, "size": len(content), "oid": oid(content)}
    if len(content) < LARGE:
        return found
    return {**found, "lfs": {"oid": oid(content), "size": len(content), "pointerSize": 134}}
