#!/usr/bin/env python3
"""What must hold for every stream and datagram through a forward, lane by lane.

  streams.py serve PORT…            in the guest: the lab server, TCP and UDP
  streams.py tcp PORT               on the host: every TCP property on that forward
  streams.py reset-after-server-end PORT
  streams.py udp PORT               … UDP
  streams.py refused PORT           nobody serves there: a reset
  streams.py ready PORT…            until each answers
  streams.py pause PID PORT…        transfers while the machine's process stands still
  streams.py many PORT N            N connections at once, each echoes its own name
  streams.py reuse CONTROL PORT N   a server on one port stopped and started N times
  streams.py busy-clients PORT SECONDS  clients that connect, talk and leave, as k3s does
  streams.py end-together PORT N        the server ends N at once, whose clients come back at once
  streams.py idle SECONDS PORT…     connections on which nothing is said, until the time is
                                    up or SIGUSR1 comes, and which must work then

A connection to the lab begins with one line that says what the server shall do.
Every wait has a deadline: a forward that hangs fails its test.
"""
import hashlib
import os
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time

DEADLINE = 60
LINGER0 = struct.pack("ii", 1, 0)
ADDRESS = "127.0.0.1"


# --- in the guest ------------------------------------------------------------

results, listeners = {}, {}
changed = threading.Condition()


def note(key, text):
    with changed:
        results[key] = text
        changed.notify_all()


def read_all(c):
    """("eof" or "reset", bytes, their digest)"""
    h, n = hashlib.sha256(), 0
    try:
        while data := c.recv(1 << 17):
            h.update(data)
            n += len(data)
        return "eof", n, h.hexdigest()
    except OSError:
        return "reset", n, h.hexdigest()


def reset(c):
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER0)
    c.close()


