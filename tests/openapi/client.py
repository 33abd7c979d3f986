"""Completes a run, a batch and a stream with the client that openapi-python-client makes of the document.

    client.py FOLDER URL KEY

The generated package is `FOLDER/sandglass_client`.
"""

import json
import sys
from io import BytesIO

FOLDER, URL, KEY = sys.argv[1:]
sys.path.insert(0, FOLDER)

from sandglass_client import AuthenticatedClient
from sandglass_client.api.batches import create_batch
from sandglass_client.api.files import upload_file
from sandglass_client.api.runs import cancel_run, create_run, get_run, list_runs
from sandglass_client.models import (
    Batch,
    BatchCommand,
    Compare,
    CreateBatch,
    CreateRun,
    ExpectRequest,
    LimitsRequest,
    Outcome,
    Problem,
    Run,
    RunState,
    StdinFile,
    TestRequest,
    UploadedFile,
    Verdict,
)
from sandglass_client.types import File

client = AuthenticatedClient(base_url=URL, token=KEY)

# A run, and what is known of it afterwards.
run = create_run.sync(client=client, body=CreateRun(image="host", cmd="rev", stdin="olleh\n"))
assert isinstance(run, Run), run
assert (run.outcome, run.exit_code, run.stdout) == (Outcome.EXITED, 0, "hello\n"), run
known = get_run.sync(run.id, client=client)
assert isinstance(known, Run) and known.stdout == run.stdout, known
listed = list_runs.sync(client=client, outcome=Outcome.EXITED, limit=10)
assert [one.id for one in listed.runs] == [run.id], listed

# One whose client does not wait.
begun = create_run.sync(client=client, prefer="respond-async", body=CreateRun(image="host", cmd="sleep", args=["60"]))
assert isinstance(begun, Run) and begun.state != RunState.FINISHED, begun
ended = cancel_run.sync(begun.id, client=client)
assert isinstance(ended, Run) and ended.outcome == Outcome.CANCELLED, ended

# A file, read by a run.
uploaded = upload_file.sync(client=client, body=File(payload=BytesIO(b"from a file")))
assert isinstance(uploaded, UploadedFile), uploaded
reads = create_run.sync(client=client, body=CreateRun(image="host", cmd="cat", stdin=StdinFile(file=uploaded.file)))
assert isinstance(reads, Run) and reads.stdout == "from a file", reads

# A bad value is a problem that names it.
bad = create_run.sync(client=client, body=CreateRun(image="host", cmd="true", limits=LimitsRequest(wall_time_ms=10**9)))
assert isinstance(bad, Problem) and bad.status == 422, bad
assert bad.errors[0].pointer == "/limits/wall_time_ms", bad

# A batch.
tests = [
    TestRequest(name="same", stdin="1 2\n", expect=ExpectRequest(stdout="1  2", compare=Compare.TOKENS)),
    TestRequest(name="other", stdin="1 2\n", expect=ExpectRequest(stdout="3")),
]
batch = create_batch.sync(client=client, body=CreateBatch(image="host", run=BatchCommand(cmd="cat"), tests=tests))
assert isinstance(batch, Batch), batch
assert [test.verdict for test in batch.tests] == [Verdict.ACCEPTED, Verdict.WRONG_ANSWER], batch
assert batch.tests[0].run.stdout == "1 2\n", batch

# A stream: the generated types, over the client's own connection.
request = CreateRun(image="host", cmd="sh", args=["-c", "echo one; sleep 0.3; echo two >&2; exit 3"])
events, kind = [], None
with client.get_httpx_client().stream(
    "POST", "/runs", json=request.to_dict(), headers={"Accept": "text/event-stream"}
) as answer:
    assert answer.status_code == 200, answer.read()
    for line in answer.iter_lines():
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            events.append((kind, json.loads(value)))
written = {kind: "".join(data["text"] for one, data in events if one == kind) for kind in ("stdout", "stderr")}
assert written == {"stdout": "one\n", "stderr": "two\n"}, events
assert events[0][0] == "state" and events[-1][0] == "result", events
result = Run.from_dict(events[-1][1])
assert (result.outcome, result.exit_code) == (Outcome.EXITED, 3), result

print("a run, a batch and a stream")
