"""Two flows for Prefect, which print their IDs and end when the pipe GO has a writer: flows.py GO."""

import asyncio
import sys

from prefect import flow, runtime


async def work(name):
    print(name, runtime.flow_run.id, flush=True)
    await asyncio.to_thread(lambda: open(sys.argv[1], "rb").close())


@flow
async def good(topic="waiting"):
    await work("good")
    return 42


@flow
async def bad():
    await work("bad")
    raise ValueError("model ran out of credit")


async def main():
    await asyncio.gather(good(), bad(), return_exceptions=True)


asyncio.run(main())
