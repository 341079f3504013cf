#!/usr/bin/env python3
"""Compares "cairn serve", on a volume with change tracking, with other NBD servers
that export a file, over unix sockets, and prints tables of medians and ratios.

The servers take turns within each round, and begin in another order each time, so
that whatever else the machine does hits all of them. A round begins with all files
alike: on the disk, out of the page cache, and then read in through each server, which
is the warm-up too. That has another order each time as well: whoever is first gets
memory that is up to a fifth slower. After a job that writes the file is synced, so that the next one
does not pay for it. Beside each rate is what the server spent on a request (on a MiB,
where rates are MB/s): microseconds of user and system time, which other work on the
machine disturbs less. What counts are ratios within one run.

Then what a client feels, which asks now and then, of another one that always does.
Then, of cairn alone: what an open snapshot costs, what the first writes after a
checkpoint cost in a large sparse volume, where no region is in the activity log, and
what a guest feels of a full backup.
"""

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

# fio's rw, bs and iodepth
JOBS = {
    "4k randread qd1": ("randread", "4k", 1),
    "4k randwrite qd1": ("randwrite", "4k", 1),
    "4k randread qd32": ("randread", "4k", 32),
    "4k randwrite qd32": ("randwrite", "4k", 32),
    "1M read qd8": ("read", "1M", 8),
    "1M write qd8": ("write", "1M", 8),
}
COPY = "nbdcopy to null:"
SERVERS = ["cairn", "nbdkit", "qemu-nbd", "nbd-server", "go-nbd"]
PARTS = ["servers", "neighbor", "snapshot", "cold", "backup"]
TOOLS = {"go": "golang", "fio": "fio", "nbdkit": "nbdkit", "qemu-nbd": "qemu-utils",
         "nbdcopy": "libnbd-bin", "nbd-server": "nbd-server"}
TICKS = os.sysconf("SC_CLK_TCK")
MIB = 1 << 20


def run(*command, **more):
    """The standard output of a command, which must succeed."""
    p = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, **more)
    if p.returncode:
        sys.exit("bench-nbd: %s failed: %s" % (" ".join(command), p.stderr.strip() or p.returncode))
    return p.stdout


def wait_for(what, condition):
    until = time.monotonic() + 30
    while not condition():
        if time.monotonic() > until:
            sys.exit("bench-nbd: %s did not start" % what)
        time.sleep(0.02)


class Server:
    """A server process, and the one file that it exports as disk."""

    def __init__(self, name, work, command, **more):
        self.name, self.file = name, "%s/%s.img" % (work, name)
        self.socket, self.export = "%s/%s.sock" % (work, name), "disk"
        with open("%s/%s.log" % (work, name), "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(  # stop ends it
                [c.format(file=self.file, socket=self.socket) for c in command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, **more)

        self.pid = self.process.pid

    def uri(self, reader=False):
        """The address, for one more client that only reads."""
        return "nbd+unix:///%s?socket=%s" % (self.export, self.socket)

    def cpu(self):
        """Seconds of processor time of the process and its children that have ended."""
        with open("/proc/%d/stat" % self.pid, encoding="utf-8") as f:
            return sum(map(int, f.read().rpartition(")")[2].split()[11:15])) / TICKS

    def fio(self, rw, bs, depth, seconds, *more, reader=False):
        """The part of fio's report that has been asked for."""
        out = run("fio", "--name=b", "--ioengine=nbd", "--uri=" + self.uri(reader), "--rw=" + rw, "--bs=" + bs,
                  "--iodepth=%d" % depth, "--runtime=%g" % seconds, "--randrepeat=1", "--output-format=json", *more)
        job = json.loads(out[out.index("{"):])["jobs"][0]
        return job["read"], job["write"]

    def sync(self):
        run("sync", self.file)

    def stop(self):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.process.kill()


class Control(http.client.HTTPConnection):
    """The control API of cairn serve."""

    def __init__(self, path):
        super().__init__("cairn")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)

    def call(self, method, path, body=None):
        self.request(method, "/v1" + path, json.dumps(body or {}), {"Content-Type": "application/json"})
        answer = self.getresponse()
        text = answer.read()
        self.close()  # the server does so with one that is idle
        if answer.status >= 300:
            sys.exit("bench-nbd: %s %s: %s" % (method, path, text.decode()))
        return json.loads(text) if text else None


