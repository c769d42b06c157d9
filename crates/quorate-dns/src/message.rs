//! Messages: what is read of a query, and what of an answer fits.
//!
//! The additionals are left out first, then answers from the end. TC says that an answer is
//! missing, and nothing else; over TCP there is no other way to ask, and so no TC. At least one
//! answer stays, unless it alone is too large.

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Header, HeaderCounts, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder};

use crate::answer::{Answer, Question};

/// The most of an answer by UDP, whatever the query allows: it crosses most networks in one piece
/// (DNS flag day 2020).
pub const UDP_MAX: u16 = 1_232;
/// Without EDNS (RFC 1035, section 4.2.1).
const UDP_PLAIN: u16 = 512;

const HEADER: usize = 12;
/// An OPT record without options.
const OPT: usize = 11;
/// Additionals of a query: EDNS, and a signature that nobody looks at.
const ADDITIONALS_MAX: u16 = 2;

/// How an answer goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// In one datagram.
    Udp,
    /// In a message over TCP.
    Tcp,
}

/// A query.
#[derive(Debug, Clone)]
pub struct Query {
    header: Metadata,
    /// As it came.
    question_bytes: Vec<u8>,
    question: Question,
    /// What it says of EDNS: the largest datagram, and the version.
    edns: Option<(u16, u8)>,
}

/// What is no query, and what it gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// Nothing: it is an answer itself, or nobody knows whose.
    Silently,
    /// This message.
    With(Vec<u8>, ResponseCode),
}

impl Query {
    /// Reads a message.
    ///
    /// # Errors
    /// It is no query with one question.
    pub fn read(bytes: &[u8]) -> Result<Self, Refused> {
        let mut decoder = BinDecoder::new(bytes);
        let header = Header::read(&mut decoder).map_err(|_| Refused::Silently)?;
        let (metadata, counts) = (header.metadata, header.counts);
        if metadata.message_type == MessageType::Response {
            return Err(Refused::Silently);
        }
        let refused = |code| Refused::With(bare(&metadata, code), code);
        if metadata.op_code != OpCode::Query {
            return Err(refused(ResponseCode::NotImp));
        }
        let malformed = || refused(ResponseCode::FormErr);
        if counts.queries != 1 || counts.answers > 0 || counts.additionals > ADDITIONALS_MAX {
            return Err(malformed());
        }
        let name = Name::read(&mut decoder).map_err(|_| malformed())?;
        let kind = RecordType::read(&mut decoder).map_err(|_| malformed())?;
        let class = DNSClass::read(&mut decoder).map_err(|_| malformed())?;
        let question_bytes = bytes.get(HEADER..decoder.index()).ok_or_else(malformed)?.to_vec();
        // A name that points elsewhere could be longer in the answer than in the query.
        let spelled = name.iter().map(|label| label.len() + 1).sum::<usize>() + 1;
        if question_bytes.len() != spelled + 4 {
            return Err(malformed());
        }
        let others = usize::from(counts.authorities) + usize::from(counts.additionals);
        let mut edns = None;
        for _ in 0..others.min(16) {
            let record = Record::read(&mut decoder).map_err(|_| malformed())?;
            if record.record_type() == RecordType::OPT {
                let version = (record.ttl >> 16) as u8;
                let found = (u16::from(record.dns_class), version);
                if edns.replace(found).is_some() {
                    return Err(malformed());
                }
            }
        }
        let question = Question { name, kind, class };
        Ok(Self { header: metadata, question_bytes, question, edns })
    }

    /// What is asked.
    pub fn question(&self) -> &Question {
        &self.question
    }

    /// Whether it speaks a version of EDNS that there is not yet.
    pub fn is_newer(&self) -> bool {
        self.edns.is_some_and(|(_, version)| version > 0)
    }

    /// What the whole answer may take, bytes.
    pub fn room(&self, room: Room) -> usize {
        let asked = self.edns.map_or(UDP_PLAIN, |(size, _)| size);
        usize::from(match room {
            Room::Udp => asked.clamp(UDP_PLAIN, UDP_MAX),
            Room::Tcp => u16::MAX,
        })
    }

