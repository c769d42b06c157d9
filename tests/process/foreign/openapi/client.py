"""A client that `openapi-python-client` made of a node's own description registers, renews, reads, watches and deregisters.

    client.py HTTP_ADDRESS... : of the nodes, in turn
"""

import json
import subprocess
import sys
import tempfile
import threading
import urllib.request

NAMESPACE, SERVICE = "default", "of-openapi"
WITHIN_S = 20


def made(address, directory):
    """The path below which the client is, made of what the node says."""
    description = f"{directory}/openapi.json"
    with urllib.request.urlopen(f"http://{address}/openapi.json", timeout=WITHIN_S) as answer:
        with open(description, "wb") as file:
            file.write(answer.read())
    validate = [sys.executable, "-m", "openapi_spec_validator", description]
    subprocess.run(validate, check=True, timeout=60)
    with open(f"{directory}/config.yaml", "w", encoding="utf-8") as file:
        file.write("post_hooks: []\n")
    make = [sys.executable, "-m", "openapi_python_client", "generate", "--path", description, "--meta", "none"]
    make += ["--config", f"{directory}/config.yaml", "--output-path", f"{directory}/quorate_http", "--fail-on-warning"]
    subprocess.run(make, check=True, timeout=120)
    return directory


def events(response):
    """Name and data of each event of a stream."""
    name = data = None
    for line in response.iter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            data = json.loads(value)
        elif line == "" and data is not None:
            yield name, data
            name = data = None


def main(addresses):
    with tempfile.TemporaryDirectory() as directory:
        sys.path.insert(0, made(addresses[0], directory))
        from quorate_http import Client
        from quorate_http import models
        from quorate_http.api.default import deregister, instance, register, renew, service, watch

        clients = [Client(base_url=f"http://{address}", timeout=WITHIN_S) for address in addresses]
        first, last = clients[0], clients[-1]

        def must(kind, answer):
            assert isinstance(answer, kind), answer
            return answer

        endpoints = models.RegistrationEndpoints()
        endpoints["http"] = "http://10.0.0.1:8080"
        body = models.Registration(endpoints=endpoints, ttl_ms=60_000, tags=["blue"], weight=7)
        registered = must(models.Registered, register.sync(NAMESPACE, SERVICE, "a", client=first, body=body))
        must(models.Done, renew.sync(registered.lease_id, client=last))
        read = service.sync(NAMESPACE, SERVICE, client=last, min_revision=registered.revision, tag=["blue"])
        (found,) = must(models.OneService, read).service.instances
        assert (found.id, found.weight, found.endpoints["http"]) == ("a", 7, endpoints["http"]), found
        assert found.lease_id == registered.lease_id and found.status == models.InstanceStatus.UP, found
        # 304 has no body.
        answer = service.sync_detailed(NAMESPACE, SERVICE, client=last, tag=["blue"])
        again = service.sync_detailed(NAMESPACE, SERVICE, client=last, tag=["blue"], if_none_match=answer.headers["etag"])
        assert (answer.status_code, again.status_code) == (200, 304), (answer, again)

        began, seen = threading.Event(), []

        def follow():
            # The stream that it describes: its library reads whole bodies only.
            asked = watch._get_kwargs(NAMESPACE, service=[SERVICE])
            with last.get_httpx_client().stream(**asked) as response:
                assert response.status_code == 200, response
                for name, data in events(response):
                    if name == "snapshot":
                        snapshot = models.WatchSnapshot.from_dict(data)
                        seen.extend(f"there {one.id}" for of in snapshot.services for one in of.instances)
                    elif name == "change":
                        changes = models.WatchChanges.from_dict(data).changes
                        seen.extend(f"{change.kind} {change.instance.id}" for change in changes)
                    began.set()
                    if seen and seen[-1] == "removed a":
                        return

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        assert began.wait(WITHIN_S), "the stream begins"
        gone = must(models.Done, deregister.sync(NAMESPACE, SERVICE, "a", client=first))
        assert gone.removed == 1, gone
        follower.join(WITHIN_S)
        assert seen == ["there a", "removed a"], seen
        refused = instance.sync(NAMESPACE, SERVICE, "a", client=first, min_revision=gone.revision)
        assert (must(models.Problem, refused).status, refused.code) == (404, "NOT_FOUND"), refused
        wrong = models.Registration(endpoints=endpoints, ttl_ms=5)
        refused = must(models.Problem, register.sync(NAMESPACE, SERVICE, "a", client=first, body=wrong))
        assert (refused.status, refused.field) == (400, "ttl_ms"), refused
    print("registered, renewed, read, watched, deregistered")


main(sys.argv[1:])