def pattern(n):
    block = bytes(range(256)) * 256
    return (block * (n // len(block) + 1))[:n]


def do_echo(c):
    while data := c.recv(1 << 17):
        c.sendall(data)


def do_late(c, n):
    """Speaks only after the client ended its side."""
    _, got, digest = read_all(c)
    c.sendall(f"{got} {digest}\n".encode() + pattern(int(n)))


def do_early(c, n, key):
    """Ends its own side first, then goes on reading."""
    c.sendall(pattern(int(n)))
    c.shutdown(socket.SHUT_WR)
    note(key, " ".join(map(str, read_all(c))))


def do_watch(c, key):
    c.sendall(b"!")
    note(key, " ".join(map(str, read_all(c)[:2])))


def do_watch_closed(c, key):
    """As above, but this side ended already."""
    c.sendall(b"!")
    c.shutdown(socket.SHUT_WR)
    note(key, " ".join(map(str, read_all(c)[:2])))


def do_result(c, key):
    with changed:
        changed.wait_for(lambda: key in results, DEADLINE)
        c.sendall(results.get(key, "nothing").encode())


def do_reset(c, n):
    c.sendall(pattern(int(n)))
    c.recv(1)        # the client has them
    reset(c)


def do_stall(c):
    with changed:
        changed.wait_for(lambda: "stall-end" in results, 10 * DEADLINE)


def do_stall_end(c):
    note("stall-end", "")


def do_told(c, key):
    """Speaks only when another connection says so."""
    with changed:
        changed.wait_for(lambda: key in results)
    c.sendall(b"told")


def do_tell(c, key):
    note(key, "")


def do_source(c, n):
    c.sendall(pattern(int(n)))


def do_listen(c, port):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((ADDRESS, int(port)))
    s.listen(64)
    listeners[port] = s
    threading.Thread(target=serve_tcp, args=(s,), daemon=True).start()
    c.sendall(b"ok")


def do_close(c, port):
    s = listeners.pop(port)
    s.shutdown(socket.SHUT_RDWR)
    s.close()
    c.sendall(b"ok")


def serve_one(c, verb, args):
    try:
        with c:
            c.setblocking(True)
            globals()["do_" + verb](c, *args)
    except OSError:
        pass


def first_line(c):
    """A client's words, None as long as they are not all there."""
    seen = c.recv(256, socket.MSG_PEEK)
    if not seen:
        raise ConnectionError("no word")
    end = seen.find(b"\n") + 1
    return c.recv(end).decode().split() if end else None


class Clients:
    """Those of one listener: a thread for each, but for those that echo their name, of
    which there are many."""

    def __init__(self, listener):
        self.listener, self.fd = listener, listener.fileno()
        listener.setblocking(False)
        self.poll = select.epoll()
        self.poll.register(listener, select.EPOLLIN)
        self.known = {}     # by descriptor: (socket, whether it has said what it wants)
        self.together = []

    def accept(self):
        """All that are there: of a crowd the backlog holds only some."""
        try:
            while True:
                c, _ = self.listener.accept()
                c.setblocking(False)
                self.known[c.fileno()] = (c, False)
                self.poll.register(c, select.EPOLLIN)
        except BlockingIOError:
            pass

    def hear(self, fd):
        c, named = self.known[fd]
        try:
            if named:
                if not (data := c.recv(100)):
                    raise ConnectionError("it left")
                c.sendall(data)
            elif words := first_line(c):
                self.known[fd] = (c, True)
                if words[0] == "together":
                    self.together.append(c)
                    c.sendall(b"!")
                elif words[0] == "end_together":
                    self.end(self.together + [c])
                    self.together = []
                elif words[0] != "name":
                    self.drop(fd)
                    threading.Thread(target=serve_one, args=(c, words[0], words[1:]), daemon=True).start()
        except BlockingIOError:
            pass
        except OSError:
            self.drop(fd)
            if c in self.together:    # it left before the others
                self.together.remove(c)
            c.close()

    def drop(self, fd):
        self.poll.unregister(fd)
        del self.known[fd]

    def end(self, some):
        for c in some:
            self.drop(c.fileno())
        for c in some:
            c.close()

    def serve(self):
        try:
            while True:
                for fd, _ in self.poll.poll():
                    if fd == self.fd:
                        self.accept()
                    else:
                        self.hear(fd)
        except OSError as e:    # its listener was closed
            print("serve:", e, file=sys.stderr, flush=True)


def serve_tcp(s):
    Clients(s).serve()


def serve_udp(s):
    while True:
        try:
            data, peer = s.recvfrom(1 << 16)
            s.sendto(data, peer)
        except OSError:
            pass


def serve(*ports):
    threading.stack_size(256 * 1024)
    raise_files()
    for port in ports:
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind((ADDRESS, int(port)))
        s.listen(1024)
        threading.Thread(target=serve_tcp, args=(s,), daemon=True).start()
        u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        u.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        u.bind((ADDRESS, int(port)))
        threading.Thread(target=serve_udp, args=(u,), daemon=True).start()
    threading.Event().wait()


# --- on the host ---------------------------------------------------------------

def connect(port, line):
    s = socket.create_connection((ADDRESS, int(port)), timeout=DEADLINE)
    s.sendall(line.encode() + b"\n")
    return s


def receive(s):
    got = b""
    while data := s.recv(1 << 20):
        got += data
    return got


def exactly(s, n):
    """n bytes, in as many pieces as they come in; fewer at the end"""
    got = b""
    while len(got) < n and (data := s.recv(n - len(got))):
        got += data
    return got


def result(port, key):
    with connect(port, f"result {key}") as s:
        return receive(s).decode()


def key(name, port):
    return f"{name}-{port}-{os.getpid()}"


def check_half_close_echo(port):
    """lima: an echo that ends when the client's side ends used to hang"""
    with connect(port, "echo") as s:
        s.sendall(b"hello")
        s.shutdown(socket.SHUT_WR)
        assert receive(s) == b"hello"


def check_client_ends_first(port):
    data = pattern(3 << 20)
    with connect(port, f"late {2 << 20}") as s:
        s.sendall(data)
        s.shutdown(socket.SHUT_WR)
        head, _, rest = receive(s).partition(b"\n")
    assert head.decode() == f"{len(data)} {hashlib.sha256(data).hexdigest()}", head
    assert rest == pattern(2 << 20)


def check_server_ends_first(port):
    k, data = key("early", port), pattern(3 << 20)
    with connect(port, f"early 100000 {k}") as s:
        assert receive(s) == pattern(100000)
        s.sendall(data)
        s.shutdown(socket.SHUT_WR)
        assert result(port, k) == f"eof {len(data)} {hashlib.sha256(data).hexdigest()}"


def check_server_reset(port):
    """All bytes before it, then the reset."""
    with connect(port, "reset 5000") as s:
        got = b""
        while len(got) < 5000:
            got += s.recv(5000)
        s.sendall(b"x")
        try:
            end = s.recv(1)
            raise AssertionError(f"a clean end ({end!r}) instead of a reset")
        except ConnectionResetError:
            pass


def client_reset(port, verb, want):
    k = key(verb, port)
    s = connect(port, f"{verb} {k}")
    assert s.recv(1) == b"!"
    s.sendall(b"12345")
    if verb == "watch_closed":
        assert s.recv(1) == b""
    reset(s)
    got = result(port, k)
    assert got.split()[0] == want, got


def check_client_reset(port):
    client_reset(port, "watch", "reset")


def reset_after_server_end(port):
    client_reset(port, "watch_closed", "reset")


def check_clean_end_is_clean(port):
    k = key("clean", port)
    with connect(port, f"watch {k}") as s:
        assert s.recv(1) == b"!"
        s.sendall(b"12345")
        s.shutdown(socket.SHUT_WR)
        assert receive(s) == b""
    assert result(port, k) == "eof 5"


def check_slow_reader_stalls_nobody(port):
    """Clients that do not read, and a server that does not, beside one that is quick."""
    slow = [connect(port, f"source {12 << 20}") for _ in range(4)]
    stalled = [connect(port, "stall") for _ in range(4)]
    for s in stalled:
        s.setblocking(False)
        try:
            while True:
                s.send(pattern(1 << 16))
        except BlockingIOError:
            pass
    for _ in range(5):
        with connect(port, f"source {1 << 20}") as s:
            assert len(receive(s)) == 1 << 20
    for s in slow:
        assert len(receive(s)) == 12 << 20
        s.close()
    with connect(port, "stall_end"):
        pass
    for s in stalled:
        s.close()


def check_silence(port):
    """A connection on which nothing is said stays."""
    with connect(port, "echo") as s:
        for _ in range(2):
            with connect(port, f"source {4 << 20}") as t:
                assert len(receive(t)) == 4 << 20
            s.sendall(b"still?")
            assert exactly(s, 6) == b"still?"


def run_checks(kind, port):
    bad = []
    for name, check in list(globals().items()):
        if name.startswith(kind):
            began = time.monotonic()
            try:
                check(port)
            except (AssertionError, OSError) as e:
                bad.append(f"{name}: {type(e).__name__} {e}")
            print(f"  {name[len(kind):]}: {time.monotonic() - began:.2f} s", file=sys.stderr)
    sys.exit("\n".join(bad) if bad else 0)


def tcp(port):
    run_checks("check_", port)


def ready(*ports):
    """Returns when a server answers behind each, on TCP and UDP."""
    end = time.monotonic() + DEADLINE
    for port in ports:
        while True:
            try:
                with connect(port, "source 2") as s:
                    if receive(s) == pattern(2):
                        break
            except OSError:
                pass
            if time.monotonic() > end:
                sys.exit(f"nobody answers at {port}")
            time.sleep(0.05)
        with udp_socket(port) as s:
            while True:
                try:
                    if udp_ask(s, b"ready?") == b"ready?":
                        break
                except ConnectionRefusedError:
                    time.sleep(0.05)
                if time.monotonic() > end:
                    sys.exit(f"nobody answers datagrams at {port}")


def pause(pid, *ports):
    """Transfers over a machine that stands still, and a client on each port that comes
    meanwhile. It stands longer than an agent without an answer used to be waited for."""
    size, still = 64 << 20, 12
    got = {}
    for port in ports:
        s = connect(port, f"source {size}")
        got[s] = len(s.recv(1 << 20))
    os.kill(int(pid), signal.SIGSTOP)
    try:
        end = time.monotonic() + still
        late = [connect(port, "echo") for port in ports]
        for s in late:
            s.sendall(b"late")
        while (left := end - time.monotonic()) > 0:    # what was under way
            for s in select.select(got, [], [], left)[0]:
                assert (n := len(s.recv(1 << 20))), f"an end after {got[s]} of {size} bytes"
                got[s] += n
    finally:
        os.kill(int(pid), signal.SIGCONT)
    for s, before in got.items():
        assert (n := before + len(receive(s))) == size, f"{n} of {size} bytes"
        s.close()
    for s in late:
        assert (answer := exactly(s, 4)) == b"late", f"{answer!r} for who came meanwhile"
        s.close()


def refused(port):
    """Nobody serves behind a static forward: a reset, never a clean empty answer."""
    for text in (b"", b"GET / HTTP/1.0\r\n\r\n"):
        try:
            with socket.create_connection((ADDRESS, int(port)), timeout=DEADLINE) as s:
                s.sendall(text)
                sys.exit(f"{s.recv(1)!r} instead of a reset")
        except (ConnectionResetError, BrokenPipeError):
            pass


# --- datagrams -----------------------------------------------------------------

def udp_socket(port):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    s.settimeout(2)
    s.connect((ADDRESS, int(port)))
    return s


def udp_ask(s, data):
    """The answer; datagrams may be lost, so it is asked up to five times."""
    for _ in range(5):
        s.send(data)
        try:
            return s.recv(1 << 16)
        except TimeoutError:
            pass
    return None


def datagram_sizes(port):
    with udp_socket(port) as s:
        for n in (1, 1400, 1500, 9000, 32768, 65507, 0):
            got = udp_ask(s, pattern(n))
            assert got == pattern(n), f"{n} bytes: {None if got is None else len(got)}"


def datagram_many_clients(port, n=3000):
    """Each gets its own answer, and nobody else's."""
    raise_files()
    socks = [udp_socket(port) for _ in range(n)]
    missing = set(range(n))
    poll = select.epoll()
    by_fd = {s.fileno(): i for i, s in enumerate(socks)}
    for s in socks:
        poll.register(s, select.EPOLLIN)
    for _ in range(8):
        todo = sorted(missing)
        while todo or poll.poll(1, 1):
            for i in todo[:64]:
                socks[i].send(b"client %d" % i)
            todo = todo[64:]
            for fd, _ in poll.poll(0.2):
                i = by_fd[fd]
                got = socks[i].recv(100)
                assert got == b"client %d" % i, f"client {i} got {got!r}"
                missing.discard(i)
        if not missing:
            break
    for s in socks:
        s.close()
    assert not missing, f"{len(missing)} of {n} clients got no answer"


def udp(port):
    run_checks("datagram_", port)


# --- many ----------------------------------------------------------------------

def raise_files():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def many(port, n):
    """All open at once; each hears its own name, and again when all are there."""
    raise_files()
    socks = [connect(port, "name") for _ in range(int(n))]
    for turn in (1, 7):
        for i, s in enumerate(socks):
            s.sendall(b"%08d" % (i * turn))
        for i, s in enumerate(socks):
            assert (got := exactly(s, 8)) == b"%08d" % (i * turn), f"connection {i}: {got!r}"
    for s in socks:
        s.close()


def reuse(control, port, n):
    for i in range(int(n)):
        with connect(control, f"listen {port}") as s:
            assert receive(s) == b"ok"
        end = time.monotonic() + DEADLINE
        while True:
            try:
                with connect(port, "echo") as s:
                    s.sendall(b"round %d" % i)
                    s.shutdown(socket.SHUT_WR)
                    if (got := receive(s)) == b"round %d" % i:
                        break
                    sys.exit(f"round {i}: {got!r}")
            except OSError:
                assert time.monotonic() < end, f"round {i}: the port did not appear"
                time.sleep(0.001)
        with connect(control, f"close {port}") as s:
            assert receive(s) == b"ok"
        while True:
            try:
                connect(port, "echo").close()
                assert time.monotonic() < end, f"round {i}: the port did not go away"
                time.sleep(0.001)
            except ConnectionRefusedError:
                break
            except OSError:
                pass


def run_threads(n, client):
    """n of client(number); ends the program when one raised."""
    bad = []

    def guarded(me):
        try:
            client(me)
        except (OSError, AssertionError) as e:
            bad.append(f"client {me}: {type(e).__name__} {e}")

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if bad:
        sys.exit(f"{len(bad)} of {n} failed:\n" + "\n".join(bad[:10]))


def busy_clients(port, seconds):
    """32 clients for a while: connect, say something, some leave rudely."""
    end = time.monotonic() + float(seconds)

    def client(me):
        i = 0
        while time.monotonic() < end:
            i += 1
            s = connect(port, "echo")
            name = b"%d.%d" % (me, i)
            s.sendall(name)
            assert (got := exactly(s, len(name))) == name, f"{got!r} instead of {name!r}"
            if i % 3 == 0:
                reset(s)
            elif i % 3 == 1:
                s.shutdown(socket.SHUT_WR)
                assert s.recv(1) == b""
                s.close()
            else:
                s.close()

    run_threads(32, client)


def end_together(port, n):
    """Connections that are free again are given to those who come back: none may be taken
    from under a client."""
    raise_files()
    held, n = {}, int(n)
    poll = select.epoll()
    for _ in range(n):
        s = connect(port, "together")
        assert exactly(s, 1) == b"!"
        held[s.fileno()] = s
        poll.register(s, select.EPOLLIN)
    connect(port, "end_together").close()
    back = []
    while held:
        ended = poll.poll(DEADLINE)
        assert ended, f"{len(held)} of {n} did not end"
        for fd, _ in ended:
            poll.unregister(fd)
            with held.pop(fd) as s:
                assert receive(s) == b""
            back.append(connect(port, "name"))
            back[-1].sendall(b"%08d" % len(back))
    lost = 0
    for i, s in enumerate(back, 1):
        try:
            lost += exactly(s, 8) != b"%08d" % i
        except OSError:
            lost += 1
        s.close()
    assert not lost, f"{lost} of {n} who came back were lost"


# --- nothing for a long time ---------------------------------------------------

def idle_said_nothing(port):
    with connect(port, "echo") as s:
        yield
        s.sendall(b"still?")
        assert exactly(s, 6) == b"still?"


def idle_talked(port):
    with connect(port, "echo") as s:
        s.sendall(b"before")
        assert exactly(s, 6) == b"before"
        yield
        s.sendall(b"after")
        s.shutdown(socket.SHUT_WR)
        assert receive(s) == b"after"


def idle_client_ended(port):
    """Its side only: the server may speak hours later."""
    k = key("told", port)
    with connect(port, f"told {k}") as s:
        s.shutdown(socket.SHUT_WR)
        yield
        with connect(port, f"tell {k}"):
            pass
        assert receive(s) == b"told"


def idle_server_ended(port):
    k = key("closed", port)
    with connect(port, f"watch_closed {k}") as s:
        assert receive(s) == b"!"
        yield
        s.sendall(b"12345")
        s.shutdown(socket.SHUT_WR)
        assert result(port, k) == "eof 5"


def idle(seconds, *ports):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    kept = [(f"port {port}, {name[5:]}", open_it(port))
            for port in ports for name, open_it in globals().items() if name.startswith("idle_")]
    for _, it in kept:
        next(it)
    print(f"{len(kept)} connections open", flush=True)
    began, bad = time.monotonic(), []
    signal.sigtimedwait({signal.SIGUSR1}, float(seconds))
    for name, it in kept:
        try:
            next(it, None)
        except (OSError, AssertionError) as e:
            bad.append(f"{name}: {type(e).__name__} {e}")
    print(f"{len(kept) - len(bad)} of {len(kept)} work after {time.monotonic() - began:.0f} s", flush=True)
    sys.exit("\n".join(bad) if bad else 0)


if __name__ == "__main__":
    globals()[sys.argv[1].replace("-", "_")](*sys.argv[2:])
