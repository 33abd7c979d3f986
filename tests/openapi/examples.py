"""Sends every request that the document gives as an example, and holds every answer against its schema: those that are
written down in the document, and those that the server at URL gives.

    examples.py URL
"""

import json
import sys
import urllib.error
import urllib.parse
import urllib.request

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

URL = sys.argv[1]
DOCUMENT = json.load(urllib.request.urlopen(URL + "/openapi.json"))
REGISTRY = Registry().with_resource("urn:document", Resource(contents=DOCUMENT, specification=DRAFT202012))
JSON = ("application/json", "application/problem+json")
faults = []


def pointer(*words):
    return "urn:document#/" + "/".join(word.replace("~", "~0").replace("/", "~1") for word in words)


def check(what, value, where):
    """Holds a value against the schema that is at that place of the document."""
    validator = Draft202012Validator({"$ref": where}, registry=REGISTRY)
    for error in validator.iter_errors(value):
        faults.append(f"{what}: {error.json_path}: {error.message[:300]}")


def examples(media):
    if "example" in media:
        yield "example", media["example"]
    for name, example in media.get("examples", {}).items():
        yield name, example["value"]


def operations():
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def check_what_is_written():
    count = 0

    def walk(node, words):
        nonlocal count
        for name, child in node.items() if isinstance(node, dict) else enumerate(node):
            if not isinstance(child, (dict, list)):
                continue
            # What is below `properties` is named by us.
            is_schema = isinstance(child, dict) and ("type" in child or "$ref" in child or "oneOf" in child)
            if is_schema and "example" in child:
                count += 1
                check("/".join(words + [str(name)]), child["example"], pointer(*words, str(name)))
            if name != "example":
                walk(child, words + [str(name)])

    walk(DOCUMENT["components"]["schemas"], ["components", "schemas"])
    for path, method, operation in operations():
        contents = [(["requestBody", "content"], operation.get("requestBody", {}).get("content", {}))]
        for status, response in operation["responses"].items():
            contents.append((["responses", status, "content"], response.get("content", {})))
        for words, content in contents:
            for kind, media in content.items():
                where = ["paths", path, method, *words, kind, "schema"]
                found = list(examples(media))
                for name, value in found:
                    count += 1
                    check(f"{method} {path} {kind} {name}", value, pointer(*where))
                in_schema = "example" in DOCUMENT["components"]["schemas"].get(
                    media.get("schema", {}).get("$ref", "").split("/")[-1], {}
                )
                if kind in JSON and not found and not in_schema:
                    faults.append(f"{method} {path} {'/'.join(words)} {kind} has no example")
        for place, parameter in enumerate(operation.get("parameters", [])):
            if "example" in parameter:
                count += 1
                words = ["paths", path, method, "parameters", str(place), "schema"]
                check(f"{method} {path} {parameter['name']}", parameter["example"], pointer(*words))
    return count


def send(method, path, body=None, kind=None):
    """The answer's status, its media type and its bytes."""
    headers = {} if kind is None else {"Content-Type": kind}
    request = urllib.request.Request(URL + path, data=body, method=method.upper(), headers=headers)
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        answer = error
    return answer.status, (answer.headers.get("Content-Type") or "").split(";")[0], answer.read()


def hold(template, method, answer):
    """Whether the document foresees such an answer; what it says, if that is JSON."""
    status, kind, body = answer
    responses = DOCUMENT["paths"][template][method]["responses"]
    what = f"{method} {template} {status}"
    if str(status) not in responses:
        faults.append(f"{what} is not documented: {body[:300]}")
        return None
    content = responses[str(status)].get("content", {})
    if not body:
        return None
    if kind not in content:
        faults.append(f"{what} is {kind}, which is not documented")
        return None
    if kind not in JSON:
        return None
    value = json.loads(body)
    check(what, value, pointer("paths", template, method, "responses", str(status), "content", kind, "schema"))
    if status < 300:
        name = content[kind]["schema"].get("$ref", "").split("/")[-1]
        written = DOCUMENT["components"]["schemas"].get(name, {}).get("example")
        if written is not None and not set(written) <= set(value):
            faults.append(f"{what}: the example of {name} has fields that are gone: {set(written) - set(value)}")
    return value


def send_all():
    count = 0
    ids = {}
    bytes_of = {
        "application/octet-stream": b"hello",
        "multipart/form-data": b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nhello\r\n--b--\r\n',
    }
    for path, method, operation in operations():
        if method != "post":
            continue
        for kind, media in operation["requestBody"]["content"].items():
            bodies = [("bytes", bytes_of[kind])] if kind in bytes_of else [
                (name, json.dumps(value).encode()) for name, value in examples(media)
            ]
            for name, body in bodies:
                sent = kind + "; boundary=b" if kind.startswith("multipart") else kind
                answer = send(method, path, body, sent)
                count += 1
                if answer[0] >= 300:
                    faults.append(f"the example {name} of {path} is answered {answer[0]}: {answer[2][:500]}")
                value = hold(path, method, answer)
                if value is not None and "id" in value:
                    ids[path] = value["id"]

    # What forgets comes last.
    order = {"get": 0, "head": 0, "put": 1, "delete": 2}
    rest = [call for call in operations() if call[1] in order]
    for path, method, operation in sorted(rest, key=lambda call: order[call[1]]):
        filled = path
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "path":
                root = "/" + path.split("/")[1]
                value = parameter.get("example", ids.get(root, "nothing"))
                filled = filled.replace("{" + parameter["name"] + "}", urllib.parse.quote(value, safe="/"))
        body, kind = (b"no archive", "application/x-tar") if method == "put" else (None, None)
        answer = send(method, filled, body, kind)
        count += 1
        if answer[0] >= 300 and method != "put":
            faults.append(f"{method} {filled} is answered {answer[0]}: {answer[2][:300]}")
        hold(path, method, answer)
    return count


written = check_what_is_written()
sent = send_all()
for fault in faults:
    print(fault)
print(f"{written} examples are written down, {sent} requests were sent, {len(faults)} faults")
sys.exit(1 if faults else 0)
