"""A real S3 server on this machine, and a proxy in front of it that fails as networks do."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import s3fs

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "id",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}
ERRORS = {
    "503": b"<Error><Code>SlowDown</Code><Message>Slow down</Message></Error>",
    "403": b"<Error><Code>AccessDenied</Code><Message>Access denied</Message></Error>",
}
# (method and path, number of earlier requests) -> what happens to a request: "" nothing, a key of
# ERRORS, "cut" in the middle of its answer, or the seconds it is delayed
Trouble = Callable[[str, int], str]


@contextmanager
def s3_server() -> Iterator[int]:
    """The port of moto's server, which runs in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not _answers(port):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def client(port: int) -> s3fs.S3FileSystem:
    """Puts objects there and removes them, without the proxy."""
    endpoint = {"endpoint_url": f"http://127.0.0.1:{port}"}
    return s3fs.S3FileSystem(client_kwargs=endpoint, skip_instance_cache=True)


def upload(port: int, folder: Path, bucket: str) -> None:
    """Uploads all files of a folder into a new bucket."""
    fs = client(port)
    fs.mkdir(bucket)
    for path in folder.rglob("*"):
        if path.is_file():
            key = f"{bucket}/{path.relative_to(folder).as_posix()}"
            fs.pipe_file(key, path.read_bytes(), ACL="public-read")  # for access by http


class Proxy:
    """In front of a server: records the requests and disturbs them."""

    def __init__(self, port: int) -> None:
        self.trouble: Trouble = lambda request, number: ""
        self.requests: list[str] = []  # method, path and range
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                what = proxy.trouble(f"{self.command} {self.path}", len(proxy.requests))
                asked = self.headers.get("Range", "")
                proxy.requests.append(f"{self.command} {self.path} {asked}".strip())
                if what in ("503", "403"):
                    body = ERRORS[what]
                    self._answer(int(what), {"Content-Length": str(len(body))}, body)
                    return
                if what not in ("", "cut"):
                    time.sleep(float(what))
                there = http.client.HTTPConnection("127.0.0.1", port)
                there.request(self.command, self.path, headers=dict(self.headers))
                answer = there.getresponse()
                body = answer.read()
                self._answer(answer.status, dict(answer.headers), body, cut=what == "cut")
                there.close()

            do_HEAD = do_GET

            def _answer(
                self, status: int, headers: dict[str, str], body: bytes, cut: bool = False
            ) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("date", "server", "connection"):
                        self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body[: len(body) // 2] if cut else body)
                self.close_connection = cut

            def log_message(self, *args: object) -> None:
                """Logs nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """The client has disconnected."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
