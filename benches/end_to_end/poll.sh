#!/usr/bin/env bash
# Waits for a run as people do it in a shell: poll.sh BASE INTERVAL RUN. Writes the time and the run when it has
# ended. One of the peers in the end-to-end benchmark.
while :; do
    status=$(curl -fsS -A shell-loop -H 'Authorization: Bearer a-key' "$1/v1/runs/$3" | jq -r .status)
    case $status in
    succeeded | failed | canceled)
        echo "$(date +%s.%N) $3"
        exit 0
        ;;
    esac
    sleep "$2"
done
