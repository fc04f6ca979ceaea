//! Length-prefixed protobuf messages: `length: u32 BE, message`. The control stream is a run of them; a relay
//! begins with one each way.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

/// The length prefix, in bytes.
pub const PREFIX_LEN: usize = 4;

/// A message that breaks the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Longer than allowed here. Said before a byte of it is kept.
    #[error("a message of {length} bytes: at most {limit} are allowed")]
    TooLong {
        /// What the prefix said.
        length: usize,
        /// What is allowed.
        limit: usize,
    },
    /// Not the protobuf that was expected.
    #[error("a message that does not decode: {0}")]
    Malformed(String),
    /// The stream ended in the middle of a message.
    #[error("the stream ended in the middle of a message")]
    Truncated,
}

/// The message with its prefix.
pub fn encode(message: &impl Message, limit: usize) -> Result<Bytes, MessageError> {
    let length = message.encoded_len();
    if length > limit {
        return Err(MessageError::TooLong { length, limit });
    }
    let mut out = BytesMut::with_capacity(PREFIX_LEN + length);
    out.put_u32(length as u32);
    message.encode_raw(&mut out);
    Ok(out.freeze())
}

/// Takes the next message off the front of `buffer`; `None`: it is not all there yet.
pub fn decode<M: Message + Default>(buffer: &mut BytesMut, limit: usize) -> Result<Option<M>, MessageError> {
    let Some(prefix) = buffer.first_chunk::<PREFIX_LEN>() else { return Ok(None) };
    let length = u32::from_be_bytes(*prefix) as usize;
    if length > limit {
        return Err(MessageError::TooLong { length, limit });
    }
    if buffer.len() < PREFIX_LEN + length {
        return Ok(None);
    }
    buffer.advance(PREFIX_LEN);
    let bytes = buffer.split_to(length).freeze();
    M::decode(bytes).map(Some).map_err(|error| MessageError::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{control::Heartbeat, limits::MAX_MESSAGE};

    #[test]
    fn messages_come_out_as_they_went_in_however_the_bytes_arrive() {
        let first = Heartbeat { seq: 1, echo: false };
        let second = Heartbeat { seq: u64::MAX, echo: true };
        let stream = [encode(&first, MAX_MESSAGE).unwrap(), encode(&second, MAX_MESSAGE).unwrap()].concat();
        let (mut buffer, mut got) = (BytesMut::new(), Vec::<Heartbeat>::new());
        for byte in stream {
            buffer.put_u8(byte);
            while let Some(message) = decode(&mut buffer, MAX_MESSAGE).unwrap() {
                got.push(message);
            }
        }
        assert_eq!(got, [first, second]);
        assert!(buffer.is_empty());
    }

    #[test]
    fn an_oversized_message_is_refused_by_its_prefix_alone() {
        let mut buffer = BytesMut::from(&0xffff_ffffu32.to_be_bytes()[..]);
        let error = decode::<Heartbeat>(&mut buffer, MAX_MESSAGE).unwrap_err();
        assert_eq!(error, MessageError::TooLong { length: 0xffff_ffff, limit: MAX_MESSAGE });
        assert!(encode(&Heartbeat { seq: u64::MAX, echo: true }, 3).is_err());
    }
}
