#!/usr/bin/env python3
"""A guest agent that lies: gRPC by hand on the agent's serial port (RFC 9113, RFC 7541,
gRPC's "over HTTP2"); run as root in the guest while lima-guestagent is stopped.

  hostile_agent.py SEED SECONDS PORT...    each PORT is told to listen, whatever it is

Answers the host's calls: addresses, protocols and texts with control characters, ports
that are none, more of everything than anybody wants, messages cut short, frames for
streams that are none. Says how many lies went out.
"""
import os
import random
import struct
import sys
import time

DEVICE = "/dev/virtio-ports/io.lima-vm.guest_agent.0"
SECRET = "/run/lima-guestagent/secret"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
EVIL = ["\x1b[2J\x1b]0;owned\x07", "a\nb\r\x00c", "\x9b31m", "\u202e\ufeff", "%s%n%x" * 20, "x" * 100000, "", "../../etc",
        "127.0.0.1\x1b[31m", "{\"status\":{\"exiting\":true}}\n"]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


# --- protobuf ---------------------------------------------------------------------

def varint(n):
    n &= (1 << 64) - 1
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def number(field, n):
    return varint(field << 3) + varint(n)


def text(field, s):
    s = s.encode("utf-8", "surrogateescape") if isinstance(s, str) else s
    return varint(field << 3 | 2) + varint(len(s)) + s


def port(protocol, ip, n):
    return text(1, protocol) + text(2, ip) + number(3, n)


def wild_port(rng):
    return port(rng.choice(["tcp", "udp", "tcp", rng.choice(EVIL)]),
                rng.choice(["127.0.0.1", "0.0.0.0", "::", "10.0.0.1", "999.1.1.1", rng.choice(EVIL)]),
                rng.choice([rng.randrange(1024, 65536), 0, -1, 65536, 1 << 31, 1 << 63]))


# --- the lies: messages of proto/guestservice.proto -------------------------------------

def info(rng, ports):
    return (text(100, rng.choice(EVIL)) + text(102, rng.choice(EVIL)) + text(103, rng.choice(EVIL)) +
            b"".join(text(101, f) for f in ("snapshot", "tunnel-kinds", "boot-progress", rng.choice(EVIL))) +
            number(105, rng.choice([0, 1, 722, 1 << 31, 0xffffffff])) +
            text(104, text(1, rng.choice(EVIL)) + text(4, rng.choice(EVIL)) + text(5, rng.choice(EVIL)) * 100))


def event(rng, ports, first):
    kind = 0 if first else rng.choice([*range(7)] * 3 + [7, 8])
    head = number(100, int(first or rng.random() < 0.3)) + number(101, rng.choice([1, 2, 0, 1 << 63]))
    named = b"".join(text(2, port("tcp", "127.0.0.1", p)) for p in ports)
    return head + named + [
        b"", b"".join(text(2, wild_port(rng)) for _ in range(300)), b"".join(text(3, wild_port(rng)) for _ in range(300)),
        b"".join(text(4, rng.choice(EVIL)) for _ in range(200)), text(2, b"") * 50000,
        text(102, text(1, rng.choice(EVIL)) + text(4, rng.choice(EVIL)) + text(5, rng.choice(EVIL)) * 500),
        b"".join(text(2, port("tcp", "0.0.0.0", p)) for p in range(1, 65536, 3)),
        rng.randbytes(rng.randrange(2000)), number(103, rng.getrandbits(32)),
    ][kind]


