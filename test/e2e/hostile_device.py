#!/usr/bin/env python3
"""The guest's vsock device without the kernel's driver, by one that means harm; run as
root in the guest (virtio 1.2 §2.7 rings, §4.1 PCI, §5.10 vsock).

  hostile_device.py rings SEED ROUNDS    wild descriptors, indices, sizes, headers
  hostile_device.py talk SEED SECONDS    answers the host's connections, then breaks every
                                         rule about them: credit, lengths, ports, states
  hostile_device.py nowhere SEED         rings where no memory is

The kernel's driver has the device again at the end, which says "done"; whether the
host minded is for the host to look at.
"""
import ctypes
import mmap
import os
import pathlib
import random
import struct
import sys
import time

VSOCK_ID = "0x1053"    # virtio 1.2 §4.1.2: 0x1040 + 19
COMMON, NOTIFY = 1, 2
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK = 1, 2, 4, 8
VERSION_1, INDIRECT, EVENT_IDX = 1 << 32, 1 << 28, 1 << 29
NEXT, WRITE, IS_INDIRECT = 1, 2, 4
NO_INTERRUPT = 1
RX, TX, EVENTS = 0, 1, 2
REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)
HEADER = struct.Struct("<QQIIIHHIII")
HOST, GUEST = 2, 3


class Pages:
    """Memory whose physical addresses we know."""

    def __init__(self, n):
        self.mem = mmap.mmap(-1, n * 4096)
        self.mem[:] = bytes(n * 4096)
        libc = ctypes.CDLL(None)
        where = ctypes.addressof(ctypes.c_char.from_buffer(self.mem))
        libc.mlock(ctypes.c_void_p(where), ctypes.c_size_t(n * 4096))
        with open("/proc/self/pagemap", "rb", buffering=0) as f:
            f.seek(where // 4096 * 8)
            entries = struct.unpack(f"<{n}Q", f.read(8 * n))
        self.address = [(e & ((1 << 55) - 1)) * 4096 for e in entries]

    def put(self, page, offset, data):
        at = page * 4096 + offset
        self.mem[at:at + len(data)] = data

    def get(self, page, offset, n):
        at = page * 4096 + offset
        return self.mem[at:at + n]


class Device:
    def __init__(self):
        self.sys = next(d for d in pathlib.Path("/sys/bus/pci/devices").iterdir()
                        if (d / "device").read_text().strip() == VSOCK_ID)
        driver = self.sys / "driver"
        if driver.exists():
            (driver / "unbind").write_text(self.sys.name)
        (self.sys / "enable").write_text("1")
        with open(self.sys / "config", "r+b", buffering=0) as f:
            f.seek(4)
            # memory, bus master, no interrupt that nobody would take
            command = struct.unpack("<H", f.read(2))[0] | 0x406
            f.seek(4)
            f.write(struct.pack("<H", command))
            f.seek(0)
            self.config = f.read(256)
        caps = dict(self.find_caps())
        bar, self.at = caps[COMMON][:2]
        self.notify_bar, self.notify_at, self.multiplier = caps[NOTIFY]
        self.bars = {b: self.map_bar(b) for b in {bar, self.notify_bar}}
        self.common = self.bars[bar]

    def find_caps(self):
        at = self.config[0x34]
        while at:
            kind, after, _, cfg, bar = self.config[at:at + 5]
            if kind == 9 and cfg in (COMMON, NOTIFY):
                offset, _, more = struct.unpack("<III", self.config[at + 8:at + 20])
                yield cfg, (bar, offset, more)
            at = after

    def map_bar(self, bar):
        path = self.sys / f"resource{bar}"
        fd = os.open(path, os.O_RDWR)
        mem = mmap.mmap(fd, os.fstat(fd).st_size)
        os.close(fd)
        return mem

    def reg(self, kind, offset):
        return kind.from_buffer(self.common, self.at + offset)

    def status(self, value):
        self.reg(ctypes.c_uint8, 20).value = value

    def features(self, wanted):
        for half in (0, 1):
            self.reg(ctypes.c_uint32, 8).value = half
            self.reg(ctypes.c_uint32, 12).value = (wanted >> (32 * half)) & 0xffffffff

    def queue(self, index, size, desc, avail, used):
        """Returns what a kick needs."""
        self.reg(ctypes.c_uint16, 22).value = index
        self.reg(ctypes.c_uint16, 24).value = size
        for offset, address in ((32, desc), (40, avail), (48, used)):
            self.reg(ctypes.c_uint32, offset).value = address & 0xffffffff
            self.reg(ctypes.c_uint32, offset + 4).value = address >> 32
        self.reg(ctypes.c_uint16, 28).value = 1
        return self.reg(ctypes.c_uint16, 30).value

    def begin(self, features):
        self.status(0)
        self.status(ACKNOWLEDGE | DRIVER)
        self.features(features)
        self.status(ACKNOWLEDGE | DRIVER | FEATURES_OK)

    def go(self):
        self.status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)

    def kick(self, index, off):
        ctypes.c_uint16.from_buffer(self.bars[self.notify_bar],
                                    self.notify_at + off * self.multiplier).value = index

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """The memory is the kernel's again after this: the device must have let go of it."""
        self.status(0)
        pathlib.Path("/sys/bus/pci/drivers/virtio-pci/bind").write_text(self.sys.name)


