#!/usr/bin/env python3
"""A UDP echo server and a client, both driven line by line: what the self-test measures with.

  probe.py server NAME PORT LOG      answers every datagram with "SEQ NAME PEER_IP PEER_PORT", padded
                                     to the size of the question, and writes a line about it to LOG;
                                     on standard input:

    push IP PORT                     the server speaks first, to that address

  probe.py client IP PORT            keeps one socket and obeys standard input, one answer a line:

    ping MS             one datagram, wait up to MS       -> ok NAME PEER_IP PEER_PORT MS | lost | ERRNO
    size BYTES MS       the same, of that size, with DF   -> ok | lost | EMSGSIZE
    burst N             N datagrams, 16 in a row          -> ok RECEIVED DUPLICATES OVERTAKEN MEDIAN_MS
    expect MS           wait for a push                   -> ok | lost
    batch SEGMENTS      one send of several segments (UDP_SEGMENT), nothing awaited -> ok | ERRNO
    stream SECONDS      send as fast as it goes           -> ok SENT_BYTES
    port                                                  -> ok LOCAL_PORT
    reopen              go on with a new socket           -> ok
"""
import errno
import select
import socket
import sys
import threading
import time

IP_MTU_DISCOVER, IP_PMTUDISC_DO, UDP_SEGMENT = 10, 2, 103


def push(sock):
    for line in sys.stdin:
        _, ip, port = line.split()
        sock.sendto(b"0 push", (ip, int(port)))


def serve(name, port, log):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("0.0.0.0", int(port)))
    threading.Thread(target=push, args=(sock,), daemon=True).start()
    with open(log, "w", buffering=1) as log:
        print("ready", file=log)
        while True:
            data, peer = sock.recvfrom(65536)
            print(peer[0], peer[1], len(data), file=log)
            words = data.split()
            if words[1:2] != [b"sink"]:
                reply = b"%s %s %s %d " % (words[0], name.encode(), peer[0].encode(), peer[1])
                sock.sendto(reply.ljust(len(data), b"."), peer)


class Client:
    def __init__(self, ip, port):
        self.to = (ip, int(port))
        self.seq = 0
        self.reopen()

    def reopen(self):
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        self.sock.bind(("0.0.0.0", 0))
        return "ok"

    def port(self):
        return f"ok {self.sock.getsockname()[1]}"

    def send(self, size=64):
        self.seq += 1
        self.sock.sendto((b"%d ping " % self.seq).ljust(size, b"."), self.to)
        return self.seq

    def receive(self, deadline):
        """The next reply as (sequence number, rest of the words), or None at the deadline."""
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self.sock], [], [], left)[0]:
            return None
        words = self.sock.recv(65536).decode().split()
        return int(words[0]), words[1:4]

    def reply_to(self, seq, ms):
        deadline = time.monotonic() + ms / 1000
        while (got := self.receive(deadline)) is not None:
            if got[0] == seq:
                return got[1]
        return None

    def ping(self, ms):
        start = time.monotonic()
        words = self.reply_to(self.send(), int(ms))
        return "lost" if words is None else f"ok {' '.join(words)} {(time.monotonic() - start) * 1000:.1f}"

    def size(self, size, ms):
        return "lost" if self.reply_to(self.send(size=int(size)), int(ms)) is None else "ok"

    def expect(self, ms):
        return "lost" if self.reply_to(0, int(ms)) is None else "ok"

    def burst(self, count):
        sent, seen, batch, times = {}, set(), set(), []
        duplicates = overtaken = highest = 0
        left, quiet = int(count), 1.0

        def take(deadline):
            nonlocal duplicates, overtaken, highest
            got = self.receive(deadline)
            if got is None:
                return False
            seq = got[0]
            if seq not in sent:
                return True
            if seq in seen:
                duplicates += 1
            else:
                seen.add(seq)
                batch.discard(seq)
                times.append(time.monotonic() - sent[seq])
                overtaken += seq < highest
                highest = max(highest, seq)
            return True

        while left:
            batch.clear()
            for _ in range(min(16, left)):
                stamp = time.monotonic()
                seq = self.send()
                sent[seq] = stamp
                batch.add(seq)
                left -= 1
            # The next sixteen go when these are answered, or after 20 ms: small enough steps that no
            # socket's buffer overflows and no loss is our own.
            deadline = time.monotonic() + 0.02
            while batch and take(deadline):
                pass
        while len(seen) < len(sent) and take(time.monotonic() + quiet):
            pass
        median = sorted(times)[len(times) // 2] * 1000 if times else 0
        return f"ok {len(seen)} {duplicates} {overtaken} {median:.1f}"

    def batch(self, segments):
        self.seq += 1
        data = (b"%d sink " % self.seq).ljust(1000, b".") * int(segments)
        self.sock.sendmsg([data], [(socket.IPPROTO_UDP, UDP_SEGMENT, (1000).to_bytes(2, sys.byteorder))], 0, self.to)
        return "ok"

    def stream(self, seconds):
        end, total, data = time.monotonic() + float(seconds), 0, b"0 sink ".ljust(1200, b".")
        while time.monotonic() < end:
            total += self.sock.sendto(data, self.to)
        return f"ok {total}"


def obey(ip, port):
    client = Client(ip, port)
    for line in sys.stdin:
        verb, *args = line.split()
        try:
            answer = getattr(client, verb)(*args)
        except OSError as error:
            answer = errno.errorcode.get(error.errno, str(error))
        print(answer, flush=True)


if __name__ == "__main__":
    try:
        {"server": serve, "client": obey}[sys.argv[1]](*sys.argv[2:])
    except KeyboardInterrupt:
        pass
