"""Celery: so many no-op tasks, acknowledged late and with results, a worker in a process of its own. Prints tasks a second.

    python celery_bench.py redis://127.0.0.1:6379 JOBS CONCURRENCY
"""

import os
import subprocess
import sys
import time

from celery import Celery, group

app = Celery("celery_bench", broker=os.environ.get("BENCH_REDIS"), backend=os.environ.get("BENCH_REDIS"))
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=4, broker_connection_retry_on_startup=True)


@app.task
def noop():
    """Does nothing."""


def main():
    redis, jobs, concurrency = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    app.conf.update(broker_url=redis, result_backend=redis)
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "celery_bench", "worker", "--pool", "threads", "--concurrency", concurrency,
         "--without-gossip", "--without-mingle", "--loglevel", "ERROR"],
        env={**os.environ, "BENCH_REDIS": redis}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        noop.delay().get(timeout=60)
        begun = time.monotonic()
        group(noop.s() for _ in range(jobs)).apply_async().join(timeout=600)
        print(jobs / (time.monotonic() - begun))
    finally:
        worker.kill()
        worker.wait()


if __name__ == "__main__":
    main()
