//! SPDY/3.1, as far as Kubernetes' streaming protocols use it: streams that the client opens, with headers and data.
//!
//! The framing is pure; [`serve`] moves frames. There is no flow control, as no client of these protocols has it: a
//! stream that is not read holds up its connection.

use std::collections::HashMap;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;

/// The largest frame taken.
const FRAME_BYTES_MAX: usize = 4 << 20;
/// The largest block of headers, uncompressed.
const HEADER_BYTES_MAX: usize = 64 << 10;
const STREAMS_MAX: usize = 1024;
const FRAMES_QUEUED: usize = 16;
const READ_BYTES: usize = 32 << 10;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

const VERSION: u16 = 3;
const CONTROL: u8 = 0x80;
const FLAG_FIN: u8 = 1;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const REFUSED_STREAM: u32 = 3;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("SPDY: {0}")]
    Protocol(&'static str),
    #[error("SPDY connection: {0}")]
    Io(#[from] std::io::Error),
}

/// What a client says.
#[derive(Debug, PartialEq, Eq)]
enum Frame {
    Open {
        stream: u32,
        headers: Vec<(String, String)>,
        fin: bool,
    },
    Data {
        stream: u32,
        data: Bytes,
        fin: bool,
    },
    Reset {
        stream: u32,
    },
    Ping(u32),
    GoAway,
    /// What has no meaning here.
    Other,
}

/// Words of the compressor's dictionary (SPDY/3, 2.6.10.1), each after its length in four bytes.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding \
    accept-language accept-ranges age allow authorization cache-control connection content-base \
    content-encoding content-language content-length content-location content-md5 content-range \
    content-type date etag expect expires from host if-match if-modified-since if-none-match \
    if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate \
    proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200|OK version HTTP/1.1 url \
    public set-cookie keep-alive origin";
/// What follows the words.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
    404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug \
    Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch\
    charset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut out = Vec::new();
    for word in WORDS.split_ascii_whitespace() {
        let word = word.replace('|', " ");
        out.extend_from_slice(&u32::try_from(word.len()).unwrap_or(0).to_be_bytes());
        out.extend_from_slice(word.as_bytes());
    }
    out.extend_from_slice(TAIL.as_bytes());
    out
}

/// Reads frames from bytes as they come.
struct Decoder {
    buffer: BytesMut,
    inflate: Decompress,
}

impl Decoder {
    fn new() -> Self {
        Self { buffer: BytesMut::new(), inflate: Decompress::new(true) }
    }

    /// The next whole frame, if it is there.
    fn next(&mut self) -> Result<Option<Frame>, Error> {
        let Some(head) = self.buffer.get(..8) else { return Ok(None) };
        let word =
            |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (first, flags, length) = (word(0), head[4], (word(4) & 0x00ff_ffff) as usize);
        if length > FRAME_BYTES_MAX {
            return Err(Error::Protocol("frame too large"));
        }
        if self.buffer.len() < 8 + length {
            self.buffer.reserve(8 + length - self.buffer.len());
            return Ok(None);
        }
        let control = head[0] & CONTROL != 0;
        self.buffer.advance(8);
        let mut body = self.buffer.split_to(length).freeze();
        let fin = flags & FLAG_FIN != 0;
        if !control {
            return Ok(Some(Frame::Data { stream: first, data: body, fin }));
        }
        if (first >> 16) & 0x7fff != u32::from(VERSION) {
            return Err(Error::Protocol("not version 3"));
        }
        let mut number = || {
            if body.len() < 4 { Err(Error::Protocol("short frame")) } else { Ok(body.get_u32()) }
        };
        let kind = (first & 0xffff) as u16;
        Ok(Some(match kind {
            SYN_STREAM => {
                let stream = number()? & 0x7fff_ffff;
                number()?; // the stream it belongs to, which is none
                if body.len() < 2 {
                    return Err(Error::Protocol("short frame"));
                }
                body.advance(2); // priority
                Frame::Open { stream, headers: self.headers(&body)?, fin }
            }
            // Headers are decoded even if nobody wants them: the compressor's state goes on.
            8 => {
                number()?;
                self.headers(&body)?;
                Frame::Other
            }
            RST_STREAM => Frame::Reset { stream: number()? & 0x7fff_ffff },
            PING => Frame::Ping(number()?),
            GOAWAY => Frame::GoAway,
            _ => Frame::Other,
        }))
    }

