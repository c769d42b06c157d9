//! What a client sends, looked at before the HTTP/2 library sees it: calls are let in whose
//! `:authority` is none, and frames that ask for nothing are held back.
//!
//! The authority: a gRPC client with several addresses (`ipv4:a:1,b:2`) sends all of them as the
//! authority of each call, and the HTTP/2 library resets a stream whose authority it cannot parse.
//! Nothing here asks for the authority: what a client sends for it is overwritten, at the same
//! length, before the library sees it.
//!
//! Frames that ask for nothing: the library takes all that has arrived before it lets another
//! connection's task run, and tens of thousands of 9-byte SETTINGS arrive at once (a flood of them
//! held up the renewals of others for two seconds, in a debug build). So a connection that sends
//! many such frames waits for the others after each read, and no more of them are read than a
//! client can need (CVE-2019-9512, -9515, -9518): the rest waits with its sender, whose buffers are
//! full. WINDOW_UPDATE is one of them where it answers nothing that was sent (a flood of these made
//! the renewals of others take 2.5 times as long).
//!
//! Knows as much of HTTP/2 (RFC 9113) and HPACK (RFC 7541) as it takes to find the value and to
//! count frames. What is malformed stays so, for the library to refuse.

mod wasted;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep_until};
use tonic::transport::server::Connected;

use self::wasted::Wasted;

/// A client's connection on which every authority is a valid one.
pub(crate) struct AnyAuthority<S> {
    stream: S,
    frames: Frames,
    /// The next read lets other tasks run first.
    yields: bool,
    wasted: Wasted,
    /// Nothing is read before it is over.
    pause: Option<Pin<Box<Sleep>>>,
}

impl<S> AnyAuthority<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            frames: Frames::default(),
            yields: false,
            wasted: Wasted::default(),
            pause: None,
        }
    }
}

/// With this many frames that carry no part of a call in one read, other tasks run before the next.
const YIELD_AFTER: u32 = 64;
/// What every connection begins with (RFC 9113, section 3.4): bytes.
const PREFACE: usize = 24;
/// A frame's head: length, type, flags, stream.
const HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY_FRAME: u8 = 2;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
/// In DATA, the last one of its stream; in SETTINGS and PING, an answer to ours.
const END_STREAM_OR_ACK: u8 = 0x01;
const PADDED: u8 = 0x08;
const PRIORITY: u8 = 0x20;
/// Dependency and weight, where a frame has `PRIORITY`: bytes.
const PRIORITY_BYTES: usize = 5;

/// Where in the stream of frames the next byte stands.
#[derive(Debug, Default)]
struct Frames {
    preface: usize,
    head: [u8; HEAD],
    head_read: usize,
    payload_left: usize,
    /// Whether the payload has (a part of) a block of headers.
    headers: bool,
    /// The length of the padding is yet to come.
    padding_follows: bool,
    padding: usize,
    priority_left: usize,
    block: Block,
    /// Frames that carry no part of a call, since they were looked at last.
    control: u32,
    /// Of these, the ones that no client needs often.
    wasted: u32,
    updates: u32,
}

impl Frames {
    fn pass(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let left = match (self.preface < PREFACE, self.head_read < HEAD) {
                (true, _) => PREFACE - self.preface,
                (false, true) => HEAD - self.head_read,
                (false, false) => self.payload_left,
            };
            let (part, rest) = bytes.split_at_mut(left.min(bytes.len()));
            bytes = rest;
            if self.preface < PREFACE {
                self.preface += part.len();
            } else if self.head_read < HEAD {
                self.head[self.head_read..][..part.len()].copy_from_slice(part);
                self.head_read += part.len();
                if self.head_read == HEAD {
                    self.begin();
                }
            } else if self.headers {
                self.pass_headers(part);
            } else {
                self.payload_left -= part.len();
            }
            if self.head_read == HEAD && self.payload_left == 0 {
                self.head_read = 0;
            }
        }
    }

    fn begin(&mut self) {
        let [high, middle, low, kind, flags, ..] = self.head;
        self.payload_left = u32::from_be_bytes([0, high, middle, low]) as usize;
        self.headers = kind == HEADERS || kind == CONTINUATION;
        let is_last_or_ack = flags & END_STREAM_OR_ACK != 0;
        self.wasted += u32::from(match kind {
            DATA => self.payload_left == 0 && !is_last_or_ack,
            SETTINGS | PING => !is_last_or_ack,
            PRIORITY_FRAME => true,
            _ => false,
        });
        self.updates += u32::from(kind == WINDOW_UPDATE);
        self.control += u32::from(kind != HEADERS && (kind != DATA || self.payload_left == 0));
        let (padded, priority) = match kind {
            HEADERS => (flags & PADDED != 0, flags & PRIORITY != 0),
            _ => (false, false),
        };
        self.padding_follows = padded;
        self.padding = 0;
        self.priority_left = if priority { PRIORITY_BYTES } else { 0 };
        if kind == HEADERS {
            self.block = Block::default();
        }
    }

    fn pass_headers(&mut self, part: &mut [u8]) {
        for byte in part {
            self.payload_left -= 1;
            if self.padding_follows {
                self.padding_follows = false;
                self.padding = usize::from(*byte);
            } else if self.priority_left > 0 {
                self.priority_left -= 1;
            } else if self.payload_left >= self.padding {
                self.block.pass(byte);
            }
        }
    }
}

