"""Adds a watch with the client that openapi-python-client made of the document, and waits for its verdict:
client.py BASE TOKEN_FILE RUN, with the client as the package `runwatch_client`.
"""

import sys

from runwatch_client import AuthenticatedClient
from runwatch_client.api.watches import add_watch, get_watch
from runwatch_client.models import AddRequest, Labels, Problem, Verdict, WatchResponse

# The daemon answers sooner; a client has its own limit, which is longer.
WAIT, TIMEOUT = "30s", 60

# How many times, for a run that ends within seconds.
REQUESTS = 10


def main(base, token_file, run):
    with open(token_file, encoding="utf-8") as file:
        token = file.read().strip()
    client = AuthenticatedClient(base_url=base, token=token, timeout=TIMEOUT, raise_on_unexpected_status=True)
    labels = Labels.from_dict({"client": "python"})
    added = add_watch.sync_detailed(client=client, body=AddRequest(run_id=run, name="by Python", labels=labels))
    assert added.status_code == 201, added
    assert isinstance(added.parsed, WatchResponse) and added.parsed.verdict is None, added.parsed
    for _ in range(REQUESTS):
        watch = get_watch.sync(run, client=client, wait=WAIT)
        assert isinstance(watch, WatchResponse), watch
        if watch.verdict is not None:
            break
    assert watch.verdict is Verdict.SUCCEEDED, watch.verdict
    assert (watch.name, watch.labels["client"]) == ("by Python", "python"), watch
    assert watch.finished_at > watch.added_at, watch
    assert watch.data.run.id == run and not watch.data.watch.late, watch.data
    assert {delivery.sink for delivery in watch.deliveries} == {"ops", "dead", "waiting"}, watch.deliveries

    unknown = get_watch.sync("run_of_another", client=client)
    assert isinstance(unknown, Problem) and unknown.status == 404, unknown
    stranger = AuthenticatedClient(base_url=base, token="wrong", raise_on_unexpected_status=True)
    refused = get_watch.sync(run, client=stranger)
    assert isinstance(refused, Problem) and refused.status == 401, refused
    print(f"the Python client waited for {run}: {watch.verdict.value}")


main(*sys.argv[1:])
