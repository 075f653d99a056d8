//! Bodies of requests: bounded in size and in time, and in what all of them need together.

use std::sync::Arc;
use std::time::Duration;

use api::error::ApiError;
use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::HttpBody;

/// The largest body taken.
const BODY_BYTES_MAX: usize = 3 << 20;
/// How long a client may take to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// What the bodies of all requests that are not answered yet may have together. As a tree a body can be twenty times as
/// large, so this stands for a little more than a gigabyte.
const BODIES_KIB_MAX: usize = 64 << 10;
/// The half of it that only the beginnings of bodies may have, and how long those are: a few large bodies that never end
/// keep no small ones out.
const BEGINNINGS_KIB_MAX: usize = BODIES_KIB_MAX / 2;
const BEGINNING_BYTES: usize = 64 << 10;
/// What is still read of a body that nobody wants, and for how long.
const SKIPPED_BYTES_MAX: usize = 256 << 10;
const SKIP_TIMEOUT: Duration = Duration::from_secs(1);
/// When a client that found no room may come again.
const RETRY_S: u32 = 1;

/// The room for bodies.
#[derive(Debug)]
pub(crate) struct Bodies {
    beginnings: Arc<Semaphore>,
    rest: Arc<Semaphore>,
}

impl Default for Bodies {
    fn default() -> Self {
        Self {
            beginnings: Arc::new(Semaphore::new(BEGINNINGS_KIB_MAX)),
            rest: Arc::new(Semaphore::new(BODIES_KIB_MAX - BEGINNINGS_KIB_MAX)),
        }
    }
}

/// What one request has of it, until it is answered.
#[derive(Debug)]
pub(super) struct Room<'a> {
    all: &'a Bodies,
    beginning: Option<OwnedSemaphorePermit>,
    rest: Option<OwnedSemaphorePermit>,
    bytes: usize,
}

impl Bodies {
    /// Room for one request, none yet.
    pub(super) fn room(&self) -> Room<'_> {
        Room { all: self, beginning: None, rest: None, bytes: 0 }
    }
}

/// Reads away the body of a request that is refused without it. A connection with an unread body is closed after the
/// answer, and a client that sends its next request on it finds it gone.
pub(super) async fn skip(body: HttpBody) {
    if body.is_end_stream() {
        return;
    }
    let mut body = Limited::new(body, SKIPPED_BYTES_MAX);
    let skipped = async { while let Some(Ok(_)) = body.frame().await {} };
    // One that is too long or too slow does lose its connection.
    let _ = tokio::time::timeout(SKIP_TIMEOUT, skipped).await;
}

impl Room<'_> {
    fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        let (from, held) = if self.bytes < BEGINNING_BYTES {
            (&self.all.beginnings, &mut self.beginning)
        } else {
            (&self.all.rest, &mut self.rest)
        };
        self.bytes += bytes;
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        let more = from.clone().try_acquire_many_owned(kib);
        let more = more.map_err(|_| ApiError::TooManyRequests {
            message: "too many requests, please try again later".into(),
            retry_after_s: RETRY_S,
        })?;
        match held {
            Some(held) => held.merge(more),
            None => *held = Some(more),
        }
        Ok(())
    }

    /// Reads a body.
    ///
    /// # Errors
    /// 413 when it is too large, 429 when there is no room for it, 504 when it does not come.
    pub(super) async fn read(&mut self, body: HttpBody) -> Result<Bytes, ApiError> {
        match tokio::time::timeout(BODY_TIMEOUT, self.frames(body)).await {
            Ok(read) => read,
            Err(_) => Err(ApiError::Timeout {
                message: "the request body took too long".into(),
                retry_after_s: None,
            }),
        }
    }

    async fn frames(&mut self, body: HttpBody) -> Result<Bytes, ApiError> {
        let mut body = Limited::new(body, BODY_BYTES_MAX);
        let (mut first, mut rest) = (Bytes::new(), BytesMut::new());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                if error.is::<LengthLimitError>() {
                    return ApiError::TooLarge(format!("limit is {BODY_BYTES_MAX}"));
                }
                ApiError::BadRequest(error.to_string())
            })?;
            let Ok(data) = frame.into_data() else { continue };
            self.grow(data.len())?;
            // Most bodies come in one piece, which needs no copy.
            if first.is_empty() && rest.is_empty() {
                first = data;
            } else {
                rest.extend_from_slice(&std::mem::take(&mut first));
                rest.extend_from_slice(&data);
            }
        }
        Ok(if rest.is_empty() { first } else { rest.freeze() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A body that comes in pieces.
    fn body(bytes: usize) -> HttpBody {
        const PIECE_BYTES: usize = 16 << 10;
        let pieces = (0..bytes).step_by(PIECE_BYTES).map(move |from| {
            let piece = vec![b'x'; PIECE_BYTES.min(bytes - from)];
            Ok::<_, std::convert::Infallible>(http_body::Frame::data(piece.into()))
        });
        HttpBody::new(http_body_util::StreamBody::new(futures::stream::iter(pieces)))
    }

    #[tokio::test]
    async fn large_bodies_have_room_for_so_many_and_leave_some_for_small_ones() {
        let (bodies, large) = (Bodies::default(), 2 << 20);
        let mut held = Vec::new();
        loop {
            let mut room = bodies.room();
            match room.read(body(large)).await {
                Ok(read) => assert_eq!(read.len(), large),
                Err(refused) => {
                    assert_eq!(refused.status().0, 429);
                    break;
                }
            }
            held.push(room);
            assert!(held.len() * large <= BODIES_KIB_MAX << 10);
        }
        assert!(bodies.room().read(body(4 << 10)).await.is_ok());
        held.pop();
        assert!(bodies.room().read(body(large)).await.is_ok());
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_is_refused() {
        let refused = Bodies::default().room().read(body(BODY_BYTES_MAX + 1)).await.unwrap_err();
        assert_eq!(refused.status().0, 413);
    }
}