class Cairn(Server):
    """The data plane, with one volume, and a checkpoint so that its changes are tracked."""

    def __init__(self, work, program):
        self.program, self.work = program, work
        self.env = dict(os.environ, CAIRN_STATE=work + "/state", CAIRN_SOCKET=work + "/agent.sock",
                        CAIRN_CONTROL=work + "/control.sock", CAIRN_NBD_DIR=work + "/nbd")
        for name in ("CAIRN_PASSWORD_FILE", "CAIRN_USERS", "GOGC", "GOMEMLIMIT"):
            self.env.pop(name, None)
        super().__init__("cairn", work, [program, "serve"], env=self.env)
        wait_for("cairn", lambda: os.path.exists(self.env["CAIRN_CONTROL"]))
        self.control = Control(self.env["CAIRN_CONTROL"])
        self.volume({"name": "bench", "file": self.file})

    def uri(self, reader=False):
        """The address: a volume has one writer."""
        return "nbd+unix:///%s%s?socket=%s" % (self.export, "@ro" if reader else "", self.socket)

    def volume(self, spec):
        """Makes a volume, which this is the server of from now on."""
        v = self.control.call("POST", "/volumes", spec)
        self.export, self.socket, self.file = v["name"], v["socket"], v["path"]
        self.checkpoint()

    def snapshot(self, **more):
        return self.control.call("POST", "/snapshots", {"volumes": [self.export], "force": True, **more})[0]["id"]

    def checkpoint(self):
        """Leaves a checkpoint: a new segment of the record of changes, of which no region is in the log."""
        self.delete(self.snapshot(temporary=True, checkpoints=["c%d" % time.monotonic_ns()]))

    def delete(self, snapshot):
        self.control.call("DELETE", "/snapshots/" + snapshot)

    def agent(self):
        """Starts an agent with folder stores."""
        a = Server("agent", self.work, [self.program, "agent", "--no-serve"], env=self.env)
        wait_for("cairn agent", lambda: subprocess.run(
            [self.program, "status"], env=self.env, capture_output=True, check=False).returncode == 0)
        return a


def start(name, work, options):
    """Starts a server, by its name."""
    file, unix = "%s/%s.img" % (work, name), "%s/%s.sock" % (work, name)
    make_image(file, options.size, options.seed)
    if name == "cairn":
        return Cairn(work, options.cairn)
    commands = {
        "nbdkit": ["nbdkit", "-f", "-U", "{socket}", "file", "{file}"],
        "qemu-nbd": ["qemu-nbd", "-t", "-e", "8", "-f", "raw", "-x", "disk", "-k", "{socket}", "{file}"],
        "nbd-server": ["nbd-server", "-C", work + "/nbd-server.conf", "-p", work + "/nbd-server.pid"],
        "go-nbd": [work + "/gonbd", "-socket", "{socket}", "-file", "{file}"],
    }
    if name == "nbd-server":
        with open(work + "/nbd-server.conf", "w", encoding="utf-8") as f:
            f.write("[generic]\nunixsock = %s\nlistenaddr = 127.0.0.1\nport = %d\n[disk]\nexportname = %s\n"
                    % (unix, options.port, file))
    if name == "go-nbd":
        run("go", "build", "-o", work + "/gonbd", "./nbd/testdata/gonbd", cwd=options.root)
    s = Server(name, work, commands[name])
    wait_for(name, lambda: os.path.exists(s.socket))
    if name == "nbd-server":  # which knows no foreground
        with open(work + "/nbd-server.pid", encoding="utf-8") as f:
            s.pid = int(f.read())
    return s


