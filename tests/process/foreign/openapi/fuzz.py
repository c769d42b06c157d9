"""Asks a node all that its description allows, and what it does not, and holds the answers against it (schemathesis).

    fuzz.py HTTP_ADDRESS SEED SECONDS

Also what schemathesis loads: what a format means, and which valid requests the state of a registry may refuse.
"""

import json
import os
import sys
import time

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

NUMBERS = st.integers(0, 2**63 - 1).map(str)
# A revision that no node has is waited for, and refused with 503, or 400: not what is looked for here.
KNOWN = ["0", "1", "00000000000000ff-3", "5f04895e56a1bbf5-1"]
POSITIONS = st.sampled_from(KNOWN)
BEGINS = st.sampled_from([*KNOWN, "oldest"])
WATCH = "/api/v1/namespaces/{ns}/watch"
WATCHED = 40
WITHIN_S = 20
# The node, for the checks.
NODE = "QUORATE_FUZZED"
# What a busy machine is too slow for once, it is not each time.
AGAIN = 3

schemathesis.openapi.format("uint64", NUMBERS)
schemathesis.openapi.format("position", POSITIONS)
schemathesis.openapi.format("begin", BEGINS)

# What a 400 may name of a request that is as described: fields whose limits hold between them, or with the time and the state.
MAY_BE_WRONG = (
    "after",  # is the `next` of an answer
    "incarnation",  # not over a year ahead
    "min_revision",  # one that there is
    "override",  # a status or a weight
    "request_id",  # not 0, and `done_below` below `number`
    "checks[",  # one kind; of an endpoint that there is; a timeout below the interval
    "metadata",  # 16 KiB in all
    "ttl",  # in words, it has the limits of `ttl_ms`, and stands alone
)


def whole(value):
    """6859.0 is an integer of JSON Schema, and none of ours."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [whole(item) for item in value]
    if isinstance(value, dict):
        return {name: whole(item) for name, item in value.items()}
    return value


@schemathesis.hook
def map_body(context, body):
    return whole(body)


@schemathesis.check
def valid_requests_are_taken(ctx, response, case):
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code != 400:
        return
    problem = json.loads(response.content)
    named = problem.get("field") or problem["detail"].split(" ")[0]
    known = problem.get("code") == "OUT_OF_RANGE" or any(word in named for word in MAY_BE_WRONG)
    assert known, f"a valid request is refused: {problem}"


@schemathesis.check
def nothing_is_a_fault(ctx, response, case):
    """A busy machine may be too slow for a deadline, and says so; the state of a node is never a fault of its own."""
    if response.status_code < 500:
        return
    problem = json.loads(response.content)
    slow = {503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}
    assert problem["code"] == slow.get(response.status_code), f"a fault: {problem}"
    assert passes(case.as_transport_kwargs(base_url=os.environ[NODE])), f"it does not pass: {problem}"


def passes(sent):
    """Whether a request that came too late is answered when it is asked again, without bounds of its own that no node may keep."""
    params = {name: value for name, value in (sent.get("params") or {}).items() if name not in ("timeout", "max_age")}
    for _ in range(AGAIN):
        time.sleep(1)
        with requests.request(**{**sent, "params": params}, stream=True, timeout=WITHIN_S) as response:
            if response.status_code < 500:
                return True
    return False


def watches(address, number):
    """Streams have no end: schemathesis would wait for it."""
    schema = schemathesis.openapi.from_url(f"http://{address}/openapi.json")
    operation = schema[WATCH]["GET"]
    documented = {int(status) for status in operation.definition.raw["responses"]}
    counts = {}
    modes = [operation.as_strategy(generation_mode=mode) for mode in GenerationMode]

    @seed(number)
    @settings(max_examples=WATCHED, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=st.one_of(modes))
    def asked(case):
        sent = case.as_transport_kwargs(base_url=f"http://{address}")
        with requests.request(**sent, stream=True, timeout=WITHIN_S) as response:
            status, kind = response.status_code, response.headers["content-type"]
            # A millisecond may be too short to begin.
            late = status in (503, 504) and "timeout" in sent["params"]
            assert status in documented and (status < 500 or late and passes(sent)), (status, sent)
            assert kind == ("text/event-stream" if status == 200 else "application/problem+json"), (kind, sent)
            counts[status] = counts.get(status, 0) + 1

    asked()
    assert counts.get(200) and counts.get(400), counts
    print("watches, by status:", counts, flush=True)


def main(address, number, seconds):
    # There is a revision to ask for.
    place = f"http://{address}/api/v1/namespaces/default/services/web/instances/a"
    there = requests.put(place, json={"endpoints": {"http": "http://h:1"}, "ttl_ms": 600_000}, timeout=WITHIN_S)
    assert there.status_code == 200, there.text
    watches(address, int(number))
    options = ["--exclude-path", WATCH, "--checks", "all", "--exclude-checks", "positive_data_acceptance,not_a_server_error"]
    options += ["--phases", "coverage,fuzzing", "--seed", number, "--max-time", seconds, "--request-timeout", str(WITHIN_S)]
    options += ["--suppress-health-check", "all", "--no-color", "--max-failures", "20"]
    python = [sys.executable, "-m", "schemathesis.cli", "run", f"http://{address}/openapi.json", *options]
    os.environ[NODE] = f"http://{address}"
    os.environ["SCHEMATHESIS_HOOKS"] = "fuzz"
    os.environ["PYTHONPATH"] = os.pathsep.join([os.path.dirname(os.path.abspath(__file__)), os.environ.get("PYTHONPATH", "")])
    os.execv(sys.executable, python)


if __name__ == "__main__":
    main(*sys.argv[1:])
