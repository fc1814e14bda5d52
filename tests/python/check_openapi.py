"""Checks a server's description of its API by the rules of OpenAPI 3.1, and its answers by the description.

    check_openapi.py URL VIEW

Prints what it asked for, and all that is wrong.
"""

import json
import sys
import urllib.error
import urllib.request

from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

url, view = sys.argv[1:]
requests = [
    ("GET", "/healthz", None),
    ("GET", "/readyz", None),
    ("GET", "/v1/views", None),
    ("GET", "/v1/views/{view}", None),
    ("GET", "/v1/views/{view}/rows", None),
    ("GET", "/v1/views/{view}/rows?limit=1&totals=true", None),
    ("GET", "/v1/views/{view}/rows?from=2000-01-01T00:00:00Z&to=2000-01-02T00:00:00Z", None),
    ("GET", "/v1/views/{view}/rows?window=yesterday", None),
    ("GET", "/v1/views/{view}/audit", None),
    ("GET", "/v1/views/{view}/corrections", None),
    ("GET", "/v1/views/{view}/audit?limit=x", None),
    ("GET", "/v1/rejects", None),
    ("GET", "/v1/rejects?limit=0", None),
    ("GET", "/v1/jobs", None),
    ("GET", "/v1/jobs/none", None),
    ("POST", "/v1/jobs", {"kind": "batch", "views": [view], "full": True, "from": None, "to": None}),
    ("POST", "/v1/jobs", {"kind": "none"}),
    ("POST", "/v1/jobs/none/cancel", {}),
    ("POST", "/v1/topics/none/events", {}),
]
with urllib.request.urlopen(f"{url}/openapi.json") as response:
    api = json.load(response)
errors = [f"{'/'.join(map(str, error.path))}: {error.message}" for error in OpenAPIV31SpecValidator(api).iter_errors()]
answers = []


def ask(method, path, body):
    data = None if body is None else json.dumps(body).encode()
    headers = {} if body is None else {"Content-Type": "application/json"}
    request = urllib.request.Request(url + path, data=data, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def template(method, path):
    """The described path of a request."""
    parts = path.split("?")[0].replace("{view}", view).split("/")
    for described, item in api["paths"].items():
        pairs = list(zip(described.split("/"), parts, strict=False))
        if len(described.split("/")) == len(parts) and all(d == p or d.startswith("{") for d, p in pairs):
            if method.lower() in item:
                return described
    return None


for method, path, body in requests:
    status, headers, answer = ask(method, path.replace("{view}", view), body)
    described = template(method, path)
    asked = f"{method} {path}: {status}"
    answers.append(asked)
    responses = api["paths"].get(described, {}).get(method.lower(), {}).get("responses", {})
    content = responses.get(str(status), {}).get("content", {}).get(headers.get_content_type())
    if content is None:
        errors.append(f"{asked} with {headers.get_content_type()} is not described")
        continue
    schema = {**content["schema"], "components": api["components"]}
    for error in Draft202012Validator(schema).iter_errors(json.loads(answer)):
        errors.append(f"{asked}: {'/'.join(map(str, error.path))}: {error.message}")

print(json.dumps({"answers": answers, "errors": errors}))
