#!/usr/bin/env python3
"""How fast a lost chunkserver is made again, how fast data moves to a new one, and what clients notice of either.

    deploy/measure-repair.py DIR [--gib 4] [--dfs PATH] [--idle]

DIR must not be there; it gets a cluster of 3 metaservers and 4 chunkservers, and takes about 8 times the GiB. The
figures, one JSON object a line: `disk` (a direct copy of a file, synced: what one disk allows that is read from and written
to), `base` (latencies of clients alone), `rebalance` (a fifth server takes its share at the default limit, with clients),
`repair_busy` (a server is lost, at the default limit, with clients), `repair_idle` (another one is lost, without limit,
without clients; with `--idle` nothing but that). Latencies in milliseconds, MB = 10^6 bytes of chunks. Seconds count from when
the server was taken out: until the last byte was re-made (`mb_per_s` is of these), and until all servers had compared what
they have with the last layout (`confirmed`).
"""
import argparse, json, os, random, shutil, subprocess, sys, threading, time

MIB = 1 << 20
DOWN_OUT_S = 12


class Cluster:
    def __init__(self, where, dfs):
        self.dir, self.dfs_path, self.mnt = os.path.abspath(where), dfs, os.path.abspath(where) + ".mnt"
        self.env = dict(os.environ, DFS_CONFIG=f"{self.dir}/dfs.toml")

    def dfs(self, *args):
        done = subprocess.run([self.dfs_path, *args], env=self.env, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"dfs {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout

    def status(self):
        return json.loads(self.dfs("admin", "status", "--json"))

    def up(self, chunkservers, mount=True):
        more = ["--mount", self.mnt] if mount else []
        self.dfs("dev", "up", "--dir", self.dir, "--chunkservers", str(chunkservers), *more)

    def pid(self, name):
        return int(open(f"{self.dir}/run/{name}.pid").read().split()[0])


class Clients:
    """Three writers and readers; what each operation took."""

    def __init__(self, root, files):
        self.root, self.files, self.stop, self.took = root, files, False, {"write_1m": [], "append_4k": [], "read_4k": []}
        self.threads = [threading.Thread(target=work) for work in (self.write, self.append, self.read)]
        for thread in self.threads:
            thread.start()

    def timed(self, what, work):
        begun = time.monotonic()
        work()
        self.took[what].append((time.monotonic() - begun) * 1e3)
        time.sleep(0.02)

    def write(self):
        number = 0
        while not self.stop:
            data, path = os.urandom(MIB), f"{self.root}/w{number % 64}"

            def work():
                with open(path, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())

            self.timed("write_1m", work)
            number += 1

    def append(self):
        with open(f"{self.root}/log", "ab", buffering=0) as file:
            while not self.stop:
                self.timed("append_4k", lambda: (file.write(b"x" * 4096), os.fsync(file.fileno())))

    def read(self):
        while not self.stop:
            path, page = random.choice(self.files), random.randrange(0, 64 * MIB // 4096)

            def work():
                fd = os.open(path, os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.pread(fd, 4096, page * 4096)
                os.close(fd)

            self.timed("read_4k", work)

    def end(self):
        self.stop = True
        for thread in self.threads:
            thread.join()
        of = lambda all, part: round(sorted(all)[min(len(all) - 1, int(len(all) * part))], 2)
        return {what: {"n": len(all), "p50": of(all, 0.5), "p99": of(all, 0.99)} for what, all in self.took.items() if all}


def tell(what, **figures):
    print(json.dumps({"what": what, **figures}), flush=True)


def disk(where, gib):
    """A direct copy, synced, of what dd wrote: MB/s."""
    source, copy = f"{where}.a", f"{where}.b"
    fill = ["dd", "if=/dev/urandom", f"of={source}", "bs=4M", f"count={gib * 256}", "conv=fsync", "status=none"]
    subprocess.run(fill, check=True)
    rates = []
    for _ in range(3):
        begun = time.monotonic()
        dd = ["dd", f"if={source}", f"of={copy}", "bs=4M", "iflag=direct", "oflag=direct", "conv=fsync", "status=none"]
        subprocess.run(dd, check=True)
        rates.append(gib * 1024 * MIB / 1e6 / (time.monotonic() - begun))
        os.remove(copy)
    os.remove(source)
    return sorted(rates)[1]


def missing(status):
    return sum(server["missing"] + server["unavailable"] for server in status["keep"]["servers"])


def lose(cluster, name):
    """Kills a server for good and waits until its share is made again."""
    status = cluster.status()
    held = {s["server"]: s["chunk_bytes"] for s in status["chunkservers"]}
    before = {r["server"]: r["remade_bytes"] for r in status["keep"]["servers"]}
    log = open(f"{cluster.dir}/log/{name}.log").read()
    server = int(log.rsplit("registered server=s", 1)[1].split(" ")[0])
    os.kill(cluster.pid(name), 9)
    layout = status["keep"]["layout"]
    while cluster.status()["keep"]["layout"] == layout:
        time.sleep(0.1)
    begun, done, made = time.monotonic(), 0, 0.0
    while True:
        now = cluster.status()
        took = time.monotonic() - begun
        up = {s["server"] for s in now["chunkservers"] if s["up"]}
        reports = [r for r in now["keep"]["servers"] if r["server"] in up]
        remade = sum(r["remade_bytes"] - before.get(r["server"], 0) for r in reports)
        if remade > done:
            done, made = remade, took
        through = all(r["compared"] == now["keep"]["layout"] for r in reports)
        if through and missing(now) == 0 and now["keep"]["degraded"] == 0:
            break
        time.sleep(0.1)
    figures = {"seconds": round(made, 1), "confirmed": round(took, 1), "mb": round(held[server] / 1e6)}
    return {**figures, "remade_mb": round(done / 1e6), "mb_per_s": round(done / 1e6 / made)}


def beside_clients(cluster, files):
    """What clients notice of a server that comes, and of one that is lost."""
    run = lambda: Clients(cluster.mnt, files)
    clients = run()
    time.sleep(30)
    tell("base", **clients.end())
    cluster.up(5)
    clients, begun = run(), time.monotonic()
    cluster.dfs("admin", "rebalance", "start", "--wait")
    took = time.monotonic() - begun
    moved = json.loads(cluster.dfs("admin", "rebalance", "status", "--json"))
    tell("rebalance", seconds=round(took, 1), status=moved, **clients.end())
    clients = run()
    lost = lose(cluster, "chunk-5")
    tell("repair_busy", **lost, **clients.end())


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("dir")
    args.add_argument("--gib", type=int, default=4, help="on each server")
    args.add_argument("--idle", action="store_true", help="only how fast a lost server is re-made without clients")
    args.add_argument("--dfs", default="dfs")
    args = args.parse_args()
    if os.path.exists(args.dir):
        sys.exit(f"{args.dir} is there already")
    tell("disk", mb_per_s=round(disk(args.dir, args.gib)))
    cluster = Cluster(args.dir, args.dfs)
    cluster.up(4)
    try:
        for conf in (f"{cluster.dir}/conf/meta-{n}.toml" for n in (1, 2, 3)):
            text = open(conf).read()
            open(conf, "w").write(f"down_out_s = {DOWN_OUT_S}\n{text}")
        for n in (1, 2, 3):
            os.kill(cluster.pid(f"meta-{n}"), 9)
        time.sleep(1)
        cluster.up(4)
        files, blob = [], bytearray(os.urandom(64 * MIB))
        for number in range(args.gib * 1024 * 4 // 3 // 64):
            path = f"{cluster.mnt}/f{number}"
            for at in range(0, 64 * MIB, MIB):  # no chunk like another
                blob[at : at + 8] = (number << 32 | at // MIB).to_bytes(8, "little")
            with open(path, "wb") as file:
                file.write(blob)
            files.append(path)
        os.sync()
        cluster.dfs("admin", "gc", "run")
        if not args.idle:
            beside_clients(cluster, files)
        cluster.dfs("admin", "keep", "--repair-idle-mib", "4096")
        time.sleep(10)
        tell("repair_idle", **lose(cluster, "chunk-4"))
    finally:
        cluster.dfs("dev", "down", "--dir", cluster.dir)
    shutil.rmtree(cluster.dir)


main()
