//! Lets the answers of a connection that are ready together leave together.
//!
//! Many calls share a connection, and each wakes it when its answer is there. The connection would write the first at once
//! and go to the kernel again for each of the others, whose tasks are next in the queue. So it goes to the end of that queue
//! once before it writes, and finds their answers beside the first.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection that lets other tasks have their turn before it writes.
pub(crate) struct Gathered<I> {
    io: I,
    /// Whether they have had it since the last flush.
    waited: bool,
}

impl<I> Gathered<I> {
    pub(crate) fn new(io: I) -> Self {
        Self { io, waited: false }
    }

    fn wait(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.waited {
            return Poll::Ready(());
        }
        self.waited = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Gathered<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Gathered<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.wait(cx));
        Pin::new(&mut this.io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.waited = false;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.wait(cx));
        Pin::new(&mut this.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// Counts the writes that reach it.
    #[derive(Default)]
    struct Counted(Vec<Vec<u8>>);

    impl AsyncWrite for Counted {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.get_mut().0.push(buf.to_vec());
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_others_have_ready_leaves_with_the_first() {
        let (say, mut said) = tokio::sync::mpsc::unbounded_channel();
        let mut others = tokio::task::JoinSet::new();
        for text in ["a", "b", "c"] {
            let say = say.clone();
            others.spawn(async move { say.send(text) });
        }
        drop(say);
        let mut io = Gathered::new(Counted::default());
        let mut ready = Vec::new();
        std::future::poll_fn(|cx| {
            while let Poll::Ready(Some(text)) = said.poll_recv(cx) {
                ready.extend_from_slice(text.as_bytes());
            }
            if ready.is_empty() {
                return Poll::Pending;
            }
            Pin::new(&mut io).poll_write(cx, &ready).map(drop)
        })
        .await;
        io.flush().await.unwrap();
        io.write_all(b"later").await.unwrap();
        assert_eq!(io.io.0, [b"abc".to_vec(), b"later".to_vec()]);
    }
}
