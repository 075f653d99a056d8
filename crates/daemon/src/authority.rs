//! Makes calls acceptable whose `:authority` is not one.
//!
//! Some of etcd's Go clients name a whole endpoint there: `http://host:port` (3.4, for calls to one
//! member) or `#initially=[…]` (3.5.0, for all). Go's servers do not look at it; ours resets such
//! calls before any code of ours sees them. Nothing here decides by the authority, so its illegal
//! characters are replaced on the way in. This file knows as much of HTTP/2 as it takes to find
//! them, and of header compression that a field must keep its size: both ends count the bytes of
//! their tables.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::uri::Authority;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD_BYTES: usize = 9;
/// The largest frame that a client may send us, as we never allow more.
const FRAME_BYTES_MAX: usize = 16 << 10;
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// The name `:authority` in the static table of header compression.
const AUTHORITY_INDEX: usize = 1;
/// What is read at once as long as a connection is looked at.
const READ_BYTES: usize = 16 << 10;

/// What is known of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not yet whether it speaks HTTP/2.
    Start,
    /// Bytes of the current frame that are passed on, after which a frame begins.
    Frames(usize),
    /// Nothing is looked at any more.
    Open,
}

/// Looks at what a client sends, in pieces of any size.
#[derive(Debug)]
struct Mender {
    state: State,
    /// Received and not yet passed on.
    held: Vec<u8>,
    /// The first headers decide: a client names the same authority in all calls of a connection.
    decided: bool,
}

impl Mender {
    fn new() -> Self {
        Self { state: State::Start, held: Vec::new(), decided: false }
    }

    /// Takes what was received and adds to `out` what is to be passed on.
    fn feed(&mut self, received: &[u8], out: &mut Vec<u8>) {
        self.held.extend_from_slice(received);
        let mut at = 0;
        while let Some(taken) = self.step(at, out) {
            at += taken;
        }
        self.held.drain(..at);
    }

    /// Passes on the next part of what is held from `at` on; none if more must be received first.
    fn step(&mut self, at: usize, out: &mut Vec<u8>) -> Option<usize> {
        let held = self.held.get(at..).filter(|held| !held.is_empty())?;
        match self.state {
            State::Open => {
                out.extend_from_slice(held);
                Some(held.len())
            }
            State::Start => {
                let known = held.len().min(PREFACE.len());
                if held[..known] != PREFACE[..known] {
                    self.state = State::Open;
                    return Some(0);
                }
                if known < PREFACE.len() {
                    return None;
                }
                self.state = State::Frames(PREFACE.len());
                Some(0)
            }
            State::Frames(0) => self.frame(at, out),
            State::Frames(left) => {
                let passed = left.min(held.len());
                out.extend_from_slice(&held[..passed]);
                self.state = State::Frames(left - passed);
                Some(passed)
            }
        }
    }

    fn frame(&mut self, at: usize, out: &mut Vec<u8>) -> Option<usize> {
        let held = &self.held[at..];
        let head: [u8; HEAD_BYTES] = held.get(..HEAD_BYTES)?.try_into().ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (kind, flags) = (head[3], head[4]);
        // No client that needs this sends the other forms.
        if kind != HEADERS || flags & (PADDED | PRIORITY) != 0 || length > FRAME_BYTES_MAX {
            self.state = State::Frames(HEAD_BYTES + length);
            return Some(0);
        }
        let block = held.get(HEAD_BYTES..HEAD_BYTES + length)?;
        let mended = mend(block).filter(|mended| mended.len() <= FRAME_BYTES_MAX);
        if mended.is_none() && !self.decided {
            self.state = State::Open;
            return Some(0);
        }
        self.decided = true;
        let block = mended.as_deref().unwrap_or(block);
        let [_, high, middle, low] = u32::try_from(block.len()).unwrap_or(0).to_be_bytes();
        out.extend_from_slice(&[high, middle, low]);
        out.extend_from_slice(&head[3..]);
        out.extend_from_slice(block);
        Some(HEAD_BYTES + length)
    }
}

/// The header block with a legal authority, if it has one and that is illegal.
fn mend(block: &[u8]) -> Option<Vec<u8>> {
    let mut at = 0;
    loop {
        // RFC 7541, section 6: what the first bits say of a field, and how many are left for a number.
        let bits = match *block.get(at)? {
            0x80.. => 7,
            0x40.. => 6,
            0x20.. => 5,
            _ => 4,
        };
        let is_literal = bits != 7 && bits != 5;
        let (name, value_at) = number(block, at, bits)?;
        at = value_at;
        if !is_literal {
            continue;
        }
        let mut is_authority = name == AUTHORITY_INDEX;
        if name == 0 {
            let (text, next) = string(block, at)?;
            is_authority = text == b":authority";
            at = next;
        }
        let (value, next) = string(block, at)?;
        if is_authority {
            return replace(block, at, next, value);
        }
        at = next;
    }
}