# --- rings ------------------------------------------------------------------------

def wild_address(rng, pages):
    """Never memory of anybody else's: it is the host that is to be harmed."""
    return rng.choice([rng.choice(pages.address) + rng.randrange(3000), rng.getrandbits(64) | 1 << 62, 0xa0000,
                       (1 << 64) - rng.randrange(1, 64), 0xfee00000, 0xffffffff])


def wild_packet(rng):
    """A vsock header: mostly of sense, wrong somewhere."""
    h = [GUEST, HOST, rng.choice([722, 1024, rng.getrandbits(32)]), rng.choice([1, 2223, rng.getrandbits(32)]),
         rng.choice([0, 1, 4096, 65536, 0xffffffff]), 1, rng.randrange(0, 9), rng.choice([0, 1, 2, 3, 0xffffffff]),
         rng.choice([0, 1, 65536, 0xffffffff]), rng.getrandbits(32)]
    wrong = rng.randrange(14)
    if wrong < len(h):
        h[wrong] = rng.getrandbits(16)
    return HEADER.pack(*h)


def descriptors(rng, pages, n):
    out = b""
    wild = rng.choice([0, 0, 0.02, 0.4])
    for i in range(n):
        sane = rng.random() >= wild
        address = rng.choice(pages.address[3:]) if sane else wild_address(rng, pages)
        length = rng.choice([44, 44, 100, 4096]) if sane else rng.choice([0, 1, 43, 1 << 20, 0xffffffff])
        flags = rng.choice([0, WRITE]) if sane else rng.randrange(16)
        out += struct.pack("<QIHH", address, length, flags, rng.choice([(i + 1) % n, i, 0, rng.getrandbits(16)]))
    return out


def one_round(rng, pages, device):
    device.begin(VERSION_1 | rng.choice([0, INDIRECT, EVENT_IDX, INDIRECT | EVENT_IDX]))
    size = rng.choice([128, 128, 128, 64, 2])
    offs = [device.queue(q, size, *pages.address[:3]) for q in (RX, TX, EVENTS)]
    device.go()
    index = rng.choice([1, 5, size, size, size + 1, rng.getrandbits(16)])
    for _ in range(10):
        for page in range(3, 16):
            pages.put(page, 0, wild_packet(rng))
        pages.put(0, 0, descriptors(rng, pages, 128))
        heads = [rng.randrange(size if rng.random() < 0.9 else 65536) for _ in range(128)]
        pages.put(1, 0, struct.pack(f"<HH{len(heads)}H", NO_INTERRUPT, index & 0xffff, *heads))
        for q, off in enumerate(offs):
            device.kick(q, off)
        index += rng.choice([0, 1, 7, 64])


def rings(seed, rounds):
    rng, pages = random.Random(int(seed)), Pages(16)
    with Device() as device:
        for _ in range(int(rounds)):
            one_round(rng, pages, device)


def nowhere(seed):
    rng, pages = random.Random(int(seed)), Pages(3)
    where = list(pages.address)
    where[rng.randrange(3)] = rng.choice([1 << 62, 0xfee00000, (1 << 64) - 4096])
    with Device() as device:
        device.begin(VERSION_1)
        offs = [device.queue(q, 128, *where) for q in (RX, TX, EVENTS)]
        device.go()
        for q, off in enumerate(offs):
            device.kick(q, off)


# --- connections ------------------------------------------------------------------

class Ring:
    """One that works: @n buffers of a page each, behind the ring's own three pages."""

    def __init__(self, device, pages, index, first, n, flags):
        self.device, self.pages, self.first, self.n = device, pages, first, n
        self.index, self.offered, self.seen = index, 0, 0
        pages.put(first, 0, bytes(3 * 4096))
        for i in range(n):
            pages.put(first, 16 * i, struct.pack("<QIHH", pages.address[first + 3 + i], 4096, flags, 0))
        self.off = device.queue(index, n, *pages.address[first:first + 3])

    def offer(self, i, length=None):
        if length is not None:
            self.pages.put(self.first, 16 * i + 8, struct.pack("<I", length))
        self.pages.put(self.first + 1, 4 + 2 * (self.offered % self.n), struct.pack("<H", i))
        self.offered = (self.offered + 1) & 0xffff
        self.pages.put(self.first + 1, 0, struct.pack("<HH", NO_INTERRUPT, self.offered))

    def used(self):
        """Buffers that came back, as (number, length)."""
        now = struct.unpack("<H", self.pages.get(self.first + 2, 2, 2))[0]
        while self.seen != now:
            i, length = struct.unpack("<II", self.pages.get(self.first + 2, 4 + 8 * (self.seen % self.n), 8))
            self.seen = (self.seen + 1) & 0xffff
            yield i % self.n, length

    def kick(self):
        self.device.kick(self.index, self.off)