/// The name, as it stands in a block of headers and in Huffman's code. Its place in the static
/// table is 1.
const NAME: &[u8] = b":authority";
const NAME_IN_CODE: &[u8] = &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];
const STATIC_PLACE: u64 = 1;

/// What a value is overwritten with: x, and in Huffman's code X, whose code is 8 bits long. So the
/// value gets no longer than it was, and the table of values that both sides keep evicts nothing
/// that the client still counts on.
const FILLER: u8 = b'x';
const FILLER_IN_CODE: u8 = 0xfc;

/// What the next byte of a block of headers belongs to (RFC 7541, sections 5 and 6).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Representation,
    NameLength,
    Name,
    ValueLength,
    Value,
}

#[derive(Debug, Default)]
struct Block {
    part: Part,
    /// A number that is being read, or the length of the text that is.
    number: u64,
    shift: Option<u32>,
    /// A value follows the name.
    literal: bool,
    in_code: bool,
    authority: bool,
    /// Bytes of the text until now.
    at: u64,
}

impl Block {
    fn pass(&mut self, byte: &mut u8) {
        match self.part {
            Part::Representation => {
                let bits = match *byte {
                    _ if self.shift.is_some() => 0,
                    0x80.. => 7,
                    0x40.. => 6,
                    0x20.. => 5,
                    _ => 4,
                };
                if self.shift.is_none() {
                    self.literal = matches!(bits, 6 | 4);
                }
                if self.number(*byte, bits) && self.literal {
                    self.authority = self.number == STATIC_PLACE;
                    self.part = if self.number == 0 { Part::NameLength } else { Part::ValueLength };
                }
            }
            Part::NameLength | Part::ValueLength => {
                if self.shift.is_none() {
                    self.in_code = *byte & 0x80 != 0;
                }
                if self.number(*byte, 7) {
                    self.at = 0;
                    let name = self.part == Part::NameLength;
                    self.authority |= name;
                    self.part = if name { Part::Name } else { Part::Value };
                    self.end_text();
                }
            }
            Part::Name => {
                let expected = if self.in_code { NAME_IN_CODE } else { NAME };
                let fits = expected.get(self.at as usize) == Some(byte);
                self.authority &= fits && self.number == expected.len() as u64;
                self.at += 1;
                self.end_text();
            }
            Part::Value => {
                if self.authority {
                    *byte = if self.in_code { FILLER_IN_CODE } else { FILLER };
                }
                self.at += 1;
                self.end_text();
            }
        }
    }

    fn end_text(&mut self) {
        if self.at < self.number {
            return;
        }
        if self.part == Part::Name {
            self.authority &= self.number > 0;
            self.part = Part::ValueLength;
        } else {
            self.part = Part::Representation;
        }
    }

    /// Takes one byte of a number whose first byte has `bits` bits of it; true: it was the last
    /// one.
    fn number(&mut self, byte: u8, bits: u32) -> bool {
        match self.shift {
            None => {
                let most = (1 << bits) - 1;
                self.number = u64::from(byte) & most;
                if self.number < most {
                    return true;
                }
                self.shift = Some(0);
                false
            }
            Some(shift) => {
                // The library refuses longer ones.
                let part = u64::from(byte & 0x7f) << shift.min(28);
                self.number = self.number.saturating_add(part);
                let last = byte & 0x80 == 0;
                self.shift = if last { None } else { Some(shift + 7) };
                last
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AnyAuthority<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.yields) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, into);
        self.frames.pass(&mut into.filled_mut()[before..]);
        let updates = std::mem::take(&mut self.frames.updates);
        let wasted = std::mem::take(&mut self.frames.wasted) + self.wasted.unasked(updates);
        self.yields = std::mem::take(&mut self.frames.control) > YIELD_AFTER;
        self.pause = self.wasted.add(wasted).map(|until| Box::pin(sleep_until(until)));
        read
    }
}