    fn headers(&mut self, block: &[u8]) -> Result<Vec<(String, String)>, Error> {
        let bad = |_| Error::Protocol("headers cannot be decompressed");
        let (mut plain, mut at) = (Vec::with_capacity(HEADER_BYTES_MAX), 0);
        while at < block.len() {
            let before = self.inflate.total_in();
            let result =
                self.inflate.decompress_vec(&block[at..], &mut plain, FlushDecompress::Sync);
            let consumed = self.inflate.total_in() - before;
            at += usize::try_from(consumed).unwrap_or(0);
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate.set_dictionary(&dictionary()).map_err(bad)?;
                }
                result => {
                    result.map_err(bad)?;
                    if consumed == 0 {
                        return Err(Error::Protocol("headers too large"));
                    }
                }
            }
        }
        pairs(&plain).ok_or(Error::Protocol("malformed headers"))
    }
}

fn pairs(mut plain: &[u8]) -> Option<Vec<(String, String)>> {
    fn text(from: &mut &[u8]) -> Option<String> {
        let length = from.try_get_u32().ok()? as usize;
        let (text, rest) = from.split_at_checked(length)?;
        *from = rest;
        String::from_utf8(text.to_vec()).ok()
    }
    let count = plain.try_get_u32().ok()?;
    let mut found = Vec::new();
    for _ in 0..count {
        found.push((text(&mut plain)?, text(&mut plain)?));
    }
    Some(found)
}

fn control(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(8 + body.len());
    frame.extend_from_slice(&(0x8000 | VERSION).to_be_bytes());
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(&u32::try_from(body.len()).unwrap_or(0).to_be_bytes());
    frame.extend_from_slice(body);
    frame
}

/// A frame of data; with `fin` the last of its stream.
pub(crate) fn data(stream: u32, data: &[u8], fin: bool) -> Vec<u8> {
    let mut frame = Vec::with_capacity(8 + data.len());
    frame.extend_from_slice(&stream.to_be_bytes());
    let length = u32::try_from(data.len()).unwrap_or(0) & 0x00ff_ffff;
    frame.extend_from_slice(&((u32::from(fin) << 24) | length).to_be_bytes());
    frame.extend_from_slice(data);
    frame
}

fn reset(stream: u32, why: u32) -> Vec<u8> {
    control(RST_STREAM, &[stream.to_be_bytes(), why.to_be_bytes()].concat())
}

/// Writes the answers to opened streams, whose headers are compressed as one stream of bytes.
struct Replies {
    deflate: Compress,
}

impl Replies {
    fn new() -> Result<Self, Error> {
        let mut deflate = Compress::new(Compression::fast(), true);
        let set = deflate.set_dictionary(&dictionary());
        set.map_err(|_| Error::Protocol("no dictionary"))?;
        Ok(Self { deflate })
    }

    /// Accepts a stream, without headers.
    fn accept(&mut self, stream: u32) -> Result<Vec<u8>, Error> {
        let mut body = Vec::with_capacity(64);
        body.extend_from_slice(&stream.to_be_bytes());
        let none = 0_u32.to_be_bytes();
        let written = self.deflate.compress_vec(&none, &mut body, FlushCompress::Sync);
        written.map_err(|_| Error::Protocol("headers cannot be compressed"))?;
        Ok(control(SYN_REPLY, &body))
    }
}

/// A stream that the client has opened.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) id: u32,
    headers: Vec<(String, String)>,
    /// What the client sends, until it ends its side.
    pub(crate) input: mpsc::Receiver<Bytes>,
    /// Where frames go out.
    pub(crate) frames: mpsc::Sender<Vec<u8>>,
}