fn replace(block: &[u8], from: usize, to: usize, mut value: Vec<u8>) -> Option<Vec<u8>> {
    if value.is_empty() || Authority::try_from(value.as_slice()).is_ok() {
        return None;
    }
    for byte in &mut value {
        if !byte.is_ascii_alphanumeric() && *byte != b'.' {
            *byte = b'-';
        }
    }
    let mut mended = block[..from].to_vec();
    push_length(&mut mended, value.len());
    mended.extend_from_slice(&value);
    mended.extend_from_slice(&block[to..]);
    Some(mended)
}

/// A number in the low `bits` of a byte and, if they are all set, the bytes behind it.
fn number(block: &[u8], at: usize, bits: u32) -> Option<(usize, usize)> {
    let mask = (1_usize << bits) - 1;
    let first = usize::from(*block.get(at)?) & mask;
    if first < mask {
        return Some((first, at + 1));
    }
    let (mut value, mut shift) = (mask, 0);
    for (behind, byte) in block.get(at + 1..)?.iter().take(4).enumerate() {
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, at + behind + 2));
        }
        shift += 7;
    }
    None
}

/// The length of a string that is not compressed.
fn push_length(out: &mut Vec<u8>, length: usize) {
    let Some(mut rest) = length.checked_sub(0x7f) else {
        out.push(u8::try_from(length).unwrap_or(0));
        return;
    };
    out.push(0x7f);
    while rest >= 0x80 {
        out.push(u8::try_from(rest & 0x7f).unwrap_or(0) | 0x80);
        rest >>= 7;
    }
    out.push(u8::try_from(rest).unwrap_or(0));
}

fn string(block: &[u8], at: usize) -> Option<(Vec<u8>, usize)> {
    let is_compressed = block.get(at)? & 0x80 != 0;
    let (length, at) = number(block, at, 7)?;
    let bytes = block.get(at..at + length)?;
    let text = if is_compressed { expand(bytes)? } else { bytes.to_vec() };
    Some((text, at + length))
}

/// The printable characters by the length of their codes, each list in the order of its codes
/// (RFC 7541, appendix B, whose code is canonical: this is all of it up to 15 bits).
const SYMBOLS: [(u32, &[u8]); 10] = [
    (5, b"012aceiost"),
    (6, b" %-./3456789=A_bdfghlmnpru"),
    (7, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, b"&*,;XZ"),
    (10, b"!\"()?"),
    (11, b"'+|"),
    (12, b"#>"),
    (13, b"\0$@[]~"),
    (14, b"^}"),
    (15, b"<`{"),
];

/// Undoes the compression of a string; none if it holds anything but printable characters.
fn expand(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut bits = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1));
    let mut text = Vec::new();
    loop {
        let (mut code, mut length) = (0_usize, 0);
        let mut first = 0_usize;
        let mut last_length = 0;
        let mut found = None;
        for (wanted, symbols) in SYMBOLS {
            while length < wanted {
                let Some(bit) = bits.next() else {
                    // The end is filled up with ones.
                    let is_filling = length < 8 && code == (1 << length) - 1;
                    return is_filling.then_some(text);
                };
                code = code << 1 | usize::from(bit);
                length += 1;
            }
            first <<= wanted - last_length;
            last_length = wanted;
            found = code.checked_sub(first).and_then(|place| symbols.get(place));
            if found.is_some() {
                break;
            }
            first += symbols.len();
        }
        text.push(*found?);
    }
}

/// A connection whose calls are mended as they are read.
pub(crate) struct Mended<I> {
    io: I,
    mender: Mender,
    /// Looked at and not yet taken, from `taken` on.
    ready: Vec<u8>,
    taken: usize,
    received: Vec<u8>,
}

impl<I> Mended<I> {
    pub(crate) fn new(io: I) -> Self {
        Self { io, mender: Mender::new(), ready: Vec::new(), taken: 0, received: Vec::new() }
    }

