#!/usr/bin/env python3
"""Every kind of forward at once, on one machine: the table and its two ends.

  forwards.py rules DIR BUSY      print the portForwards of the table; host sockets
                                  go to DIR, BUSY (N,M) are host ports that are taken
  forwards.py serve BUSY          in the guest: open every listener of the table,
                                  then the one that says all are open
  forwards.py check DIR BUSY      on the host: each row answers, or stays closed
  forwards.py closed DIR BUSY     on the host: none answers any more

A row is a listener in the guest and where it must be found on the host, or that
it must not be. Who answers says its own name, so that a crossed wire shows.
"""
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

GUEST_IP = "192.168.5.15"
TOOL = "/var/tmp/tools/tool"
READY = 29999       # opened last: what is not forwarded by then will not be

# (name, kind, guest address, guest port, host: "ip:port", path, or None)
ROWS = [
    # the implicit last rule: loopback and wildcard addresses, same port, both protocols
    ("v4", "tcp", "127.0.0.1", 20100, "127.0.0.1:20100"),
    ("v4-companion", "also", "", 20100, "[::1]:20100"),
    ("any4", "tcp", "0.0.0.0", 20101, "127.0.0.1:20101"),
    ("v6", "tcp", "::1", 20102, "127.0.0.1:20102"),
    ("any6", "tcp6", "::", 20103, "127.0.0.1:20103"),
    ("dual", "tcp", "::", 20104, "127.0.0.1:20104"),
    ("both-4", "tcp", "0.0.0.0", 20105, "127.0.0.1:20105"),
    ("both-6", "tcp6", "::", 20105, "same"),
    ("other-loopback", "tcp", "127.0.0.2", 20106, None),
    ("nic", "tcp", GUEST_IP, 20107, None),
    ("u4", "udp", "127.0.0.1", 20108, "127.0.0.1:20108"),
    ("u4-companion", "also", "", 20108, "[::1]:20108"),
    ("u-any4", "udp", "0.0.0.0", 20109, "127.0.0.1:20109"),
    ("u6", "udp", "::1", 20110, "127.0.0.1:20110"),
    ("u-any6", "udp", "::", 20111, "127.0.0.1:20111"),
    ("u-other-loopback", "udp", "127.0.0.2", 20112, None),
    ("u-nic", "udp", GUEST_IP, 20113, None),
    ("same-port-tcp", "tcp", "127.0.0.1", 20114, "127.0.0.1:20114"),
    ("same-port-udp", "udp", "127.0.0.1", 20114, "127.0.0.1:20114"),
    # real programs
    ("nc", "nc", "127.0.0.1", 20120, "127.0.0.1:20120"),
    ("nc-any", "nc", "0.0.0.0", 20121, "127.0.0.1:20121"),
    ("nc6", "nc", "::1", 20122, "127.0.0.1:20122"),
    ("nc-moved", "nc", "127.0.0.1", 20123, "127.0.0.1:21123"),
    ("nc-udp", "nc-udp", "127.0.0.1", 20124, "127.0.0.1:20124"),
    ("nc-udp-any", "nc-udp", "0.0.0.0", 20125, "127.0.0.1:20125"),
    ("socat", "socat", "127.0.0.1", 20127, "127.0.0.1:20127"),
    ("socat-any", "socat", "0.0.0.0", 20128, "127.0.0.1:20128"),
    ("socat6", "socat", "::1", 20129, "127.0.0.1:20129"),
    ("socat-udp", "socat-udp", "127.0.0.1", 20130, "127.0.0.1:20130"),
    ("socat-udp-any", "socat-udp", "0.0.0.0", 20131, "127.0.0.1:20131"),
    ("http.server", "http", "127.0.0.1", 20126, "127.0.0.1:20126"),
    # one port to another, ranges with an offset
    ("moved", "tcp", "127.0.0.1", 20200, "127.0.0.1:21200"),
    ("moved-any", "udp", "0.0.0.0", 20200, "127.0.0.1:21200"),
    ("range-first", "tcp", "127.0.0.1", 20210, "127.0.0.1:21210"),
    ("range-middle", "udp", "0.0.0.0", 20214, "127.0.0.1:21214"),
    ("range-last", "tcp", "::1", 20219, "127.0.0.1:21219"),
    ("range-beyond", "tcp", "127.0.0.1", 20220, "127.0.0.1:20220"),
    # host addresses
    ("host-127.0.0.9", "tcp", "127.0.0.1", 20230, "127.0.0.9:20230"),
    ("host-::1", "tcp", "127.0.0.1", 20231, "[::1]:20231"),
    ("host-::1-only", "closed", "", 20231, "127.0.0.1:20231"),
    ("host-any", "tcp", "127.0.0.1", 20232, "127.0.0.1:20232"),
    ("host-any-elsewhere", "also", "", 20232, "127.0.0.77:20232"),
    ("host-udp-any", "udp", "127.0.0.1", 20233, "127.0.0.5:20233"),
    # guest addresses
    ("zero-must", "tcp", "0.0.0.0", 20240, "127.0.0.1:21240"),
    ("zero-must-not", "tcp", "127.0.0.1", 20241, "127.0.0.1:20241"),
    ("zero-wild-nic", "tcp", GUEST_IP, 20242, "127.0.0.1:21242"),
    ("zero-wild-127.0.0.2", "tcp", "127.0.0.2", 20243, "127.0.0.1:21243"),
    ("zero-wild-udp-nic", "udp", GUEST_IP, 20244, "127.0.0.1:21244"),
    ("named-nic", "tcp", GUEST_IP, 20245, "127.0.0.1:21245"),
    ("named-nic-wildcard", "tcp", "0.0.0.0", 20246, "127.0.0.1:21246"),
    ("named-nic-loopback", "tcp", "127.0.0.1", 20247, "127.0.0.1:20247"),
    ("v6-wild", "tcp", "127.0.0.3", 20248, "127.0.0.1:21248"),
    # protocols
    ("only-tcp-tcp", "tcp", "127.0.0.1", 20250, "127.0.0.1:21250"),
    ("only-tcp-udp", "udp", "127.0.0.1", 20250, "127.0.0.1:20250"),
    ("only-udp-udp", "udp", "127.0.0.1", 20251, "127.0.0.1:21251"),
    ("only-udp-tcp", "tcp", "127.0.0.1", 20251, "127.0.0.1:20251"),
    # ignored
    ("ignored", "tcp", "127.0.0.1", 20260, None),
    ("ignored-udp", "udp", "127.0.0.1", 20260, None),
    ("ignored-loopback-only", "tcp", "0.0.0.0", 20261, "127.0.0.1:20261"),
    ("ignored-wildcard", "tcp", "0.0.0.0", 20262, None),
    ("ignored-wildcard-6", "tcp6", "::", 20262, None),
    ("ignored-everywhere", "udp", "127.0.0.2", 20263, None),
    ("ignored-range", "tcp", "127.0.0.1", 20265, None),
    ("ignored-udp-only", "udp", "127.0.0.1", 20270, None),
    ("ignored-udp-only-tcp", "tcp", "127.0.0.1", 20270, "127.0.0.1:20270"),
    ("ignored-nic", "tcp", GUEST_IP, 20271, None),
    ("ignored-nic-wildcard", "tcp", "0.0.0.0", 20272, "127.0.0.1:20272"),
    ("first-match", "tcp", "127.0.0.1", 20275, "127.0.0.1:21275"),
    # sockets on the host
    ("host-socket", "tcp", "127.0.0.1", 20280, "DIR/web.sock"),
    # static: there before anybody listens
    ("static", "tcp", "127.0.0.1", 20290, "127.0.0.1:21290"),
    ("static-range", "tcp", "127.0.0.1", 20293, "127.0.0.1:21293"),
    ("static-udp", "udp", "127.0.0.1", 20295, "127.0.0.1:21295"),
    # a busy host port
    ("auto", "tcp", "127.0.0.1", "BUSY", "auto"),
    ("remap", "tcp", "127.0.0.1", "BUSY2", "auto"),
    # lanes by name
    ("lane-vsock", "tcp", "127.0.0.1", 20300, "127.0.0.1:20300"),
    ("lane-grpc", "tcp", "127.0.0.1", 20301, "127.0.0.1:20301"),
    ("lane-ssh", "tcp", "127.0.0.1", 20302, "127.0.0.1:20302"),
    # sockets in the guest
    ("guest-socket", "unix", "/tmp/fwd-guest.sock", 0, "DIR/guest.sock"),
    ("guest-socket-port", "also", "", 0, "127.0.0.1:21310"),
]

