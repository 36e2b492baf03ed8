#!/usr/bin/env python3
"""A small TCP and UDP peer for the tests, on either side of the machine.

  net.py free                       print a free port
  net.py tcp HOST PORT TEXT         send TEXT, half-close, print the reply
  net.py refused HOST PORT          succeed if connecting is refused or reset
  net.py udp HOST PORT TEXT         send a datagram, print the answer
  net.py udp-refused HOST PORT      succeed when one of many datagrams is refused
  net.py serve-tcp HOST PORT        answer "N bytes: <data>" once the client half-closed
  net.py serve-udp HOST PORT        answer each datagram with "echo " + it
"""
import contextlib
import socket
import sys


def family(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def free():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        print(s.getsockname()[1])


def tcp(host, port, text):
    with socket.create_connection((host, int(port)), timeout=10) as s:
        s.sendall(text.encode())
        s.shutdown(socket.SHUT_WR)
        got = b""
        while data := s.recv(65536):
            got += data
    print(got.decode())


def refused(host, port):
    try:
        with socket.create_connection((host, int(port)), timeout=10) as s:
            if s.recv(1) == b"":
                sys.exit("a clean end instead of a refusal")
    except (ConnectionRefusedError, ConnectionResetError):
        return
    sys.exit("connected")


def udp(host, port, text):
    with socket.socket(family(host), socket.SOCK_DGRAM) as s:
        s.settimeout(5)
        s.connect((host, int(port)))
        s.send(text.encode())
        print(s.recv(65536).decode())


def udp_refused(host, port):
    """The one that finds out is lost, as the host's kernel refuses only later ones."""
    with socket.socket(family(host), socket.SOCK_DGRAM) as s:
        s.settimeout(0.1)
        s.connect((host, int(port)))
        for _ in range(100):
            try:
                s.send(b"anybody?")
                s.recv(100)
            except TimeoutError:
                pass
            except ConnectionRefusedError:
                return
    sys.exit("never refused")


def serve_tcp(host, port):
    with socket.socket(family(host)) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind((host, int(port)))
        s.listen(16)
        while True:
            c, _ = s.accept()
            with c, contextlib.suppress(ConnectionError):
                got = b""
                while data := c.recv(65536):
                    got += data
                c.sendall(b"%d bytes: " % len(got) + got)


def serve_udp(host, port):
    with socket.socket(family(host), socket.SOCK_DGRAM) as s:
        s.bind((host, int(port)))
        while True:
            data, peer = s.recvfrom(65536)
            s.sendto(b"echo " + data, peer)


globals()[sys.argv[1].replace("-", "_")](*sys.argv[2:])
