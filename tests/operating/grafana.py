"""Reads a dashboard with Grafana's own foundation SDK, whose classes are made from Grafana's schemas, writes it again,
and says what did not come back as it was: a name that no schema knows, or a value of another kind."""

import json
import sys

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard


def lost(before, after, path):
    if type(before) is not type(after):
        yield path
    elif isinstance(before, dict):
        for name, value in before.items():
            if name in after:
                yield from lost(value, after[name], f"{path}/{name}")
            else:
                yield f"{path}/{name}"
    elif isinstance(before, list) and len(before) == len(after):
        for number, value in enumerate(before):
            yield from lost(value, after[number], f"{path}/{number}")
    elif before != after:
        yield path


register_default_plugins()
document = json.load(sys.stdin)
again = json.loads(JSONEncoder().encode(Dashboard.from_json(document)))
for path in lost(document, again, ""):
    print(path)
