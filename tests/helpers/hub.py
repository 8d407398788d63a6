"""A hub on the loopback: as much of its HTTP interface as making a repository and committing files to it takes."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import transformers


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        hub = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.requests.append((self.path, self.headers.get("Authorization")))
        if hub.refuse or self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._answer(401, {"error": "Invalid credentials in Authorization header"})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repository = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
            hub.private[repository] = asked.get("visibility") == "private" or bool(asked.get("private"))
            return self._answer(200, {"url": f"{hub.url}/{repository}", "name": repository})
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        if "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            title = next(line["value"]["summary"] for line in lines if line["key"] == "header")
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            hub.commits.append((title, files))
            repository = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            oid = f"{len(hub.commits):040x}"
            return self._answer(200, {"commitUrl": f"{hub.url}/{repository}/commit/{oid}", "commitOid": oid})
        return self._answer(404, {"error": f"no {self.path} here"})

    def _answer(self, status, content):
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


class Hub(ThreadingHTTPServer):
    """What was asked of it is in `requests` and `private`, what was pushed in `commits`: (title, {path: content})."""

    daemon_threads = True

    def __init__(self, token):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token, self.refuse = token, False
        self.requests, self.commits, self.private = [], [], {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def files(self):
        """What the repository holds now."""
        return {path: content for _, files in self.commits for path, content in files.items()}


@contextmanager
def running_hub(monkeypatch, token="hf_right"):
    """A hub that this process's client talks to."""
    hub = Hub(token)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)  # made anew, for this endpoint
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join(timeout=10)
        transformers.utils.hub._hf_api = None