impl Stream {
    /// A header, by its name in lower case.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }
}

/// Speaks SPDY over `io` until the client goes or `handle`, which is given the streams, has ended.
pub(crate) async fn serve<S, F, R>(io: S, handle: F) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite,
    F: FnOnce(mpsc::Receiver<Stream>) -> R,
    R: Future<Output = ()>,
{
    let (mut read, mut write) = tokio::io::split(io);
    let (frames, mut outgoing) = mpsc::channel::<Vec<u8>>(FRAMES_QUEUED);
    let (opened, streams) = mpsc::channel(FRAMES_QUEUED);
    let mut writing = std::pin::pin!(async {
        while let Some(frame) = outgoing.recv().await {
            write.write_all(&frame).await?;
            if outgoing.is_empty() {
                write.flush().await?;
            }
        }
        write.write_all(&control(GOAWAY, &[0; 8])).await?;
        write.shutdown().await
    });
    {
        let reading = receive(&mut read, frames, opened);
        let handling = handle(streams);
        tokio::select! {
            end = reading => return end,
            end = &mut writing => return Ok(end?),
            () = handling => {}
        }
    }
    // With the handler gone all that is left to say is in the queue.
    match tokio::time::timeout(DRAIN_TIMEOUT, writing).await {
        Ok(written) => Ok(written?),
        Err(_) => Err(Error::Protocol("the client does not read")),
    }
}

