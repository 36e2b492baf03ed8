#!/usr/bin/env python3
"""What a guest that turned against its host would try; run as root in the guest.

  hostile.py listeners N          N listening ports at once, then none
  hostile.py flap N               one port opened and closed N times, as fast as it goes
  hostile.py serial               garbage on the guest agent's port, in place of the agent
  hostile.py dial                 connections to the host's side of the vsock

hostile_device.py drives the vsock device itself, hostile_agent.py lies in place of the agent.

Says "done" at the end; whether the host minded is for the host to look at.
"""
import os
import random
import resource
import socket
import struct
import sys
import time

PORT = "/dev/virtio-ports/io.lima-vm.guest_agent.0"


def raise_files():
    resource.setrlimit(resource.RLIMIT_NOFILE, (65536, 65536))


def listeners(n):
    raise_files()
    held = []
    for port in range(1024, 65536):
        if len(held) == int(n):
            break
        s = socket.socket()
        try:
            s.bind(("127.0.0.1", port))
            s.listen(1)
            held.append(s)
        except OSError:
            s.close()
    print(f"{len(held)} open", flush=True)
    sys.stdin.readline()    # the host has looked


def flap(n):
    for _ in range(int(n)):
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(("127.0.0.1", 20999))
            s.listen(1)


def serial():
    rng = random.Random(1)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    fd = os.open(PORT, os.O_RDWR | os.O_NONBLOCK)
    end = time.monotonic() + 60
    for i in range(400):
        kind = i % 4
        if kind == 0:
            data = rng.randbytes(rng.randrange(1, 65536))
        elif kind == 1:        # frames that look right
            data = preface + b"".join(
                struct.pack(">I", length)[1:] + bytes([rng.randrange(12), rng.randrange(256)])
                + struct.pack(">I", rng.getrandbits(32)) + rng.randbytes(min(length, 200))
                for length in (rng.choice([0, 8, 100, 1 << 14, (1 << 24) - 1]) for _ in range(40)))
        elif kind == 2:
            data = bytes(rng.randrange(1, 65536))
        else:
            data = preface * 100
        while data and time.monotonic() < end:
            try:
                data = data[os.write(fd, data):]
            except BlockingIOError:
                time.sleep(0.001)
        try:
            os.read(fd, 65536)
        except BlockingIOError:
            pass
    os.close(fd)


def dial():
    bad = []
    for port in [*range(1, 200), 2222, 2223, 0xfffffffe]:
        with socket.socket(socket.AF_VSOCK) as s:
            s.settimeout(5)
            try:
                s.connect((2, port))
                bad.append(port)
            except OSError:
                pass
    flood = [socket.socket(socket.AF_VSOCK) for _ in range(500)]
    for i, s in enumerate(flood):
        s.setblocking(False)
        s.connect_ex((2, i))
    for s in flood:
        s.close()
    if bad:
        sys.exit(f"the host took connections on ports {bad}")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
    print("done")
