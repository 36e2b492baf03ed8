#!/usr/bin/env python3
"""httpd.py ROOT - a web server that misbehaves on request, for download tests.

Prints its port on the first line of stdout, ends when stdin closes. The first
path component says how to behave, the second is a file below ROOT:

  /plain/F    200 or 206, ETag, Last-Modified, 304
  /norange/F  200 always, no validators
  /cut/F      closes the connection in the middle, each time after a further third
  /cutall/F   closes after 1000 bytes, whatever was asked for
  /busy/F     503 twice, then as /plain
  /slow/F     begins, then says nothing more
  /lie/F      206 that starts elsewhere when a range is asked for
  /moved/F    redirect to /plain/F
  /evil/F     redirect to file:///etc/passwd
  /teapot/F   418
  /log        every request so far, "METHOD PATH STATUS RANGE" a line
"""
import email.utils
import hashlib
import http.server
import os
import re
import sys
import threading

root = sys.argv[1]
log, hits = [], {}
lock = threading.Lock()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def note(self, status):
        with lock:
            log.append(f"{self.command} {self.path} {status} {self.headers.get('Range', '-')}")

    def simple(self, status, text=b"", **headers):
        self.note(status)
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        mode, _, name = self.path.lstrip("/").partition("/")
        if mode == "log":
            with lock:
                text = "\n".join(log).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
            return
        with lock:
            hits[self.path] = hit = hits.get(self.path, 0) + 1
        path = os.path.join(root, os.path.basename(name))
        if mode == "teapot" or not os.path.exists(path):
            return self.simple(418 if mode == "teapot" else 404, b"no\n")
        if mode == "moved":
            return self.simple(302, Location=f"/plain/{name}")
        if mode == "evil":
            return self.simple(302, Location="file:///etc/passwd")
        if mode == "busy" and hit <= 2:
            return self.simple(503, b"busy\n")
        self.send_file(mode, path)

    def send_file(self, mode, path):
        with open(path, "rb") as f:
            data = f.read()
        etag = '"' + hashlib.md5(data).hexdigest() + '"'
        modified = email.utils.formatdate(os.stat(path).st_mtime, usegmt=True)
        ranged = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        validated = self.headers.get("If-Range") in (None, etag, modified)
        first = 0
        if mode != "norange":
            none_match = self.headers.get("If-None-Match")
            since = self.headers.get("If-Modified-Since")
            if none_match == etag or (not none_match and since == modified):
                self.note(304)
                self.send_response(304)
                self.send_header("ETag", etag)
                self.end_headers()
                return
            if ranged and validated:
                first = int(ranged.group(1))
                if first >= len(data):
                    return self.simple(416, Content_Range=f"bytes */{len(data)}")
                if mode == "lie":
                    first = 1
        status = 206 if first else 200
        self.note(status)
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(data) - first))
        if mode != "norange":
            self.send_header("ETag", etag)
            self.send_header("Last-Modified", modified)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        body = data[first:]
        if mode == "cut" and len(body) > len(data) // 3 + 1:
            body = body[: len(data) // 3 + 1]
            self.close_connection = True
        if mode == "cutall":
            body = body[:1000]
            self.close_connection = True
        if mode == "slow":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            threading.Event().wait()
        self.wfile.write(body)


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        pass  # clients here go away in the middle on purpose


server = Server(("127.0.0.1", 0), Handler)
server.daemon_threads = True
print(server.server_port, flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
os._exit(0)
