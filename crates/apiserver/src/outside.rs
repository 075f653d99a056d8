//! What reads bytes from outside, for the project's fuzz targets alone: none of these may panic, whatever it is given.

use std::io::Cursor;

use bytes::Bytes;
use futures::StreamExt as _;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::http::query::Query;
use crate::http::{negotiate, options, path, portforward, session, spdy, upgrade};
use crate::registry::list;

/// A request as far as it is options: a line with the path and its query, one of what is accepted, one of the content's
/// type, then the body.
pub fn request(data: &[u8]) {
    let mut lines = data.splitn(4, |byte| *byte == b'\n');
    let mut text = || std::str::from_utf8(lines.next().unwrap_or_default()).unwrap_or_default();
    let (uri, accept, content) = (text(), text(), text());
    let body = Bytes::copy_from_slice(lines.next().unwrap_or_default());
    let _accepted = (negotiate::accept(Some(accept)), negotiate::patch(Some(content)));
    let Ok(request) = http::Request::builder().uri(uri).body(()) else { return };
    let parts = request.into_parts().0;
    let _target = path::parse(parts.uri.path());
    let query = Query::new(parts.uri.query().unwrap_or_default());
    let _write = options::write(&parts, &query);
    let _delete = options::delete(&query, body, Some(content));
    let _ports = portforward::ports(&query);
    if let Ok(watch) = options::watch(&query) {
        let _wanted = list::check(&watch.list);
        let _place = list::Continue::read(&watch.list.continue_token);
        let _selected = (
            api::selector::LabelSelector::parse(&watch.list.labels),
            api::selector::FieldSelector::parse(&watch.list.fields),
        );
    }
}

/// Frames of a WebSocket from a client, and what its channels mean in a session.
pub fn websocket(data: &[u8]) {
    wait(async {
        let config = Some(upgrade::websocket_config());
        let mut socket = WebSocketStream::from_raw_socket(only(data), Role::Server, config).await;
        while let Some(Ok(message)) = socket.next().await {
            let _input = session::from_client(&message);
        }
    });
}

/// Frames of SPDY from a client that opens streams and writes to them.
pub fn spdy(data: &[u8]) {
    wait(async {
        let handle = async |mut streams: tokio::sync::mpsc::Receiver<spdy::Stream>| {
            let mut readers = tokio::task::JoinSet::new();
            while let Some(mut stream) = streams.recv().await {
                let _kind = stream.header("streamtype");
                readers.spawn(async move { while stream.input.recv().await.is_some() {} });
            }
        };
        let _end = spdy::serve(only(data), handle).await;
    });
}

/// A connection that says this and ends, and that takes everything.
fn only(data: &[u8]) -> tokio::io::Join<Cursor<&[u8]>, tokio::io::Sink> {
    tokio::io::join(Cursor::new(data), tokio::io::sink())
}

fn wait(task: impl Future<Output = ()>) {
    if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
        runtime.block_on(task);
    }
}
