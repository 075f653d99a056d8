//! A watch as a response: one JSON line an event, sent as soon as it happens.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use api::columns;
use api::error::ApiError;
use api::object::Value;
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use http::StatusCode;
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::time::{Interval, Sleep};

use super::negotiate::{Accepted, Form};
use super::{HttpBody, HttpResponse, render};
use crate::registry::Api;
use crate::registry::watch::{Event, EventKind, Watcher};
use crate::request::Format;

/// Events put into one chunk, if they are there at once.
const CHUNK_BYTES: usize = 64 << 10;
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// How long a watch lasts whose client does not say.
const TIMEOUT: Duration = Duration::from_secs(3600);

/// Starts the stream.
pub(crate) fn answer(
    api: &Arc<Api>,
    ctx: &daemon::Context,
    watcher: Watcher,
    accepted: Accepted,
    warnings: Vec<String>,
) -> Result<HttpResponse, ApiError> {
    let content_type = match accepted.format {
        Format::Json => "application/json",
        Format::Yaml => {
            return Err(ApiError::NotAcceptable(
                "only the following media types are accepted: application/json;stream=watch, \
             application/vnd.kubernetes.protobuf;stream=watch"
                    .into(),
            ));
        }
        Format::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
    };
    let mut bookmarks = tokio::time::interval(BOOKMARK_EVERY);
    bookmarks.reset();
    let end = Box::pin(tokio::time::sleep(watcher.timeout.unwrap_or(TIMEOUT)));
    let encoder = Encoder { api: api.clone(), accepted, columns_sent: false };
    let live = Live { watcher, encoder, bookmarks, end, over: false };
    let chunks = futures::stream::unfold(live, |mut live| async move {
        let chunk = live.next().await?;
        Some((Ok::<_, std::convert::Infallible>(Frame::data(chunk)), live))
    });
    let body = StreamBody::new(chunks.take_until(ctx.shutdown.clone().cancelled_owned()));
    let mut response = http::Response::new(HttpBody::new(body));
    *response.status_mut() = StatusCode::OK;
    let value = http::HeaderValue::from_static(content_type);
    response.headers_mut().insert(http::header::CONTENT_TYPE, value);
    render::warn(&mut response, &warnings);
    Ok(response)
}

/// A watch that is being answered. The connection asks for the next chunk when it has room for one: a client that reads
/// slowly makes its watcher wait, not the cache, and nothing is queued for it.
struct Live {
    watcher: Watcher,
    encoder: Encoder,
    bookmarks: Interval,
    end: Pin<Box<Sleep>>,
    over: bool,
}

impl Live {
    /// What is sent next; none after the end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        loop {
            let event = tokio::select! {
                biased;
                () = self.end.as_mut() => {
                    self.over = true;
                    let event = self.watcher.bookmark().filter(|_| self.watcher.bookmarks)?;
                    return Some(self.encoder.chunk(&self.watcher, event));
                }
                _ = self.bookmarks.tick(), if self.watcher.bookmarks => {
                    match self.watcher.bookmark() {
                        Some(event) => Ok(event),
                        None => continue,
                    }
                }
                event = self.watcher.next() => event,
            };
            let (chunk, last) = match event {
                Err(error) => (self.encoder.error(&error), true),
                Ok(event) => self.encoder.batch(&mut self.watcher, event),
            };
            self.over = last;
            return Some(chunk);
        }
    }
}

struct Encoder {
    api: Arc<Api>,
    accepted: Accepted,
    columns_sent: bool,
}

impl Encoder {
    /// An event and those that are ready behind it.
    fn batch(&mut self, watcher: &mut Watcher, first: Event) -> (Bytes, bool) {
        let mut out = BytesMut::new();
        self.event(watcher, &first, &mut out);
        while out.len() < CHUNK_BYTES {
            match watcher.try_next() {
                Ok(Some(event)) => self.event(watcher, &event, &mut out),
                Ok(None) => break,
                Err(error) => {
                    out.extend_from_slice(&self.error(&error));
                    return (out.freeze(), true);
                }
            }
        }
        (out.freeze(), false)
    }

    fn chunk(&mut self, watcher: &Watcher, event: Event) -> Bytes {
        let mut out = BytesMut::new();
        self.event(watcher, &event, &mut out);
        out.freeze()
    }

    fn event(&mut self, watcher: &Watcher, event: &Event, out: &mut BytesMut) {
        if self.accepted.format == Format::Protobuf {
            out.extend_from_slice(&render::protobuf_event(
                event.kind.name(),
                &event.json,
                &watcher.resource,
            ));
            return;
        }
        let rendered = match self.accepted.form {
            Form::Plain | Form::Discovery { .. } => None,
            Form::Metadata { beta } => {
                let value = api::codec::json::parse(&event.json).unwrap_or(Value::Null);
                Some(render::partial(&value, beta).to_bytes())
            }
            Form::Table { beta } => Some(self.table(watcher, event, beta)),
        };
        let object = rendered.as_deref().unwrap_or(&event.json);
        out.reserve(object.len() + 40);
        out.extend_from_slice(b"{\"type\":\"");
        out.extend_from_slice(event.kind.name().as_bytes());
        out.extend_from_slice(b"\",\"object\":");
        out.extend_from_slice(object);
        out.extend_from_slice(b"}\n");
    }

    fn table(&mut self, watcher: &Watcher, event: &Event, beta: bool) -> Vec<u8> {
        let value = api::codec::json::parse(&event.json).unwrap_or(Value::Null);
        let resource = &watcher.resource;
        let rows = if event.kind == EventKind::Bookmark {
            Vec::new()
        } else {
            vec![render::row(resource, &value, self.api.clock.now(), render::Include::Metadata)]
        };
        let mut table = render::table_head(beta);
        if let Some(version) = value.at(&["metadata", "resourceVersion"]) {
            table.set_at(&["metadata", "resourceVersion"], version.clone());
        }
        let definitions =
            if self.columns_sent { Value::Null } else { columns::definitions(resource) };
        table.set("columnDefinitions", definitions);
        self.columns_sent = true;
        table.set("rows", Value::Array(rows));
        table.to_bytes()
    }

    fn error(&self, error: &ApiError) -> Bytes {
        let status = error.to_status();
        if self.accepted.format == Format::Protobuf {
            return render::protobuf_status_event(&status).into();
        }
        let mut out = b"{\"type\":\"ERROR\",\"object\":".to_vec();
        status.write_to(&mut out);
        out.extend_from_slice(b"}\n");
        out.into()
    }
}