RULES = """
- {guestPort: 20123, hostPort: 21123}
- {guestPort: 20200, hostPort: 21200}
- {guestPortRange: [20210, 20219], hostPortRange: [21210, 21219]}
- {guestPort: 20230, hostIP: 127.0.0.9}
- {guestPort: 20231, hostIP: "::1"}
- {guestPort: 20232, hostIP: 0.0.0.0}
- {guestPort: 20233, hostIP: 0.0.0.0, proto: udp}
- {guestPortRange: [20240, 20241], hostPortRange: [21240, 21241], guestIP: 0.0.0.0, guestIPMustBeZero: true}
- {guestPortRange: [20242, 20244], hostPortRange: [21242, 21244], guestIP: 0.0.0.0, guestIPMustBeZero: false}
- {guestPortRange: [20245, 20247], hostPortRange: [21245, 21247], guestIP: GUEST_IP}
- {guestPort: 20248, hostPort: 21248, guestIP: "::"}
- {guestPort: 20250, hostPort: 21250, proto: tcp}
- {guestPort: 20251, hostPort: 21251, proto: udp}
- {guestPortRange: [20260, 20261], ignore: true}
- {guestPort: 20262, guestIP: 0.0.0.0, ignore: true}
- {guestPort: 20263, guestIP: 0.0.0.0, guestIPMustBeZero: false, ignore: true}
- {guestPortRange: [20264, 20269], ignore: true}
- {guestPort: 20270, proto: udp, ignore: true}
- {guestPortRange: [20271, 20272], guestIP: GUEST_IP, ignore: true}
- {guestPort: 20275, hostPort: 21275}
- {guestPort: 20275, hostPort: 21276}
- {guestPort: 20280, hostSocket: "DIR/web.sock"}
- {guestPort: 20290, hostPort: 21290, static: true}
- {guestPortRange: [20292, 20294], hostPortRange: [21292, 21294], static: true}
- {guestPort: 20295, hostPort: 21295, proto: udp, static: true}
- {guestPort: BUSY, hostPort: auto}
- {guestPort: 20300, lane: vsock}
- {guestPort: 20301, lane: grpc}
- {guestPort: 20302, lane: ssh}
- {guestPort: 20320, lane: vsock}
- {guestPort: 20321, lane: grpc}
- {guestPort: 20322, lane: ssh}
- {guestPort: 20330, static: true, lane: vsock}
- {guestPort: 20331, static: true, lane: grpc}
- {guestPort: 20332, static: true, lane: ssh}
- {guestSocket: /tmp/fwd-guest.sock, hostSocket: "DIR/guest.sock"}
- {guestSocket: /tmp/fwd-guest.sock, hostPort: 21310}
- {guestSocket: /tmp/fwd-reverse.sock, hostSocket: "DIR/reverse.sock", reverse: true}
"""