    /// Says only that the answer is to be had by TCP.
    pub fn write_truncated(&self) -> Vec<u8> {
        self.written(&Answer::code(ResponseCode::NoError), HEADER, Room::Udp)
    }

    /// The message with as much of the answer as there is room for, and whether one of the answers
    /// is missing.
    pub fn write(&self, answer: &Answer, room: Room) -> (Vec<u8>, bool) {
        let bytes = self.written(answer, self.room(room), room);
        let told = u16::from_be_bytes([bytes[6], bytes[7]]);
        (bytes, usize::from(told) < answer.answers.len())
    }

    fn written(&self, answer: &Answer, most: usize, room: Room) -> Vec<u8> {
        let code = if self.is_newer() { ResponseCode::BADVERS } else { answer.code };
        let opt = if self.edns.is_some() { OPT } else { 0 };
        let mut bytes = Vec::with_capacity(512);
        let mut encoder = BinEncoder::new(&mut bytes);
        let mut counts = HeaderCounts { queries: 1, ..HeaderCounts::default() };
        let mut header = reply(&self.header, code);
        header.authoritative = answer.authoritative;
        let fits = "invariant: a header and a question fit into any message";
        Header { metadata: header, counts }.emit(&mut encoder).expect(fits);
        // The name again, not its bytes: the encoder then knows where it stands.
        self.question.name.emit(&mut encoder).expect(fits);
        encoder.emit_vec(&self.question_bytes[self.question_bytes.len() - 4..]).expect(fits);
        let (asked, full) = (&self.question.name, most.saturating_sub(opt));
        counts.answers = emit(&mut encoder, &answer.answers, asked, full);
        let missing = usize::from(counts.answers) < answer.answers.len();
        if !missing {
            counts.authorities = emit(&mut encoder, &answer.authority, asked, full);
            counts.additionals = emit(&mut encoder, &answer.additionals, asked, full);
        }
        if self.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_MAX).set_version(0).set_rcode_high(code.high());
            edns.emit(&mut encoder).expect("invariant: room was left for it");
            counts.additionals += 1;
        }
        header.truncation = room == Room::Udp && (missing || most == HEADER);
        let mut head = Vec::with_capacity(HEADER);
        let mut encoder = BinEncoder::new(&mut head);
        Header { metadata: header, counts }.emit(&mut encoder).expect(fits);
        bytes[..HEADER].copy_from_slice(&head);
        bytes
    }
}

/// Writes records until one does not fit; how many did.
fn emit(encoder: &mut BinEncoder<'_>, records: &[Record], asked: &Name, full: usize) -> u16 {
    let mut count = 0;
    for record in records {
        let before = encoder.offset();
        if emit_one(encoder, record, asked).is_err() || encoder.offset() > full {
            encoder.set_offset(before);
            encoder.trim();
            break;
        }
        count += 1;
    }
    count
}

/// The encoder shortens only the first names of a message; most records here are of the name that
/// was asked for, which stands right behind the header.
fn emit_one(encoder: &mut BinEncoder<'_>, record: &Record, asked: &Name) -> Result<(), ProtoError> {
    if !record.name.eq_case(asked) {
        return record.emit(encoder);
    }
    encoder.emit_u16(0xc000 | HEADER as u16)?;
    record.record_type().emit(encoder)?;
    record.dns_class.emit(encoder)?;
    encoder.emit_u32(record.ttl)?;
    let len = encoder.place::<u16>()?;
    record.data.emit(encoder)?;
    let data = encoder.len_since_place(&len);
    encoder.emit_at(len, u16::try_from(data).unwrap_or(u16::MAX))
}

fn reply(header: &Metadata, code: ResponseCode) -> Metadata {
    let mut reply = Metadata::response_from_request(header);
    reply.response_code = code;
    reply.recursion_available = false;
    reply.authentic_data = false;
    reply.truncation = false;
    reply.authoritative = false;
    reply
}

/// An answer without even the question: it is not longer than any query.
fn bare(header: &Metadata, code: ResponseCode) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER);
    let mut encoder = BinEncoder::new(&mut bytes);
    let header = Header { metadata: reply(header, code), counts: HeaderCounts::default() };
    header.emit(&mut encoder).expect("invariant: a header fits into any message");
    bytes
}
