// Adds a watch with the types that openapi-typescript made of the document, and waits for its verdict:
// client.js BASE TOKEN_FILE RUN EVENTS, with the file of a sink that has each event as webhooks do.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { setTimeout } from "node:timers/promises";

import createClient from "openapi-fetch";

import type { components, paths, webhooks } from "./runwatch.js";

type Watch = components["schemas"]["WatchResponse"];

/** What a webhook contains, by its `type`. */
type Sent = webhooks[keyof webhooks]["post"]["requestBody"]["content"]["application/json"];

/** How many times the verdict is requested, of a run that ends within seconds. */
const REQUESTS = 10;

/** How long the sink may take. */
const LIMIT_MS = 60_000;

const [base, tokenFile, run, events] = process.argv.slice(2);
assert(base && tokenFile && run && events);
const token = readFileSync(tokenFile, "utf8").trim();

function clientWith(token: string) {
  return createClient<paths>({ baseUrl: base, headers: { Authorization: `Bearer ${token}` } });
}

async function verdict(client: ReturnType<typeof clientWith>, run_id: string): Promise<Watch> {
  for (let request = 0; request < REQUESTS; request++) {
    const params = { path: { run_id }, query: { wait: "30s" } };
    const { data, error } = await client.GET("/v1/watches/{run_id}", { params });
    assert(data, error?.detail);
    if (data.verdict) {
      return data;
    }
  }
  throw new Error(`${run_id} has no verdict`);
}

/** The last event about a run in the file of the sink, once it is the one with the verdict. */
async function delivered(path: string, run_id: string): Promise<Sent> {
  for (const end = Date.now() + LIMIT_MS; Date.now() < end; await setTimeout(50)) {
    // What follows the last end of a line is not whole.
    const lines = readFileSync(path, "utf8").split("\n").slice(0, -1);
    const events = lines.map((line): Sent => JSON.parse(line));
    const last = events.findLast((event) => "run" in event.data && event.data.run.id === run_id);
    if (last && last.type !== "run.started") {
      return last;
    }
  }
  throw new Error(`${path} has no verdict of ${run_id}`);
}

/** The output of a run that succeeded. The types allow `data.run` only where the event is about a run. */
function output(sent: Sent): unknown {
  switch (sent.type) {
    case "run.succeeded":
      return sent.data.run.output;
    case "sink.disabled":
      throw new Error(`${sent.data.sink}: ${sent.data.message}`);
    default:
      throw new Error(`not about a run that succeeded: ${sent.type}`);
  }
}

const client = clientWith(token);
const body = { run_id: run, name: "by TypeScript", labels: { client: "typescript" } };
const added = await client.POST("/v1/watches", { body });
assert.equal(added.response.status, 201);
assert.equal(added.data?.verdict, null);

const watch = await verdict(client, run);
assert.equal(watch.verdict, "succeeded");
assert.equal(watch.labels["client"], "typescript");
assert.equal(watch.data?.run.id, run);

assert.deepEqual(output(await delivered(events, run)), watch.data?.run.output);

const unknown = await client.GET("/v1/watches/{run_id}", { params: { path: { run_id: "run_of_another" } } });
assert.equal(unknown.error?.status, 404);
const refused = await clientWith("wrong").GET("/v1/watches");
assert.equal(refused.error?.status, 401);
console.log(`the TypeScript client waited for ${run}: ${watch.verdict}`);
