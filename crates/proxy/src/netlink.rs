//! Messages to the kernel's netfilter and back: framing, sockets, acknowledgements. Knows nothing of what they say.

use std::time::Duration;

use anyhow::{Context as _, bail};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

/// What the kernel may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// What one acknowledgement takes of a socket's room, which is far more than its own length.
const ACKNOWLEDGEMENT_BYTES: usize = 1024;
/// Room for other answers.
const ANSWER_BYTES: usize = 1 << 20;
const HEADER_BYTES: usize = 16;
/// The kind of a message that acknowledges or refuses.
pub(crate) const ERROR: u16 = 2;
/// The kind of the last message of a list.
pub(crate) const DONE: u16 = 3;

/// Sends `count` messages and returns the socket on which they are answered.
///
/// # Errors
/// When the kernel does not take them.
pub(crate) fn ask(messages: &[u8], count: usize) -> anyhow::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER).context("open netlink")?;
    socket.bind_auto().context("bind netlink")?;
    // An answer that finds no room is lost, and with it the knowledge of what became of the whole batch.
    let room = count * ACKNOWLEDGEMENT_BYTES + ANSWER_BYTES;
    let sent = messages.len() + ANSWER_BYTES;
    setsockopt(&socket, sockopt::SndBufForce, &sent).context("make room in netlink")?;
    setsockopt(&socket, sockopt::RcvBufForce, &room).context("make room in netlink")?;
    let timeout = TimeVal::new(i64::try_from(ANSWER_TIMEOUT.as_secs())?, 0);
    setsockopt(&socket, sockopt::ReceiveTimeout, &timeout).context("limit the wait for netlink")?;
    socket.send_to(messages, &SocketAddr::new(0, 0), 0).context("send to netlink")?;
    Ok(socket)
}

/// Waits until so many messages are acknowledged.
///
/// # Errors
/// When one is refused, with the errno and the number it has in its batch.
pub(crate) fn acknowledged(socket: &Socket, mut left: usize) -> anyhow::Result<()> {
    while left > 0 {
        let (answer, _) = socket.recv_from_full().context("no answer from netlink")?;
        let mut rest = answer.as_slice();
        while let Some(message) = next(&mut rest) {
            if message.kind == ERROR {
                message.accepted()?;
                left = left.saturating_sub(1);
            }
        }
    }
    Ok(())
}

/// A message of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    /// What it is.
    pub(crate) kind: u16,
    sequence: u32,
    /// What follows the header.
    pub(crate) body: &'a [u8],
}

impl Message<'_> {
    /// Whether a message of kind [`ERROR`] says that all went well.
    pub(crate) fn accepted(&self) -> anyhow::Result<()> {
        let code = self.body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
        if code != 0 {
            let error = std::io::Error::from_raw_os_error(-code);
            bail!("netfilter refused message {}: {error}", self.sequence);
        }
        Ok(())
    }
}

/// Takes a message off the front.
pub(crate) fn next<'a>(rest: &mut &'a [u8]) -> Option<Message<'a>> {
    let length = usize::try_from(u32::from_ne_bytes(*rest.first_chunk()?)).ok()?;
    let message = rest.get(..length)?;
    let body = message.get(HEADER_BYTES..)?;
    let kind = u16::from_ne_bytes([message[4], message[5]]);
    let sequence = u32::from_ne_bytes([message[8], message[9], message[10], message[11]]);
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some(Message { kind, sequence, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_messages_end_the_answer() {
        for length in [0_u8, 3, 15, 21, 255] {
            let mut bytes = [0; 20];
            bytes[0] = length;
            assert_eq!(next(&mut bytes.as_slice()), None, "{length}");
        }
        assert_eq!(next(&mut [0_u8; 3].as_slice()), None);
        let mut bytes = [0; 20];
        bytes[0] = 20;
        assert_eq!(next(&mut bytes.as_slice()).map(|m| m.body.len()), Some(4));
    }
}