impl<S> AnyAuthority<S> {
    fn count_sent(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.wasted.sent(*bytes);
        }
        written
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AnyAuthority<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.count_sent(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.count_sent(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl<S: Connected> Connected for AnyAuthority<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> S::ConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        frame.extend(payload);
        frame
    }

    fn text(text: &[u8], in_code: bool) -> Vec<u8> {
        let mark = if in_code { 0x80 } else { 0 };
        let mut bytes = match text.len() {
            short @ 0..127 => vec![mark | short as u8],
            long => vec![mark | 127, (long - 127) as u8],
        };
        bytes.extend(text);
        bytes
    }

    /// A connection's bytes with these authorities, and the same with them overwritten. The parts
    /// in between look like authorities and are none.
    fn connection(values: [&[u8]; 4]) -> Vec<u8> {
        let [by_place, by_name, in_code, continued] = values;
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(4, 0, b""));
        bytes.extend(frame(0, 0, b"\x41\x03a,b and other data"));
        let mut block = vec![0x83, 0x3f, 0xe1, 0x1f, 0x41];
        block.extend(text(by_place, false));
        block.extend([0x40]);
        block.extend(text(b":authoritx", false));
        block.extend(text(b"a,b", false));
        block.extend([0x7f, 0x05]);
        block.extend(text(b"a,b", false));
        let mut padded = vec![3, 0, 0, 0, 0, 16];
        padded.extend(block);
        padded.extend([0x41, 0x02, b',']);
        bytes.extend(frame(1, 0x04 | PADDED | PRIORITY, &padded));
        let mut block = vec![0x40];
        block.extend(text(NAME, false));
        block.extend(text(by_name, false));
        block.extend([0x00]);
        block.extend(text(NAME_IN_CODE, true));
        block.extend(text(in_code, true));
        block.extend([0x11]);
        block.extend(text(continued, false));
        let cut = block.len() - continued.len() / 2;
        bytes.extend(frame(1, 0, &block[..cut]));
        bytes.extend(frame(9, 0x04, &block[cut..]));
        bytes.extend(frame(0, 1, b"\x41\x03a,b"));
        bytes
    }

    #[test]
    fn every_authority_is_overwritten_wherever_reads_end_and_nothing_else_is() {
        let long = [b','; 200];
        let received = connection([b"a:1,b:2", &long, b"\xff\xf5\x07", b"%2C%2C"]);
        let long = [b'x'; 200];
        let expected = connection([b"xxxxxxx", &long, b"\xfc\xfc\xfc", b"xxxxxx"]);
        for step in 1..received.len() {
            let mut bytes = received.clone();
            let mut frames = Frames::default();
            for part in bytes.chunks_mut(step) {
                frames.pass(part);
            }
            assert!(bytes == expected, "read {step} at a time");
        }
    }

    #[test]
    fn frames_that_ask_for_nothing_are_counted() {
        for (kind, flags, payload, counted) in [
            (SETTINGS, 0, &b""[..], (1, 1)),
            (SETTINGS, END_STREAM_OR_ACK, b"", (1, 0)),
            (PING, 0, b"12345678", (1, 1)),
            (PING, END_STREAM_OR_ACK, b"12345678", (1, 0)),
            (PRIORITY_FRAME, 0, b"12345", (1, 1)),
            (DATA, 0, b"", (1, 1)),
            (DATA, END_STREAM_OR_ACK, b"", (1, 0)),
            (DATA, 0, b"a call's", (0, 0)),
            (HEADERS, 4, b"\x83", (0, 0)),
            (CONTINUATION, 4, b"\x83", (1, 0)),
        ] {
            let mut frames = Frames { preface: PREFACE, ..Frames::default() };
            frames.pass(&mut frame(kind, flags, payload));
            assert_eq!((frames.control, frames.wasted), counted, "{kind} {flags}");
        }
    }

    #[test]
    fn numbers_without_end_are_left_to_the_library() {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(1, 4, &[0xff; 300]));
        let mut passed = bytes.clone();
        Frames::default().pass(&mut passed);
        assert!(passed == bytes);
    }
}
