"""What a command takes: time, processors, memory; and how it is shown beside its peers."""

import os
import resource
import statistics
import subprocess
import threading
import time
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def folder_bytes(folder):
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def resident_bytes(pid):
    """What a process and all below it have in memory at this moment. A page that several share counts in parts for each."""
    total, waiting = 0, [pid]
    while waiting:
        pid = waiting.pop()
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += (task / "children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def timed(command, server=None, environment=None):
    """Wall, the tool's CPU, the server's CPU, the largest memory of the tool's processes in MB, looked at ten times a second."""
    server_before = server.cpu_seconds() if server else 0
    peak, ended = 0, threading.Event()
    began = time.monotonic()
    process = subprocess.Popen([str(word) for word in command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def look():
        nonlocal peak
        while not ended.wait(0.1):
            peak = max(peak, resident_bytes(process.pid))

    looker = threading.Thread(target=look)
    looker.start()
    out, err = process.communicate()
    wall = time.monotonic() - began
    ended.set()
    looker.join()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode != 0:
        raise SystemExit(f"{command} failed:\n{err.decode()[-4000:]}\n{out.decode()[-2000:]}")
    cpu = usage.ru_utime + usage.ru_stime
    tool = cpu - timed.cpu_so_far
    timed.cpu_so_far = cpu
    return {"wall": wall, "tool_cpu": tool, "server_cpu": (server.cpu_seconds() - server_before) if server else 0.0,
            "memory": peak / 2**20, "out": out.decode()}


timed.cpu_so_far = 0.0


def child_usage_reset():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    timed.cpu_so_far = usage.ru_utime + usage.ru_stime


def report(title, figures, comparisons):
    middle = {name: {key: statistics.median(run[key] for run in runs) for key in ("wall", "tool_cpu", "server_cpu", "memory", "mb")}
              for name, runs in figures.items()}
    print(f"\n## {title}\n\n| | wall s | tool CPU s | server CPU s | memory MB | MB stored |\n|---|---|---|---|---|---|")
    for name, figure in middle.items():
        print(f"| {name} | {figure['wall']:.2f} | {figure['tool_cpu']:.2f} | {figure['server_cpu']:.2f} | {figure['memory']:.0f} | {figure['mb']:.0f} |")
    print()
    for ours, peer, goal in comparisons:
        ratios = [a["wall"] / b["wall"] for a, b in zip(figures[ours], figures[peer])]
        print(f"- {ours} / {peer}: {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f}) {goal}")
