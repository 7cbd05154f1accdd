"""As much of a Weights & Biases server as a run needs: its GraphQL calls, and streams of rows."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Histories = dict[str, list[dict[str, Any]]]  # the rows of each wandb run, by its id


@contextmanager
def server() -> Iterator[tuple[str, Histories]]:
    """Yields its address, and what it has received so far."""
    known: Histories = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            asked = json.loads(body)
            if self.path == "/graphql":
                self._answer({"data": _data(asked, known, self.headers["Host"])})
                return
            id = self.path.split("/")[-2]  # /files/ENTITY/PROJECT/ID/file_stream
            rows = asked.get("files", {}).get("wandb-history.jsonl")
            if rows is not None:
                assert rows["offset"] == len(known[id]), "nothing is overwritten or left out"
                known[id] += map(json.loads, rows["content"])
            self._answer({"exitcode": None, "limits": {}})

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer({})

        def _answer(self, found: object) -> None:
            body = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}", known
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def _data(asked: dict[str, Any], known: Histories, host: str) -> dict[str, Any]:
    """The answer to a GraphQL call."""
    call = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
    assert call is not None
    given = asked["variables"]
    project = {"id": "p", "name": "project", "entity": {"id": "e", "name": "me"}}
    match call[1]:
        case "RunResumeStatus":
            rows = known.get(given["name"])
            bucket = {
                "id": "b", "name": given["name"], "displayName": "name", "config": "{}",
                "summaryMetrics": "{}", "logLineCount": 0, "eventsLineCount": 0,
                "historyLineCount": len(rows or []), "eventsTail": "[]", "tags": [],
                "historyTail": json.dumps([json.dumps(row) for row in (rows or [])[-1:]]),
                "wandbConfig": '{"t": 1}',
            }  # fmt: skip
            return {"model": project | {"bucket": None if rows is None else bucket}}
        case "UpsertBucket":
            known.setdefault(given["name"], [])
            bucket = {
                "id": "b", "name": given["name"], "displayName": "name", "config": "{}",
                "historyLineCount": len(known[given["name"]]), "project": project,
            }  # fmt: skip
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        case "CreateRunFiles":
            files = [{"name": n, "uploadUrl": f"http://{host}/{n}"} for n in given["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
    return {}