def fill(text, folder, busy):
    return text.replace("GUEST_IP", GUEST_IP).replace("DIR", folder).replace("BUSY", busy.split(",")[0])


def guest_port(port, busy):
    return dict(zip(("BUSY", "BUSY2"), map(int, busy.split(",")))).get(port, port)


def rules(folder, busy):
    print("portForwards:" + fill(RULES, folder, busy), end="")


# --- in the guest ----------------------------------------------------------

def answer_stream(name, s):
    with s:
        while True:
            c, _ = s.accept()
            with c:
                data = b""
                while not data.endswith(b"\r\n\r\n") and (more := c.recv(100)):
                    data += more
                c.sendall(f"{name}:".encode() + data)


def answer_datagrams(name, s):
    while True:
        data, peer = s.recvfrom(65536)
        s.sendto(f"{name}:".encode() + data, peer)


def listener(kind, ip, port):
    if kind == "unix":
        if os.path.exists(ip):
            os.unlink(ip)
        s = socket.socket(socket.AF_UNIX)
        s.bind(ip)
    else:
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        s = socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
        if kind != "udp":
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1 if kind == "tcp6" else 0)
        s.bind((ip, port))
    if kind != "udp":
        s.listen(16)
    return s


def program(name, kind, ip, port):
    """argv of a real server that answers "NAME:"."""
    say = f"printf %s: {name}"
    socat = ["sh", TOOL, "socat"]
    family, at = (6, f"[{ip}]") if ":" in ip else (4, ip)
    return {
        "socat": [*socat, f"TCP{family}-LISTEN:{port},bind={at},reuseaddr,fork", f'SYSTEM:"{say}; cat"'],
        "socat-udp": [*socat, f"UDP{family}-RECVFROM:{port},bind={at},fork", f'SYSTEM:"{say}; cat"'],
        "nc": ["sh", "-c", f"while :; do {say} | nc -l -N {ip} {port} || exit; done"],
        "nc-udp": ["sh", "-c", f"{say} | nc -u -l {ip} {port}"],
        "http": ["python3", "-m", "http.server", "--bind", ip, str(port)],
    }[kind]


