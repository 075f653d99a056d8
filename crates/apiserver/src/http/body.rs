//! Bodies of requests: bounded in size and in time, and in what all of them need together.

use std::sync::Arc;
use std::time::Duration;

use api::error::ApiError;
use bytes::{Bytes, BytesMut};
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
/// When a client that found no room may come again.
const RETRY_S: u32 = 1;

/// The room for bodies.
#[derive(Debug)]
pub(crate) struct Bodies(Arc<Semaphore>);

impl Default for Bodies {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BODIES_KIB_MAX)))
    }
}

/// What one request has of it, until it is answered.
#[derive(Debug)]
pub(super) struct Room {
    all: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

impl Bodies {
    /// Room for one request, none yet.
    pub(super) fn room(&self) -> Room {
        Room { all: self.0.clone(), held: None }
    }
}

impl Room {
    fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        let more = self.all.clone().try_acquire_many_owned(kib);
        let more = more.map_err(|_| ApiError::TooManyRequests {
            message: "too many requests, please try again later".into(),
            retry_after_s: RETRY_S,
        })?;
        match &mut self.held {
            Some(held) => held.merge(more),
            None => self.held = Some(more),
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
    use http_body_util::Full;

    use super::*;

    fn body(bytes: usize) -> HttpBody {
        HttpBody::new(Full::new(Bytes::from(vec![b'x'; bytes])))
    }

    #[tokio::test]
    async fn bodies_have_room_for_so_many_and_no_more() {
        let bodies = Bodies::default();
        let mut held = Vec::new();
        for _ in 0..BODIES_KIB_MAX / 2048 {
            let mut room = bodies.room();
            assert_eq!(room.read(body(2 << 20)).await.unwrap().len(), 2 << 20);
            held.push(room);
        }
        let refused = bodies.room().read(body(1)).await.unwrap_err();
        assert_eq!(refused.status().0, 429);
        held.pop();
        assert!(bodies.room().read(body(1)).await.is_ok());
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_is_refused() {
        let refused = Bodies::default().room().read(body(BODY_BYTES_MAX + 1)).await.unwrap_err();
        assert_eq!(refused.status().0, 413);
    }
}
