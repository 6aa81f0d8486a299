"""A real nginx, and a line to it that fails in chosen ways. All on 127.0.0.1, started and stopped by the tests."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
CONFIG = """
{user}
worker_processes 1;
error_log {folder}/error.log;
pid {folder}/pid;
events {{ worker_connections 256; }}
http {{
  log_format line '$request_method $request_uri $status $body_bytes_sent $http_range';
  access_log {folder}/access.log line;
  client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
  uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
  limit_req_zone $uri zone=all:1m rate=20r/s;
  server {{
    listen 127.0.0.1:{port};
    location / {{ root {files}; }}
    location /slow/ {{ alias {files}/; limit_rate 200k; }}
    location /noranges/ {{ alias {files}/; max_ranges 0; }}
    location /crowded/ {{ alias {files}/; limit_req zone=all burst=1 nodelay; }}
    location /away/ {{ return 503; }}
    location /secret/ {{ return 403; }}
  }}
}}
"""


@dataclass(frozen=True)
class Request:
    """A line of the access log. `byte_range`: (first, last) byte asked for, None for the whole file."""

    method: str
    path: str
    status: int
    num_bytes: int
    byte_range: tuple[int, int] | None


class Nginx:
    """Serves a folder; `/slow`, `/noranges`, `/crowded` are the same files, `/away` and `/secret` refuse."""

    def __init__(self, folder: Path, files: Path):
        folder.mkdir()
        self.port, self.log = free_port(), folder / "access.log"
        self.url = f"http://127.0.0.1:{self.port}"
        user = "user root;" if os.geteuid() == 0 else ""  # a test's folder is closed to others
        config = folder / "nginx.conf"
        config.write_text(CONFIG.format(folder=folder, files=files, port=self.port, user=user))
        assert NGINX is not None
        command = [NGINX, "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log"), "-g", "daemon off;"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        wait_until(lambda: _answers(self.port))

    def requests(self) -> list[Request]:
        """Every request that was answered so far."""
        marker = f"/no-such-file-{time.monotonic_ns()}"
        with socket.create_connection(("127.0.0.1", self.port)) as line:
            line.sendall(f"GET {marker} HTTP/1.0\r\n\r\n".encode())
            while line.recv(4096):
                pass
        wait_until(lambda: marker in self.log.read_text())
        found = [_request(text) for text in self.log.read_text().splitlines()]
        return [request for request in found if not request.path.startswith("/no-such-file-")]

    def downloads(self, suffix: str = "") -> list[Request]:
        """The GETs of files whose name ends so."""
        return [r for r in self.requests() if r.method == "GET" and r.path.endswith(suffix)]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


class FailingLine:
    """A TCP proxy. `plan(n)` says how many bytes connection n may bring before it is cut; None: all; -1: it is accepted
    and nothing ever comes.
    """

    def __init__(self, port: int, plan: Callable[[int], int | None]):
        self.target, self.plan, self.num_connections = port, plan, 0
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.server.accept()
            except OSError:
                return
            allowed = self.plan(self.num_connections)
            self.num_connections += 1
            threading.Thread(target=self._serve, args=(near, allowed), daemon=True).start()

    def _serve(self, near: socket.socket, allowed: int | None) -> None:
        with near, socket.create_connection(("127.0.0.1", self.target)) as far:
            threading.Thread(target=_pump, args=(near, far, None), daemon=True).start()
            if allowed == -1:
                near.recv(1 << 16)
                threading.Event().wait(30)
            _pump(far, near, allowed)

    def stop(self) -> None:
        self.server.close()


def _pump(source: socket.socket, target: socket.socket, allowed: int | None) -> None:
    try:
        while allowed is None or allowed > 0:
            data = source.recv(1 << 16 if allowed is None else min(1 << 16, allowed))
            if not data:
                break
            target.sendall(data)
            allowed = None if allowed is None else allowed - len(data)
        for line in (source, target):
            line.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the other side has left


def _request(text: str) -> Request:
    method, path, status, num_bytes, asked = text.split(" ")
    first, _, last = asked.removeprefix("bytes=").partition("-")
    return Request(method, path, int(status), int(num_bytes), (int(first), int(last)) if first else None)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_until(true: Callable[[], bool]) -> None:
    """Fails the test when that does not become true in 30 seconds."""
    end_s = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end_s, "waited for 30 s"
        time.sleep(0.01)


def start_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that runs `code` with `sys.argv[1:]`, from the root of the checkout."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def output(process: subprocess.Popen[str]) -> str:
    """What the process printed; fails the test unless it ended well."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out