def serve(busy):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})    # before there are threads
    children = []
    for name, kind, ip, port, _ in ROWS:
        port = guest_port(port, busy)
        if kind in ("tcp", "tcp6", "udp", "unix"):
            target = answer_datagrams if kind == "udp" else answer_stream
            threading.Thread(target=target, args=(name, listener(kind, ip, port)), daemon=True).start()
        elif kind not in ("also", "closed"):
            children.append(subprocess.Popen(program(name, kind, ip, port), start_new_session=True,
                                             stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                             stderr=subprocess.DEVNULL))
    threading.Thread(target=answer_stream, args=("ready", listener("tcp", "127.0.0.1", READY)),
                     daemon=True).start()
    signal.sigwait({signal.SIGTERM})
    for child in children:
        os.killpg(child.pid, signal.SIGKILL)


# --- on the host -------------------------------------------------------------

def parse(address):
    ip, port = address.rsplit(":", 1)
    return ip.strip("[]"), int(port)


def ask(address, udp):
    """What answers there, or the exception's name."""
    if address.startswith("/"):
        s, peer = socket.socket(socket.AF_UNIX), address
    else:
        peer = parse(address)
        family = socket.AF_INET6 if ":" in peer[0] else socket.AF_INET
        s = socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
    try:
        with s:
            s.settimeout(5)
            s.connect(peer)
            s.sendall(b"GET / HTTP/1.0\r\n\r\n")
            if udp:
                return s.recv(65536).decode()
            s.shutdown(socket.SHUT_WR)
            got = b""
            while data := s.recv(65536):
                got += data
            return got.decode() or "a clean end without a byte"
    except OSError as e:
        return type(e).__name__


def address_of(port):
    """Where `limactl port list` says that the row's listener went."""
    out = subprocess.run(["limactl", "port", "list", "--json", os.environ["INSTANCE"]], check=True, text=True,
                         stdout=subprocess.PIPE).stdout
    rows = json.loads(out) if out.lstrip().startswith("[") else [json.loads(l) for l in out.splitlines()]
    return next(r["hostAddr"] for r in rows if r["guestAddr"].endswith(f":{port}") and r["protocol"] == "tcp")


def wait_for(address, text, udp=False, seconds=60):
    end = time.monotonic() + seconds
    while text not in (got := ask(address, udp)):
        if time.monotonic() > end:
            return got
        time.sleep(0.05)
    return got


def places(folder, busy, running=True):
    """(name, host address or None, udp, who must answer) of each row."""
    before = None
    for name, kind, ip, port, host in ROWS:
        udp = "udp" in kind or (kind == "also" and before and before[2])
        who = before[3] if kind == "also" else name
        port = guest_port(port, busy)
        if host == "auto" and running:
            host = address_of(port)
        elif host == "same":
            host, who = before[1], before[3]
        row = (name, fill(host, folder, busy) if host else None, udp, who, kind, f"127.0.0.1:{port}")
        yield row
        if kind not in ("also", "closed"):
            before = row


def check(folder, busy):
    bad, n = [], 0
    got = wait_for(f"127.0.0.1:{READY}", "ready:")
    if "ready:" not in got:
        sys.exit(f"the last listener does not answer: {got}")
    for name, host, udp, who, kind, same_port in places(folder, busy):
        n += 1
        if host is None or kind == "closed":
            got = ask(host or same_port, udp)
            ok = got == "ConnectionRefusedError" or (udp and got in ("TimeoutError", "timeout"))
            want = "nothing"
        else:
            want = "Directory listing" if kind == "http" else f"{who}:"
            got = wait_for(host, want, udp, 20)
            ok = want in got
        if not ok:
            bad.append(f"{name}: {host or same_port}{'/udp' if udp else ''}: wanted {want}, got {got[:100]!r}")
    print(f"{n} rows, {len(bad)} wrong")
    sys.exit("\n".join(bad) if bad else 0)


def closed(folder, busy):
    """Static rules and sockets stay; all else is refused once the guest's program ended."""
    bad = []
    for name, host, udp, who, kind, _ in places(folder, busy, running=False):
        if host is None or udp or name.startswith(("static", "guest-socket")) or not host[-1].isdigit():
            continue
        end = time.monotonic() + 20
        while (got := ask(host, udp)) != "ConnectionRefusedError" and time.monotonic() < end:
            time.sleep(0.05)
        if got != "ConnectionRefusedError":
            bad.append(f"{name}: {host}: {got[:100]!r}")
    sys.exit("\n".join(bad) if bad else 0)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
