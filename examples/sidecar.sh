#!/bin/sh
# Starts a run, hands it to the sidecar, and waits for its verdict. Needs curl and jq, and CREWSHIP_API_KEY.
set -eu

api=https://api.crewship.dev/v1 sidecar=http://127.0.0.1:9477/v1
run=$(curl -sSf "$api/runs" -H "Authorization: Bearer $CREWSHIP_API_KEY" -H 'Content-Type: application/json' \
        -d '{"deployment_id":"dep_abc123xyz","input":{"topic":"AI agents"}}' | jq -r .run_id)
curl -sSf --retry 10 --retry-connrefused -o /dev/null "$sidecar/watches" -d "{\"run_id\":\"$run\"}"
until verdict=$(curl -sSf --retry 10 --retry-connrefused "$sidecar/watches/$run?wait=1m" | jq -er .verdict); do :; done
echo "$run $verdict"
