"""The API server over gRPC: objects.py SERVER CA CERT KEY, for example

    python3 objects.py 127.0.0.1:6443 pki/ca.crt pki/admin.crt pki/admin.key

docs/grpc.md tells how objects_pb2 and objects_pb2_grpc are made. crates/client/examples/objects.rs does the same in Rust.
"""

import json
import sys

import grpc
import objects_pb2 as pb
import objects_pb2_grpc as rpc


def read(path):
    with open(path, "rb") as file:
        return file.read()


def key(resource, namespace="", name=""):
    """A core kind as paths name it, and which object or objects of it."""
    kind = pb.Resource(version="v1", resource=resource)
    return pb.Key(resource=kind, namespace=namespace, name=name)


def text(obj):
    return json.loads(obj.json)["data"]["text"]


def main(server, ca, cert, private):
    credentials = grpc.ssl_channel_credentials(read(ca), read(private), read(cert))
    objects = rpc.ObjectsStub(grpc.secure_channel(server, credentials))

    # A list comes in chunks, all at one revision.
    for chunk in objects.List(pb.ListRequest(key=key("namespaces"))):
        for item in chunk.items:
            print("namespace", item.name)

    # Server-side apply: we own the fields we name, and make the object if there is none.
    greeting = key("configmaps", "default", "greeting")

    def apply(words):
        body = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"text": words}}
        return objects.Patch(
            pb.PatchRequest(
                key=greeting,
                type=pb.PatchRequest.APPLY,
                body=json.dumps(body).encode(),
                options=pb.Options(field_manager="example"),
            )
        )

    first = apply("hello")
    print("applied", text(first))

    # A watch from that revision on sees what comes after it.
    events = objects.Watch(
        pb.WatchRequest(
            key=key("configmaps", "default"),
            field_selector="metadata.name=greeting",
            revision=first.revision,
        )
    )
    apply("good evening")
    objects.Delete(pb.DeleteRequest(key=greeting))
    for event in events:
        if event.type == pb.WatchEvent.DELETED:
            print("deleted", event.object.name)
            break
        if event.type != pb.WatchEvent.BOOKMARK:
            print("changed to", text(event.object))
    events.cancel()

    # What goes wrong carries the Kubernetes Status as JSON.
    try:
        objects.Get(pb.GetRequest(key=greeting))
    except grpc.RpcError as error:
        status = json.loads(dict(error.trailing_metadata())["ironclad-status-bin"])
        print(error.code().name, status["reason"])


if __name__ == "__main__":
    main(*sys.argv[1:])
