"""Two flows for Prefect, which print their IDs and end when the file GO is there: flows.py GO."""

import asyncio
import sys
from pathlib import Path

from prefect import flow, runtime


async def work(name):
    print(name, runtime.flow_run.id, flush=True)
    for _ in range(1200):
        if Path(sys.argv[1]).exists():
            return
        await asyncio.sleep(0.1)
    raise TimeoutError("nothing ends this flow")


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