async fn receive(
    read: &mut (impl AsyncRead + Unpin),
    frames: mpsc::Sender<Vec<u8>>,
    opened: mpsc::Sender<Stream>,
) -> Result<(), Error> {
    let (mut decoder, mut replies) = (Decoder::new(), Replies::new()?);
    let mut inputs: HashMap<u32, mpsc::Sender<Bytes>> = HashMap::new();
    let gone = |_| Error::Protocol("the session has ended");
    loop {
        while let Some(frame) = decoder.next()? {
            match frame {
                Frame::Open { stream, .. } if inputs.len() >= STREAMS_MAX => {
                    frames.send(reset(stream, REFUSED_STREAM)).await.map_err(|_| gone(()))?;
                }
                Frame::Open { stream, headers, fin } => {
                    let (sender, input) = mpsc::channel(FRAMES_QUEUED);
                    if !fin {
                        inputs.insert(stream, sender);
                    }
                    frames.send(replies.accept(stream)?).await.map_err(|_| gone(()))?;
                    let stream = Stream { id: stream, headers, input, frames: frames.clone() };
                    opened.send(stream).await.map_err(|_| gone(()))?;
                }
                Frame::Data { stream, data, fin } => {
                    // Of a stream that nobody reads any more, nothing is kept.
                    if let (Some(input), false) = (inputs.get(&stream), data.is_empty())
                        && input.send(data).await.is_err()
                    {
                        inputs.remove(&stream);
                    }
                    if fin {
                        inputs.remove(&stream);
                    }
                }
                Frame::Reset { stream } => drop(inputs.remove(&stream)),
                // What the client sent comes back; ours have even numbers, and there are none.
                Frame::Ping(id) if id % 2 == 1 => {
                    frames.send(control(PING, &id.to_be_bytes())).await.map_err(|_| gone(()))?;
                }
                Frame::GoAway | Frame::Ping(_) | Frame::Other => {}
            }
        }
        decoder.buffer.reserve(READ_BYTES);
        if read.read_buf(&mut decoder.buffer).await? == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client's opening of a stream, as its compressor writes it.
    fn open(deflate: &mut Compress, stream: u32, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = u32::try_from(headers.len()).unwrap().to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(key, value)| [key, value]) {
            plain.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
            plain.extend_from_slice(text.as_bytes());
        }
        let mut body = [stream.to_be_bytes(), [0; 4]].concat();
        body.extend_from_slice(&[0, 0]);
        body.reserve(1024);
        deflate.compress_vec(&plain, &mut body, FlushCompress::Sync).unwrap();
        control(SYN_STREAM, &body)
    }

    fn deflate() -> Compress {
        let mut deflate = Compress::new(Compression::best(), true);
        deflate.set_dictionary(&dictionary()).unwrap();
        deflate
    }

    #[test]
    fn the_dictionary_is_that_of_the_specification() {
        let dictionary = dictionary();
        assert_eq!(dictionary.len(), 1423);
        // Its Adler-32 stands in every stream that was compressed with it.
        let mut out = Vec::with_capacity(64);
        deflate().compress_vec(b"x", &mut out, FlushCompress::Sync).unwrap();
        assert_eq!(out[2..6], [0xe3, 0xc6, 0xa7, 0xc2]);
    }

    #[test]
    fn frames_are_read_however_they_are_cut() {
        let mut deflate = deflate();
        let mut bytes = open(&mut deflate, 1, &[("streamtype", "error"), ("port", "80")]);
        bytes.extend(open(&mut deflate, 3, &[("streamtype", "data"), ("port", "80")]));
        bytes.extend(data(3, b"hello", true));
        bytes.extend(control(PING, &7_u32.to_be_bytes()));
        let headers = |kind: &str| {
            vec![("streamtype".to_owned(), kind.to_owned()), ("port".to_owned(), "80".to_owned())]
        };
        let want = [
            Frame::Open { stream: 1, headers: headers("error"), fin: false },
            Frame::Open { stream: 3, headers: headers("data"), fin: false },
            Frame::Data { stream: 3, data: Bytes::from_static(b"hello"), fin: true },
            Frame::Ping(7),
        ];
        for size in [1, 7, bytes.len()] {
            let (mut decoder, mut found) = (Decoder::new(), Vec::new());
            for piece in bytes.chunks(size) {
                decoder.buffer.extend_from_slice(piece);
                while let Some(frame) = decoder.next().unwrap() {
                    found.push(frame);
                }
            }
            assert_eq!(found, want);
        }
    }

    #[test]
    fn nonsense_is_an_error_and_not_a_panic() {
        for bytes in [
            vec![0x80, 2, 0, 1, 0, 0, 0, 0],                   // version 2
            vec![0x80, 3, 0, 1, 0, 0, 0, 2, 0, 0],             // too short for its kind
            vec![0, 0, 0, 1, 0, 0xff, 0xff, 0xff],             // too large
            control(SYN_STREAM, b"\0\0\0\x01\0\0\0\0\0\0xyz"), // not compressed
        ] {
            let mut decoder = Decoder::new();
            decoder.buffer.extend_from_slice(&bytes);
            assert!(decoder.next().is_err(), "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn a_stream_is_accepted_and_echoed_to_its_end() {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let server = serve(near, async |mut streams: mpsc::Receiver<Stream>| {
            let Some(mut stream) = streams.recv().await else { return };
            assert_eq!(stream.header("streamtype"), "data");
            while let Some(bytes) = stream.input.recv().await {
                stream.frames.send(data(stream.id, &bytes, false)).await.unwrap();
            }
            stream.frames.send(data(stream.id, b"", true)).await.unwrap();
        });
        let client = async {
            let mut bytes = open(&mut deflate(), 1, &[("streamtype", "data")]);
            bytes.extend(data(1, b"ab", false));
            bytes.extend(data(1, b"c", true));
            far.write_all(&bytes).await.unwrap();
            let mut answer = Vec::new();
            far.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let (served, answer) = tokio::join!(server, client);
        served.unwrap();
        assert_eq!(answer[..4], [0x80, 3, 0, 2], "a reply comes first");
        let rest = [data(1, b"ab", false), data(1, b"c", false), data(1, b"", true)].concat();
        let rest = [rest, control(GOAWAY, &[0; 8])].concat();
        assert!(answer.ends_with(&rest), "{answer:?}");
    }
}
