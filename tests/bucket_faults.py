"""A proxy before an object store that spoils answers: 503, 429, cut in the middle, one byte flipped, silence."""

import contextlib
import http.server
import threading
import time
import urllib.parse

import requests

HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "content-encoding", "host", "accept-encoding"}


class Faults:
    """The faults to come: `plan` holds one for each of the next requests that `where` picks."""

    def __init__(self):
        self.plan: list[str] = []
        self.seen = 0
        self.where = lambda method, path: True

    def next(self, method: str, path: str) -> str:
        self.seen += 1
        return self.plan.pop(0) if self.plan and self.where(method, path) else ""


@contextlib.contextmanager
def proxy(target: str):
    """(address, Faults) of a proxy before the server at `target`, which ends with the block."""
    faults = Faults()
    host = urllib.parse.urlparse(target).netloc

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            """Nothing."""

        def forward(self):
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size)
            fault = faults.next(self.command, self.path)
            if fault in ("503", "429"):
                self.reply(int(fault), {}, b"busy")
                return
            if fault == "hang":
                time.sleep(3)
                self.close_connection = True
                return
            headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP_BY_HOP}
            headers |= {"Host": host, "Accept-Encoding": "identity"}
            answer = requests.request(self.command, target + self.path, headers=headers, data=body, timeout=60)
            content = answer.content
            if fault == "flip" and content:
                content = content[:-1] + bytes([content[-1] ^ 1])
            self.reply(answer.status_code, answer.headers, content, cut=fault == "cut")

        def reply(self, status, headers, content, *, cut=False):
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in HOP_BY_HOP:
                    self.send_header(name, value)
            length = headers.get("Content-Length", len(content)) if self.command == "HEAD" else len(content)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command != "HEAD":
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # array_record drops connections
                    self.wfile.write(content[: len(content) // 2] if cut else content)
            if cut:
                self.close_connection = True

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = forward

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", faults
    finally:
        server.shutdown()
        server.server_close()