class Session:
    def __init__(self, fd, rng, ports, secret):
        self.fd, self.rng, self.ports, self.secret = fd, rng, ports, secret
        self.buffer, self.told, self.streams = b"", 0, {}
        self.fresh = False      # the host's preface comes next
        self.window, self.windows, self.window_first = 65535, {}, 65535    # bytes the host lets us send

    def write(self, data):
        patience = time.monotonic() + 5
        while data:
            try:
                data = data[os.write(self.fd, data):]
            except BlockingIOError:
                if time.monotonic() > patience:
                    raise TimeoutError("the host reads nothing")
                time.sleep(0.002)

    def frame(self, kind, flags, stream, payload):
        self.write(struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload)

    def message(self, stream, payload):
        payload = b"\0" + struct.pack(">I", len(payload)) + payload
        patience = time.monotonic() + 2
        while payload and stream in self.streams:
            n = min(len(payload), self.window, self.windows[stream], 16000)
            if n > 0:
                self.frame(DATA, 0, stream, payload[:n])
                self.window, self.windows[stream], payload = self.window - n, self.windows[stream] - n, payload[n:]
            elif time.monotonic() > patience:
                raise TimeoutError("the host lets us send nothing")
            else:
                self.hear()
        self.told += 1

    def headers(self, stream):
        # :status 200, then content-type (RFC 7541 appendix A: 8, 31), not indexed
        self.frame(HEADERS, END_HEADERS, stream, b"\x88\x0f\x10\x10application/grpc")

    def trailers(self, stream):
        status = self.rng.choice([b"0", b"14", b"-1", b"\x1b[31m"])
        self.frame(HEADERS, END_HEADERS | END_STREAM, stream, b"\0\x0bgrpc-status" + bytes([len(status)]) + status)

    def synced(self):
        """Answers the host's SYN (proto/link.h) wherever it comes; what is before is another session's."""
        at = self.buffer.rfind(self.secret)
        if at < 0 or len(self.buffer) < at + 32:
            return False
        nonce = self.buffer[at + 16:at + 32]
        self.buffer, self.streams, self.window, self.windows = self.buffer[at + 32:], {}, 65535, {}
        self.fresh = True
        self.write(bytes(b ^ 255 for b in self.secret) + nonce)
        self.frame(SETTINGS, 0, 0, struct.pack(">HI", 1, 0))    # no table: each path is spelled out
        return True

    def take(self, kind, flags, stream, payload):
        if kind == WINDOW_UPDATE and stream:
            self.windows[stream] = self.windows.get(stream, self.window_first) + int.from_bytes(payload, "big")
        elif kind == WINDOW_UPDATE:
            self.window += int.from_bytes(payload, "big")
        elif kind == RST_STREAM:
            self.streams.pop(stream, None)
        elif kind == SETTINGS and not flags & ACK:
            for key, value in struct.iter_unpack(">HI", payload):
                self.window_first = value if key == 4 else self.window_first
            self.frame(SETTINGS, ACK, 0, b"")
        elif kind == PING and not flags & ACK:
            self.frame(PING, ACK, 0, payload)
        elif kind == HEADERS:
            self.streams[stream] = next((m for m in (b"GetInfo", b"GetEvents", b"Tunnel", b"SyncTime")
                                         if m in payload), b"")
            self.windows.setdefault(stream, self.window_first)
            self.headers(stream)
            if self.streams[stream] == b"GetInfo":
                self.message(stream, info(self.rng, self.ports))
                self.frame(HEADERS, END_HEADERS | END_STREAM, stream, b"\0\x0bgrpc-status\x010")
            elif self.streams[stream] == b"GetEvents":
                self.message(stream, event(self.rng, self.ports, True))

    def frames(self):
        if self.fresh and len(self.buffer) >= len(PREFACE):
            self.buffer, self.fresh = self.buffer[len(PREFACE):], False
        while not self.fresh and len(self.buffer) >= 9:
            n = int.from_bytes(self.buffer[:3], "big")
            if len(self.buffer) < 9 + n:
                return
            kind, flags, stream = self.buffer[3], self.buffer[4], int.from_bytes(self.buffer[5:9], "big")
            payload, self.buffer = self.buffer[9:9 + n], self.buffer[9 + n:]
            self.take(kind, flags, stream, payload)

    def lie(self):
        rng = self.rng
        for stream, method in list(self.streams.items()):
            if method == b"GetEvents":
                self.message(stream, event(rng, self.ports, False))
            elif method == b"Tunnel":
                self.message(stream, text(1, rng.choice(EVIL)) + number(100, rng.choice([0, 2, 3, 4, 5, 9, 1 << 40])) +
                             text(3, rng.randbytes(500)) + text(101, rng.choice(EVIL)) + number(102, rng.getrandbits(31)))
            elif method == b"SyncTime":
                self.message(stream, number(1, 1) + number(2, 1 << 63) + text(3, rng.choice(EVIL)))
                self.trailers(stream)
                self.streams.pop(stream, None)
        if rng.random() < 0.02:
            self.frame(rng.randrange(12), rng.randrange(256), rng.choice([0, 1, 2, 99]), rng.randbytes(rng.randrange(40)))

    def hear(self):
        try:
            self.buffer += os.read(self.fd, 65536)
        except BlockingIOError:
            time.sleep(0.005)
        self.synced()
        self.frames()

    def turn(self):
        self.hear()
        if self.streams and self.rng.random() < 0.3:
            self.lie()


def one_session(rng, ports, secret, until):
    """Opening the port makes the host begin anew. How many lies it took."""
    fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK)
    s = Session(fd, rng, [int(p) for p in ports], secret)
    try:
        while time.monotonic() < until:
            s.turn()
    except (TimeoutError, struct.error):
        pass        # it has enough of us
    os.close(fd)
    return s.told


def main(seed, seconds, *ports):
    with open(SECRET) as f:
        secret = bytes.fromhex(f.read().strip())
    rng, end = random.Random(int(seed)), time.monotonic() + float(seconds)
    told = sessions = 0
    while time.monotonic() < end:
        told, sessions = told + one_session(rng, ports, secret, min(end, time.monotonic() + 2)), sessions + 1
    print(f"{sessions} sessions")
    print(f"{told} lies")
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
