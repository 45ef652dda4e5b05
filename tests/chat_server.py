"""A server that speaks the protocol of chat models, with its faults."""

import http.server
import json
import threading
import time

import pytest

KEY = "sk-of-nobody"
THREE = {"short_caption": "red", "caption": "All is red.", "long_caption": "All of it is red, and stays so."}


class Server(http.server.ThreadingHTTPServer):
    """Answers by the faults that are still to come, then well. Keeps what it was asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.faults, self.asked, self.times = json.dumps(THREE), [], [], []
        self.active = self.most_active = 0
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        server = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with server.lock:
            server.times.append(time.monotonic())
            server.asked.append((self.path, dict(self.headers), json.loads(body)))
            server.active += 1
            server.most_active = max(server.most_active, server.active)
            fault = server.faults.pop(0) if server.faults else None
        try:
            self.answer(fault)
        finally:
            with server.lock:
                server.active -= 1

    def answer(self, fault):
        match fault:
            case None:
                self.send(200, answer(self.server.content))
            case int():
                self.send(fault, {"error": {"message": f"fault {fault} of {KEY}", "code": None}})
            case (int() as status, dict() as headers):
                self.send(status, {"error": {"message": "wait"}}, headers)
            case "quota":
                self.send(429, {"error": {"message": "You exceeded it", "code": "insufficient_quota"}})
            case "slow":
                time.sleep(0.4)
                self.send(200, answer(self.server.content))
            case "pause":
                time.sleep(0.1)
                self.send(200, answer(self.server.content))
            case "cut":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices": [')
                self.close_connection = True
            case "hang up":
                self.close_connection = True
            case bytes():
                self.send(200, fault)
            case dict():
                self.send(200, fault)

    def send(self, status, body, headers=()):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def answer(content, finish="stop", **message):
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return {"choices": [choice], "usage": {"total_tokens": 100}}


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