    /// Gives what is ready to the reader; whether there was any.
    fn give(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let ready = &self.ready[self.taken..];
        let given = ready.len().min(buf.remaining());
        buf.put_slice(&ready[..given]);
        self.taken += given;
        if self.taken == self.ready.len() {
            self.taken = 0;
            self.ready.clear();
        }
        given > 0
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Mended<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.give(buf) {
                return Poll::Ready(Ok(()));
            }
            if this.mender.state == State::Open && this.mender.held.is_empty() {
                this.received = Vec::new();
                return Pin::new(&mut this.io).poll_read(cx, buf);
            }
            this.received.resize(READ_BYTES, 0);
            let mut received = ReadBuf::new(&mut this.received);
            std::task::ready!(Pin::new(&mut this.io).poll_read(cx, &mut received))?;
            if received.filled().is_empty() {
                // Half a frame is nothing to anybody.
                return Poll::Ready(Ok(()));
            }
            this.mender.feed(received.filled(), &mut this.ready);
        }
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Mended<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let [_, high, middle, low] = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[high, middle, low, kind, 0x4, 0, 0, 0, 1][..], payload].concat()
    }

    /// Method, scheme and path by index, then the authority, to be remembered, then `grpc-timeout`.
    fn headers(authority: &[u8]) -> Vec<u8> {
        let mut block = vec![0x83, 0x86, 0x84, 0x41];
        push_length(&mut block, authority.len());
        let rest = [&[0x40, 12][..], b"grpc-timeout", &[2], b"1S"].concat();
        frame(HEADERS, &[&block, authority, &rest].concat())
    }

    fn call(authority: &[u8]) -> Vec<u8> {
        let settings = frame(4, &[]);
        let body = frame(0, b"http://");
        [PREFACE, &settings, &headers(authority), &body, &headers(authority)].concat()
    }

    fn mended(sent: &[u8], piece: usize) -> Vec<u8> {
        let (mut mender, mut out) = (Mender::new(), Vec::new());
        for piece in sent.chunks(piece) {
            mender.feed(piece, &mut out);
        }
        assert!(mender.held.is_empty());
        out
    }

    #[test]
    fn an_endpoint_in_place_of_an_authority_becomes_one_of_the_same_length() {
        let long = format!("http://{}:1", "h".repeat(200));
        for (sent, wanted) in [
            ("http://127.0.0.1:2379", "http---127.0.0.1-2379".to_owned()),
            ("#initially=[http://a:1]", "-initially--http---a-1-".to_owned()),
            (long.as_str(), format!("http---{}-1", "h".repeat(200))),
        ] {
            for piece in [1, 7, 10_000] {
                assert_eq!(mended(&call(sent.as_bytes()), piece), call(wanted.as_bytes()));
            }
        }
    }

    #[test]
    fn what_is_legal_or_not_http2_passes_as_it_is() {
        let request = b"GET http://a/ HTTP/1.1\r\nHost: http://a\r\n\r\n";
        for sent in [call(b"127.0.0.1:2379"), request.to_vec(), b"PRI * HTTP/1".to_vec()] {
            let (mut mender, mut out) = (Mender::new(), Vec::new());
            mender.feed(&sent, &mut out);
            out.extend_from_slice(&mender.held);
            assert_eq!(out, sent);
        }
    }

    #[test]
    fn a_connection_is_looked_at_no_longer_than_its_first_call_asks_for() {
        let mut mender = Mender::new();
        mender.feed(&call(b"127.0.0.1:2379"), &mut Vec::new());
        assert_eq!(mender.state, State::Open);
        let mut mender = Mender::new();
        mender.feed(&call(b"http://a"), &mut Vec::new());
        assert_eq!(mender.state, State::Frames(0));
    }

    #[test]
    fn compressed_strings_are_read_as_the_standard_shows_them() {
        let hex = |text: &str| -> Vec<u8> {
            let digits = text.as_bytes().chunks(2).map(|two| std::str::from_utf8(two).unwrap());
            digits.map(|two| u8::from_str_radix(two, 16).unwrap()).collect()
        };
        for (compressed, text) in [
            ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),
            ("a8eb10649cbf", "no-cache"),
            ("d07abe941054d444a8200595040b8166e082a62d1bff", "Mon, 21 Oct 2013 20:13:21 GMT"),
            ("9d29ad171863c78f0b97c8e9ae82ae43d3", "https://www.example.com"),
            (
                "94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
                "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
            ),
        ] {
            assert_eq!(expand(&hex(compressed)).as_deref(), Some(text.as_bytes()), "{text}");
        }
        assert_eq!(expand(&[0xff, 0xff, 0xff, 0xff]), None, "the end is not a character");
    }
}
