"""A poller as people write it with aiohttp: a task for each run, a fixed interval, one session. One of the peers
in the end-to-end benchmark.

    poller.py BASE INTERVAL SECONDS RUN...      RUN may be NAME:COUNT for NAME_0 ... of so many

Ends when every run has ended, or after so many seconds. Writes a line for each end: the time and the run.
"""

import asyncio
import sys
import time

import aiohttp

FINAL = ("succeeded", "failed", "canceled")


async def watch(session, base, run_id, interval):
    while True:
        async with session.get(f"{base}/v1/runs/{run_id}") as response:
            run = await response.json()
        if run["status"] in FINAL:
            print(f"{time.time():.3f} {run_id}", flush=True)
            return
        await asyncio.sleep(interval)


async def main(base, interval, seconds, *names):
    runs = []
    for name in names:
        name, _, count = name.partition(":")
        runs += [f"{name}_{index}" for index in range(int(count))] if count else [name]
    headers = {"Authorization": "Bearer a-key", "User-Agent": "aiohttp-poller"}
    connector = aiohttp.TCPConnector(limit=64)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        tasks = [asyncio.create_task(watch(session, base, run_id, float(interval))) for run_id in runs]
        done, waiting = await asyncio.wait(tasks, timeout=float(seconds)) if tasks else ((), ())
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for task in done:
            task.result()


asyncio.run(main(*sys.argv[1:]))