class Unheard(Exception):
    """The host takes nothing any more: a ring went too far."""


class Talker:
    def __init__(self, rng, pages, device):
        self.rng, self.pages = rng, pages
        self.known = []         # (our port, the host's)
        self.heard = self.sent = self.answered = 0
        device.begin(VERSION_1)
        self.rx = Ring(device, pages, RX, 0, 16, WRITE)
        self.tx = Ring(device, pages, TX, 19, 16, 0)
        device.queue(EVENTS, 16, *pages.address[38:41])
        for i in range(16):
            self.rx.offer(i)
        self.free = list(range(16))
        device.go()
        self.rx.kick()

    def send(self, ours, theirs, op, payload=b"", length=None, flags=0, alloc=1 << 20, forwarded=0, kind=1,
             source=GUEST):
        patience = time.monotonic() + 1
        while not self.free:
            self.free += [i for i, _ in self.tx.used()]
            if time.monotonic() > patience:
                raise Unheard
        i = self.free.pop()
        data = HEADER.pack(source, HOST, ours, theirs, len(payload) if length is None else length, kind, op, flags,
                           alloc, forwarded) + payload
        self.pages.put(self.tx.first + 3 + i, 0, data)
        self.tx.offer(i, len(data))
        self.tx.kick()
        self.sent += 1

    def answer(self, theirs, ours, op):
        rng = self.rng
        if op == REQUEST:
            self.known = (self.known + [(ours, theirs)])[-64:]
            if rng.random() < 0.9:
                self.send(ours, theirs, RESPONSE, alloc=rng.choice([1 << 20, 1 << 20, 0, 0xffffffff]))
                self.answered += 1
        elif op == RW and rng.random() < 0.7:
            # as the agent would: connected, then bytes of ours
            self.send(ours, theirs, RW, struct.pack(">HHI", 0x4c52, 0, 0) + rng.randbytes(rng.randrange(3000)))

    def listen(self):
        for i, length in self.rx.used():
            h = HEADER.unpack(self.pages.get(self.rx.first + 3 + i, 0, 44))
            self.rx.offer(i)
            self.heard += 1
            if length >= 44:
                self.answer(h[2], h[3], h[6])
        self.rx.kick()

    def harm(self):
        rng = self.rng
        ours, theirs = rng.choice(self.known) if self.known and rng.random() < 0.8 else (
            rng.choice([722, rng.getrandbits(32)]), rng.getrandbits(32))
        wild = {
            "alloc": rng.choice([0, 1, 1 << 20, 0xffffffff]),
            "forwarded": rng.choice([0, 1, 24, rng.getrandbits(32), 0xffffffff]),
            "flags": rng.choice([0, 1, 2, 3, 0xffffffff]),
            "kind": rng.choice([1, 1, 1, 1, 2, 0, 0xffff]),
            "source": rng.choice([GUEST, GUEST, GUEST, GUEST, HOST, 1, (1 << 64) - 1]),
            "length": rng.choice([None, None, None, 0, 4096, 65537, 0xffffffff]),
        }
        keep = set(rng.sample(sorted(wild), rng.choice([0, 1, 1, 2, 6])))
        self.send(ours, theirs, rng.choice([RW, RW, RW, CREDIT_UPDATE, CREDIT_REQUEST, SHUTDOWN, RST, RESPONSE, REQUEST,
                                            0, 8, 0xffff]),
                  rng.randbytes(rng.choice([0, 1, 8, 100, 4000])), **{k: v for k, v in wild.items() if k in keep})

    def go_on(self, until):
        turn = 0
        while time.monotonic() < until:
            turn += 1
            self.listen()
            if turn % 8 == 0:
                self.harm()
            if turn % 1000 == 0:
                self.flood()

    def flood(self):
        """More than there is credit for, on one connection."""
        if not self.known:
            return
        ours, theirs = self.rng.choice(self.known)
        for i in range(300):
            self.send(ours, theirs, RW, bytes(4000))
            if i % 8 == 0:
                self.listen()


def talk(seed, seconds):
    rng, pages, talkers, deaf = random.Random(int(seed)), Pages(41), [], 0
    end = time.monotonic() + float(seconds)
    with Device() as device:
        while time.monotonic() < end:
            talkers.append(Talker(rng, pages, device))
            try:
                talkers[-1].go_on(min(end, time.monotonic() + 3))
            except Unheard:
                deaf += 1
    print(f"{len(talkers)} drivers: heard {sum(t.heard for t in talkers)} packets, sent {sum(t.sent for t in talkers)}, "
          f"took {sum(t.answered for t in talkers)} connections, were ignored {deaf} times")


if __name__ == "__main__":
    {"rings": rings, "talk": talk, "nowhere": nowhere}[sys.argv[1]](*sys.argv[2:])
    print("done")
