//! The API server over gRPC, with the generated stubs alone: `objects SERVER CA CERT KEY`, for example
//! `objects https://127.0.0.1:6443 pki/ca.crt pki/admin.crt pki/admin.key`. `docs/grpc.md` tells more, and
//! `docs/examples/objects.py` does the same in Python.

use anyhow::{Context as _, bail};
use daemon::tls::ClientTls;
use serde_json::json;
use wire::apiserver::objects_client::ObjectsClient;
use wire::apiserver::patch_request::Type;
use wire::apiserver::{
    DeleteRequest, GetRequest, Key, ListRequest, Options, PatchRequest, Resource, WatchRequest,
    watch_event,
};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [server, ca, cert, key] = words.as_slice() else {
        bail!("usage: objects SERVER CA CERT KEY");
    };
    daemon::tls::install_provider();
    let read = |path: &str| std::fs::read_to_string(path).with_context(|| path.to_owned());
    let identity = Some((read(cert)?, read(key)?));
    let tls = ClientTls { ca: read(ca)?, identity, server_name: None };
    let mut objects = ObjectsClient::new(daemon::channel::connect(server, Some(&tls))?);

    // A list comes in chunks, all at one revision.
    let request = ListRequest { key: Some(key_of("namespaces", "", "")), ..Default::default() };
    let mut chunks = objects.list(request).await?.into_inner();
    while let Some(chunk) = chunks.message().await? {
        for object in chunk.items {
            println!("namespace {}", object.name);
        }
    }

    // Server-side apply: we own the fields we name, and make the object if there is none.
    let greeting = key_of("configmaps", "default", "greeting");
    let apply = |text: &str| {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"text": text}});
        PatchRequest {
            key: Some(greeting.clone()),
            r#type: Type::Apply.into(),
            body: object.to_string().into(),
            options: Some(Options { field_manager: "example".into(), ..Default::default() }),
            ..Default::default()
        }
    };
    let first = objects.patch(apply("hello")).await?.into_inner();
    println!("applied {}", text(&first.json)?);

    // A watch from that revision on sees what comes after it.
    let watch = WatchRequest {
        key: Some(key_of("configmaps", "default", "")),
        field_selector: "metadata.name=greeting".into(),
        revision: first.revision,
        ..Default::default()
    };
    let mut events = objects.watch(watch).await?.into_inner();
    objects.patch(apply("good evening")).await?;
    objects.delete(DeleteRequest { key: Some(greeting.clone()), ..Default::default() }).await?;
    while let Some(event) = events.message().await? {
        let object = event.object.clone().context("an event without an object")?;
        match event.r#type() {
            watch_event::Type::Bookmark => {}
            watch_event::Type::Deleted => {
                println!("deleted {}", object.name);
                break;
            }
            _ => println!("changed to {}", text(&object.json)?),
        }
    }

    // What goes wrong carries the Kubernetes Status as JSON.
    let request = GetRequest { key: Some(greeting), ..Default::default() };
    let error = objects.get(request).await.err().context("it is still there")?;
    let status = error.metadata().get_bin("ironclad-status-bin").context("no status")?;
    let status: serde_json::Value = serde_json::from_slice(&status.to_bytes()?)?;
    let reason = status["reason"].as_str().context("no reason")?;
    println!("{} {reason}", name(error.code()));
    Ok(())
}

/// A core kind as paths name it, and which object or objects of it.
fn key_of(resource: &str, namespace: &str, name: &str) -> Key {
    let resource =
        Resource { version: "v1".into(), resource: resource.into(), ..Default::default() };
    Key { resource: Some(resource), namespace: namespace.into(), name: name.into() }
}

fn text(json: &[u8]) -> anyhow::Result<String> {
    let object: serde_json::Value = serde_json::from_slice(json)?;
    Ok(object["data"]["text"].as_str().context("no text")?.to_owned())
}

/// The code as other languages write it.
fn name(code: tonic::Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}
