//! Answers in bulk, of either peer, read where they lie: fetches and watches bring hundreds of
//! instances in a message. The driver shares the machine with the servers, so a driver that makes
//! an object of each instance would measure itself: with 64 callers of `Fetch` that took more of
//! two cores than the three servers did.

use std::marker::PhantomData;

use anyhow::{Context, Result, bail};
use bytes::{Buf, Bytes};
use http::uri::PathAndQuery;
use prost::Message;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic::{IntoStreamingRequest, Request, Status, Streaming};
use tonic_prost::{ProstCodec, ProstEncoder};

use super::{DECODE_MAX, Http2};

// Wire types.
const VARINT: u64 = 0;
const LENGTH_DELIMITED: u64 = 2;
/// The most that a number of 64 bits takes.
const VARINT_BYTES: usize = 10;

/// Sends `T`, and hands on what comes as it is.
struct BulkCodec<T>(PhantomData<T>);

struct BulkDecoder;

/// What a field of a message holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Number(u64),
    /// A text, bytes or a message.
    Bytes(&'a [u8]),
}

impl<T: Message + 'static> Codec for BulkCodec<T> {
    type Encode = T;
    type Decode = Bytes;
    type Encoder = ProstEncoder<T>;
    type Decoder = BulkDecoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, ()>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BulkDecoder
    }
}

impl Decoder for BulkDecoder {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// The answer to one call.
pub(super) async fn call<T: Message + 'static>(
    http2: &Http2,
    method: &'static str,
    request: T,
) -> Result<Bytes> {
    let mut grpc = Grpc::new(http2.clone()).max_decoding_message_size(DECODE_MAX);
    grpc.ready().await.map_err(anyhow::Error::from_boxed).context(method)?;
    let path = PathAndQuery::from_static(method);
    let answer = grpc.unary(Request::new(request), path, BulkCodec(PhantomData)).await;
    Ok(answer.context(method)?.into_inner())
}

/// The answers on a stream of calls.
pub(super) async fn stream<T: Message + 'static>(
    http2: &Http2,
    method: &'static str,
    requests: impl IntoStreamingRequest<Message = T>,
) -> Result<Streaming<Bytes>> {
    let mut grpc = Grpc::new(http2.clone()).max_decoding_message_size(DECODE_MAX);
    grpc.ready().await.map_err(anyhow::Error::from_boxed).context(method)?;
    let path = PathAndQuery::from_static(method);
    let requests = requests.into_streaming_request();
    Ok(grpc.streaming(requests, path, BulkCodec(PhantomData)).await.context(method)?.into_inner())
}

/// Visits the fields of an encoded message, in their order: the number and the value of each.
pub(super) fn walk<'a>(
    mut message: &'a [u8],
    mut visit: impl FnMut(u32, Value<'a>) -> Result<()>,
) -> Result<()> {
    while !message.is_empty() {
        let key = varint(&mut message)?;
        let value = match key & 7 {
            VARINT => Value::Number(varint(&mut message)?),
            LENGTH_DELIMITED => {
                let length = usize::try_from(varint(&mut message)?)?;
                let Some((value, rest)) = message.split_at_checked(length) else {
                    bail!("a cut message: {length} bytes are to come, there are {}", message.len());
                };
                message = rest;
                Value::Bytes(value)
            }
            other => bail!("a field of a type that no peer sends: {other}"),
        };
        visit(u32::try_from(key >> 3)?, value)?;
    }
    Ok(())
}

#[inline(always)] // called thousands of times for an answer
fn varint(message: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for (at, byte) in message.iter().enumerate().take(VARINT_BYTES) {
        value |= u64::from(byte & 0x7F) << (7 * at);
        if *byte < 0x80 {
            *message = &message[at + 1..];
            return Ok(value);
        }
    }
    bail!("a number that does not end")
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::{Instance, Service};

    use super::*;

    #[test]
    fn fields_come_with_their_numbers_and_what_is_cut_is_an_error() {
        let instance = Instance { id: "i".to_owned(), weight: 300, ..Instance::default() };
        let service = Service { instances: vec![instance.clone(); 2], ..Service::default() };
        let encoded = service.encode_to_vec();
        let (mut ids, mut numbers) = (Vec::new(), Vec::new());
        walk(&encoded, |_, value| match value {
            Value::Bytes(instance) => walk(instance, |_, value| {
                match value {
                    Value::Bytes(text) => ids.push(text),
                    Value::Number(number) => numbers.push(number),
                }
                Ok(())
            }),
            Value::Number(_) => Ok(()),
        })
        .unwrap();
        assert_eq!(ids, [b"i", b"i"]);
        assert_eq!(numbers, [300, 300]);
        for length in 1..encoded.len() {
            if length != encoded.len() / 2 {
                assert!(walk(&encoded[..length], |_, _| Ok(())).is_err(), "{length}");
            }
        }
    }
}
