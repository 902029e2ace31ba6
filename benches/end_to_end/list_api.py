"""A run API with a list: list_api.py PORT RUNS FIRST GAP. RUNS runs go on; from FIRST seconds after its first
request for `/begin` on, one of them ends every GAP seconds, spread over all pages. Prints a line for each request:
its time, what it was for, and whether the run had ended."""

import sys
import time

from aiohttp import web

PORT, RUNS = int(sys.argv[1]), int(sys.argv[2])
FIRST, GAP = float(sys.argv[3]), float(sys.argv[4])
STEP = next(step for step in range(7919, 9000) if all(RUNS % d or step % d for d in range(2, RUNS + 1)))
began = None


def ends_at(run):
    """When a run ends: the numbers in the order of their ends are those of a walk through all of them."""
    return float("inf") if began is None else began + FIRST + GAP * order[run]


order = [0] * RUNS
for nth in range(RUNS):
    order[nth * STEP % RUNS] = nth


def document(run, now):
    ended = now >= ends_at(run)
    return {"id": f"run_{run}", "status": "succeeded" if ended else "running"}


def note(what, ended=""):
    print(f"{time.time():.3f} {what} {ended}", flush=True)


async def one(request):
    run, now = int(request.match_info["run"].removeprefix("run_")), time.time()
    answer = document(run, now)
    note(answer["id"], answer["status"])
    return web.json_response(answer)


async def many(request):
    now, limit, offset = time.time(), int(request.query["limit"]), int(request.query.get("offset", 0))
    going = [run for run in range(RUNS) if now < ends_at(run)]
    note("list")
    return web.json_response({"runs": [document(run, now) for run in going[offset : offset + limit]]})


async def begin(_):
    global began
    began = time.time()
    ends = {f"run_{run}": ends_at(run) for run in range(RUNS)}
    return web.json_response({"began": began, "ends": ends})


app = web.Application()
app.add_routes([web.get("/v1/runs", many), web.get("/v1/runs/{run}", one), web.get("/begin", begin)])
web.run_app(app, host="127.0.0.1", port=PORT, print=None, access_log=None)
