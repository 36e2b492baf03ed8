#!/usr/bin/env python3
"""What an attack from the guest may not change on the host; 05-hostile.bats asks.

  hostile_host.py state DIR             JSON: pids, descriptors, KiB of the host agent, bytes of logs
  hostile_host.py same DIR FILE         the same processes, and no more descriptors and memory
                                        than FILE's state and an allowance; says what is not
  hostile_host.py logs DIR              nothing but printable UTF-8 in our logs, each bounded
  hostile_host.py taken PORT...         none of these ports is ours now: each can be bound
  hostile_host.py clients PORT SECONDS  connections that come and go; how they fare is no matter
"""
import json
import os
import pathlib
import re
import socket
import sys
import time

MORE_FDS = 32
MORE_KIB = 64 * 1024        # heap that is kept for the next time; bounded, not growing
LOG_MAX = 72 << 20          # docs/files.md: cut at 64 MiB, looked at every 15 s
OURS = ("ha.stdout.log", "ha.stderr.log")


def state(where):
    where = pathlib.Path(where)
    pids = {n: int((where / f"{n}.pid").read_text().split()[0]) for n in ("ha", "qemu")}
    status = dict(re.findall(r"(\w+):\s+(\d+)", pathlib.Path(f"/proc/{pids['ha']}/status").read_text()))
    return {"pids": pids, "fds": len(os.listdir(f"/proc/{pids['ha']}/fd")),
            "kib": int(status["RssAnon"]) + int(status["RssFile"]),
            "logs": {f.name: f.stat().st_size for f in where.glob("*.log")}}


def same(where, before):
    before, now = json.loads(pathlib.Path(before).read_text()), state(where)
    print(f"{now['fds']} descriptors, {now['kib']} KiB, logs {now['logs']}", file=sys.stderr)
    if now["pids"] != before["pids"]:
        sys.exit(f"other processes: {before['pids']} before, {now['pids']} now")
    for key, more in (("fds", MORE_FDS), ("kib", MORE_KIB)):
        if now[key] > before[key] + more:
            sys.exit(f"{key}: {before[key]} before, {now[key]} now")


def logs(where):
    for f in pathlib.Path(where).glob("*.log"):
        if f.stat().st_size > LOG_MAX:
            sys.exit(f"{f.name} has {f.stat().st_size} bytes")
    for name in OURS:
        for line in (pathlib.Path(where) / name).read_bytes().decode("utf-8").split("\n"):
            if not line.isprintable():
                sys.exit(f"{name}: {line!r}")


def taken(*ports):
    for port in ports:
        with socket.socket() as s:
            s.bind(("127.0.0.1", int(port)))


def clients(port, seconds):
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        held = []
        for _ in range(8):
            s = socket.socket()
            s.settimeout(0.5)
            held.append(s)
            try:
                s.connect(("127.0.0.1", int(port)))
                s.sendall(b"x" * 5000)
            except OSError:
                pass
        for s in held:
            try:
                s.recv(65536)
            except OSError:
                pass
            s.close()
        time.sleep(0.02)


if __name__ == "__main__":
    done = globals()[sys.argv[1]](*sys.argv[2:])
    if done:
        print(json.dumps(done))
