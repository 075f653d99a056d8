"""What people do with the Python client of Kubernetes: its generated APIs, utils.create_from_yaml, watches, and the dynamic
client, with a kind of their own. KUBECONFIG says where; the argument is a manifest."""

import json
import sys
import threading

from kubernetes import client, config, dynamic, utils, watch
from kubernetes.client.rest import ApiException

GROUP = "example.org"


def check(holds, what):
    if not holds:
        raise SystemExit(f"not so: {what}")
    print("ok:", what)


def refused(call, status, reason):
    try:
        call()
    except ApiException as error:
        body = error.body if isinstance(error.body, str) else error.body.decode()
        check(error.status == status and f'"reason":"{reason}"' in body, f"refused with {reason}")
        return
    raise SystemExit(f"not refused with {reason}")


def typed(core, apps):
    check("default" in [n.metadata.name for n in core.list_namespace().items], "namespaces are listed")
    body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="typed"), data={"a": "1"})
    made = core.create_namespaced_config_map("default", body)
    check(made.metadata.creation_timestamp.tzinfo is not None, "times are parsed")
    refused(lambda: core.create_namespaced_config_map("default", body), 409, "AlreadyExists")
    made.data["b"] = "2"
    changed = core.replace_namespaced_config_map("typed", "default", made)
    refused(lambda: core.replace_namespaced_config_map("typed", "default", made), 409, "Conflict")
    patch = {"data": {"a": None}}
    changed = core.patch_namespaced_config_map("typed", "default", patch)
    check(changed.data == {"b": "2"}, "a merge patch removes a key")
    page = core.list_namespaced_config_map("default", limit=1)
    check(len(page.items) == 1 and page.metadata._continue, "a list has pages")
    rest = core.list_namespaced_config_map("default", _continue=page.metadata._continue)
    check(rest.items, "and goes on")
    deleted = core.delete_namespaced_config_map("typed", "default")
    # Newer releases leave it as it came.
    status = deleted["status"] if isinstance(deleted, dict) else deleted.status
    check(status == "Success", "a deletion says so")
    refused(lambda: core.read_namespaced_config_map("typed", "default"), 404, "NotFound")
    scale = apps.patch_namespaced_deployment_scale("hello", "hello", {"spec": {"replicas": 2}})
    check(scale.spec.replicas == 2, "a deployment is scaled")
    check(apps.read_namespaced_deployment("hello", "hello").spec.replicas == 2, "and has it")


def watched(core):
    seen = []

    def write():
        for number in range(3):
            body = {"metadata": {"name": f"watched-{number}", "labels": {"watched": "yes"}}}
            core.create_namespaced_config_map("default", body)
        core.delete_namespaced_config_map("watched-1", "default")

    start = core.list_namespaced_config_map("default").metadata.resource_version
    writing = threading.Thread(target=write)
    writing.start()
    events = watch.Watch()
    for event in events.stream(
        core.list_namespaced_config_map,
        "default",
        label_selector="watched=yes",
        resource_version=start,
        timeout_seconds=30,
    ):
        seen.append((event["type"], event["object"].metadata.name))
        if event["type"] == "DELETED":
            events.stop()
    writing.join()
    added = [("ADDED", f"watched-{number}") for number in range(3)]
    check(seen == added + [("DELETED", "watched-1")], "a watch tells all, in order")


def dynamically(api):
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"crons.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {"plural": "crons", "singular": "cron", "kind": "Cron"},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "properties": {
                                "spec": {
                                    "type": "object",
                                    "properties": {"text": {"type": "string", "maxLength": 9}},
                                }
                            },
                        }
                    },
                }
            ],
        },
    }
    resources = dynamic.DynamicClient(api)
    definitions = resources.resources.get(
        api_version="apiextensions.k8s.io/v1", kind="CustomResourceDefinition"
    )
    definitions.create(body=definition)
    for event in definitions.watch(name=f"crons.{GROUP}", timeout=30):
        conditions = (event["object"].status or {}).get("conditions") or []
        if any(c["type"] == "Established" and c["status"] == "True" for c in conditions):
            break
    resources.resources.invalidate_cache()
    crons = resources.resources.get(api_version=f"{GROUP}/v1", kind="Cron")
    body = {
        "apiVersion": f"{GROUP}/v1",
        "kind": "Cron",
        "metadata": {"name": "mine"},
        "spec": {"text": "short"},
    }
    made = crons.create(body=body, namespace="default")
    check(made.spec.text == "short", "a kind of our own is created")
    body["spec"]["text"] = "much too long"
    try:
        crons.patch(body=body, namespace="default", content_type="application/merge-patch+json")
        raise SystemExit("too long, and taken")
    except dynamic.exceptions.UnprocessibleEntityError:
        print("ok: its schema is kept")
    body["spec"]["text"] = "applied"
    # As text: releases before 24 send an object of this content type not at all.
    applied = crons.server_side_apply(
        name="mine",
        body=json.dumps(body),
        namespace="default",
        field_manager="py",
        force_conflicts=True,
    )
    managers = [m.manager for m in applied.metadata.managedFields]
    check(applied.spec.text == "applied" and "py" in managers, "it is applied by the server")
    check([c.metadata.name for c in crons.get(namespace="default").items] == ["mine"], "and listed")
    crons.delete(name="mine", namespace="default")
    definitions.delete(name=f"crons.{GROUP}")


def main(manifest):
    config.load_kube_config()
    api = client.ApiClient()
    core, apps = client.CoreV1Api(api), client.AppsV1Api(api)
    utils.create_from_yaml(api, manifest)
    check(apps.read_namespaced_deployment("hello", "hello").spec.replicas == 3, "a manifest is created")
    try:
        utils.create_from_yaml(api, manifest)
        raise SystemExit("created twice")
    except utils.FailToCreateError as error:
        # A node port that is taken is refused before anybody looks whether the service is there.
        codes = sorted({e.status for e in error.api_exceptions})
        check(codes == [409, 422], "and not twice")
    typed(core, apps)
    watched(core)
    dynamically(api)


if __name__ == "__main__":
    main(*sys.argv[1:])