def make_image(file, size, seed):
    """The same bytes for all, of which none are zero blocks."""
    with open(file, "wb") as f:
        for i in range(size // MIB):
            f.write(i.to_bytes(8, "big") + seed[8:])


def warm(servers):
    """Files on the disk, and then in the page cache as each server brings them there."""
    for s in servers:
        s.sync()
        fd = os.open(s.file, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    for s in servers:
        run("nbdcopy", s.uri(), "null:")


def measure(server, job, seconds, size):
    """The rate, and the server's microseconds for a request or a MiB."""
    before, began = server.cpu(), time.monotonic()
    if job == COPY:
        run("nbdcopy", server.uri(), "null:")
        count = size / MIB
        rate = size / 1e6 / (time.monotonic() - began)
    else:
        rw, bs, depth = JOBS[job]
        done = server.fio(rw, bs, depth, seconds, "--time_based", "--size=%d" % size)["write" in rw]
        large = bs != "4k"
        count = done["io_bytes"] / MIB if large else done["total_ios"]
        rate = done["bw_bytes"] / 1e6 if large else done["iops"]
    time.sleep(0.02)  # for a child to have ended
    spent = server.cpu() - before
    if "write" in job:
        server.sync()
    return rate, spent / count * 1e6


def bench_servers(servers, options):
    """The rates of all servers."""
    jobs = [j for j in [*JOBS, COPY] if options.jobs in j]
    found = {(j, s.name): [] for j in jobs for s in servers}
    turn = 0
    for i in range(options.rounds):
        warm(servers[i % len(servers):] + servers[:i % len(servers)])
        for job in jobs:
            turn += 1
            for k in range(len(servers)):
                s = servers[(k + turn) % len(servers)]
                found[job, s.name].append(measure(s, job, options.seconds, options.size))
        print("round %d of %d" % (i + 1, options.rounds), file=sys.stderr)
    show(jobs, [s.name for s in servers], found)


def show(jobs, names, found):
    """Prints medians: rates, ratios of the first to nbdkit and to the best other, processor time."""
    rates = {k: statistics.median(r for r, _ in v) for k, v in found.items()}
    spent = {k: statistics.median(c for _, c in v) for k, v in found.items()}
    others = names[1:]
    print("| IOPS, MB/s | %s | to nbdkit | to the best |" % " | ".join(names))
    print("|---|%s" % ("---|" * (len(names) + 2)))
    for j in jobs:
        ratio = ["%.2f" % (rates[j, names[0]] / r) if r else "" for r in (
            rates.get((j, "nbdkit")), max((rates[j, n] for n in others), default=None))]
        print("| %s | %s | %s |" % (j, " | ".join("{:,.0f}".format(rates[j, n]) for n in names), " | ".join(ratio)))
    print("\n| µs of processor time for a request, or a MiB | %s |" % " | ".join(names))
    print("|---|%s" % ("---|" * len(names)))
    for j in jobs:
        print("| %s | %s |" % (j, " | ".join("%.1f" % spent[j, n] for n in names)))


def latency(server, rw, depth, seconds, *more, reader=False):
    """IOPS, and the median and 99th percentile in microseconds of what there was of reads and of writes."""
    out = []
    for d in server.fio(rw, "4k", depth, seconds, *more, reader=reader):
        if d["total_ios"]:
            p = d["clat_ns"]["percentile"]
            out += [d["iops"], p["50.000000"] / 1e3, p["99.000000"] / 1e3]
    return out


def rows(title, heads, lines):
    print("\n| %s | %s |" % (title, " | ".join(heads)))
    print("|---|%s" % ("---|" * len(heads)))
    for name, figures in lines:
        print("| %s | %s |" % (name, " | ".join("{:,.0f}".format(x) for x in figures)))


def bench_neighbor(servers, options):
    """A client that asks 200 times a second, beside one that asks as soon as it has been answered."""
    seconds, more = max(2, options.seconds), ("--time_based", "--size=%d" % options.size)
    found = {s.name: [] for s in servers}
    for _ in range(options.rounds):
        for s in servers:
            busy = subprocess.Popen(["fio", "--name=a", "--ioengine=nbd", "--uri=" + s.uri(), "--rw=randread", "--bs=4k", "--iodepth=1",
                                     "--runtime=%d" % (seconds + 10), *more], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            try:
                time.sleep(0.5)
                found[s.name].append(latency(s, "randread", 1, seconds, "--rate_iops=200", *more, reader=True)[1:])
                if busy.poll() is not None:
                    sys.exit("bench-nbd: the busy client of %s ended early" % s.name)
            finally:
                busy.terminate()
                busy.wait()
    rows("200 reads a second beside a busy client", ["p50 µs", "p99 µs"],
         [(name, [statistics.median(c) for c in zip(*v)]) for name, v in found.items()])


def bench_snapshot(c, options):
    """Writes with a snapshot open: the first into each block saves what was there."""
    lines, area = [], min(64 * MIB, options.size // 4)
    for i, depth in enumerate((1, 32)):
        where = ("--size=%d" % area, "--offset=%d" % (i * area))
        again = ("--time_based", *where)
        lines.append(("4k qd%d, no snapshot" % depth, latency(c, "randwrite", depth, options.seconds, *again)))
        s = c.snapshot()
        # 4 KiB of each block of 64 KiB.
        lines.append(("the same, first write to a block", latency(c, "write:60k", depth, 60, *where)))
        lines.append(("later writes", latency(c, "randwrite", depth, options.seconds, *again)))
        c.delete(s)
    rows("with a snapshot", ["IOPS", "p50 µs", "p99 µs"], lines)


def bench_cold(c, options):
    """Writes that find their region cold: right after a checkpoint, all over a sparse volume."""
    lines = []
    c.volume({"name": "sparse", "size": 1 << 40})
    for depth in (1, 32):
        for name, area in (("1 GiB of it", 1 << 30), ("all of it", 1 << 40)):
            c.checkpoint()
            lines.append(("4k randwrite qd%d, %s" % (depth, name), latency(
                c, "randwrite", depth, options.seconds, "--time_based", "--norandommap", "--size=%d" % area)))
    rows("1 TiB after a checkpoint", ["IOPS", "p50 µs", "p99 µs"], lines)
    c.volume({"name": "dense", "size": options.size})


def bench_backup(c, options):
    """A guest that reads and writes, without and with a full backup under way."""
    lines, seconds = [], max(2, options.seconds)
    more = ("--time_based", "--size=%d" % options.size)
    agent = c.agent()
    try:
        run("nbdcopy", "--flush", options.source, c.uri())
        for depth in (1, 4):
            lines.append(("4k randrw qd%d" % depth, latency(c, "randrw", depth, seconds, *more)))
            backup = subprocess.Popen([c.program, "backup", "create", c.export, "--force"], env=c.env,
                                      stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            time.sleep(0.3)
            lines.append(("the same, during a full backup", latency(c, "randrw", depth, seconds, *more)))
            if backup.poll() is not None:
                print("bench-nbd: the backup ended before fio: take a larger SIZE", file=sys.stderr)
            if backup.wait():
                sys.exit("bench-nbd: the backup failed")
    finally:
        agent.stop()
    rows("beside a backup", ["read IOPS", "p50 µs", "p99 µs", "write IOPS", "p50 µs", "p99 µs"], lines)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seconds", type=int, default=1, help="of each job")
    p.add_argument("--size", type=int, default=1024, help="of each file, in MiB")
    p.add_argument("--dir", default="/tmp", help="where the files go: SIZE for each server, and twice for the backup")
    p.add_argument("--jobs", default="", help="only jobs whose names contain this")
    p.add_argument("--servers", default=",".join(SERVERS), help="only these; the first is compared with the others")
    p.add_argument("--parts", default=",".join(PARTS), help="only these")
    p.add_argument("--cairn", default="bin/cairn")
    o = p.parse_args()
    o.root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    o.cairn, o.size, o.port, o.seed = os.path.abspath(o.cairn), o.size * MIB, free_port(), os.urandom(MIB)
    o.servers, o.parts = o.servers.split(","), o.parts.split(",")
    return o


def main():
    o = options()
    missing = [t for t in TOOLS if not shutil.which(t)]
    if missing:
        sys.exit("bench-nbd: needs %s: install the Debian packages %s"
                 % (", ".join(missing), " ".join(sorted(TOOLS[t] for t in missing))))
    work = tempfile.mkdtemp(prefix="bench-nbd.", dir=o.dir)
    servers = []
    try:
        for name in o.servers:
            servers.append(start(name, work, o))
        if "servers" in o.parts:
            bench_servers(servers, o)
        if "neighbor" in o.parts:
            bench_neighbor(servers, o)
        c = next((s for s in servers if isinstance(s, Cairn)), None)
        if c:
            o.source = c.file
            for part, bench in (("snapshot", bench_snapshot), ("cold", bench_cold), ("backup", bench_backup)):
                if part in o.parts:
                    bench(c, o)
    finally:
        for s in servers:
            s.stop()
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
