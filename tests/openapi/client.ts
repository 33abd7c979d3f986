// Completes a run, a batch and a stream with the types that openapi-typescript makes of the document.
//
//     client.js URL KEY

import createClient from "openapi-fetch";
import type { components, paths } from "./schema";

type Run = components["schemas"]["Run"];

declare const process: { argv: string[] };

const [url, key] = process.argv.slice(2) as [string, string];
const client = createClient<paths>({ baseUrl: url, headers: { Authorization: `Bearer ${key}` } });

function must(holds: boolean, what: string, seen: unknown): asserts holds {
  if (!holds) throw new Error(`${what}: ${JSON.stringify(seen)}`);
}

/** The answer is JSON unless a stream was asked for. */
function isRun(data: object | undefined): data is Run {
  return data !== undefined && "outcome" in data;
}

const first = await client.POST("/runs", { body: { image: "host", cmd: "rev", stdin: "olleh\n" } });
must(isRun(first.data), "a run", first);
const run: Run = first.data;
must(run.outcome === "exited" && run.exit_code === 0 && run.stdout === "hello\n", "how it ended", run);

const known = await client.GET("/runs/{id}", { params: { path: { id: run.id } } });
must(known.data?.stdout === run.stdout, "the same run", known);
const listed = await client.GET("/runs", { params: { query: { outcome: "exited", limit: 10 } } });
must(listed.data?.runs.length === 1, "one run", listed);

const begun = await client.POST("/runs", {
  params: { header: { Prefer: "respond-async" } },
  body: { image: "host", cmd: "sleep", args: ["60"] },
});
must(begun.response.status === 202 && isRun(begun.data), "a run that goes on", begun);
const ended = await client.DELETE("/runs/{id}", { params: { path: { id: begun.data.id } } });
must(ended.data?.outcome === "cancelled", "a run that was cancelled", ended);

const uploaded = await client.POST("/files", {
  body: "from a file",
  bodySerializer: (body) => body,
  headers: { "Content-Type": "application/octet-stream" },
});
must(uploaded.data !== undefined, "a file", uploaded);
const reads = await client.POST("/runs", {
  body: { image: "host", cmd: "cat", stdin: { file: uploaded.data.file } },
});
must(isRun(reads.data) && reads.data.stdout === "from a file", "a run that reads it", reads);

const bad = await client.POST("/runs", { body: { image: "host", cmd: "true", limits: { wall_time_ms: 1e9 } } });
must(bad.error?.status === 422, "a problem", bad);
must(bad.error.errors?.[0]?.pointer === "/limits/wall_time_ms", "which value is bad", bad.error);

const batch = await client.POST("/batches", {
  body: {
    image: "host",
    run: { cmd: "cat" },
    tests: [
      { name: "same", stdin: "1 2\n", expect: { stdout: "1  2", compare: "tokens" } },
      { name: "other", stdin: "1 2\n", expect: { stdout: "3" } },
    ],
  },
});
must(batch.data !== undefined && "tests" in batch.data, "a batch", batch);
const verdicts = batch.data.tests.map((test) => test.verdict);
must(verdicts.join() === "accepted,wrong_answer", "verdicts", batch.data);

const stream = await client.POST("/runs", {
  body: { image: "host", cmd: "sh", args: ["-c", "echo one; sleep 0.3; echo two >&2; exit 3"] },
  headers: { Accept: "text/event-stream" },
  parseAs: "stream",
});
const bytes: unknown = stream.data;
must(bytes instanceof ReadableStream, "a stream", stream);
const events: { kind: string; data: any }[] = [];
const reader = bytes.pipeThrough(new TextDecoderStream()).getReader();
let rest = "";
let kind = "";
for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
  rest += piece.value;
  const lines = rest.split("\n");
  rest = lines.pop() ?? "";
  for (const line of lines) {
    if (line.startsWith("event: ")) kind = line.slice(7);
    if (line.startsWith("data: ")) events.push({ kind, data: JSON.parse(line.slice(6)) });
  }
}
const written = (of: string) => events.filter((one) => one.kind === of).map((one) => one.data.text).join("");
must(written("stdout") === "one\n" && written("stderr") === "two\n", "what was written", events);
const result = events.at(-1);
must(events[0]?.kind === "state" && result?.kind === "result", "the first and the last", events);
const last: Run = result.data;
must(last.outcome === "exited" && last.exit_code === 3, "how the stream ended", last);

console.log("a run, a batch and a stream");
