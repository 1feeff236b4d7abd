//! The next packet of what came in. A PUBLISH that nobody can use is passed over: what is wrong in it a client wrote and
//! the broker forwarded, and no client is to end the connection of another one, or to fill its memory.

use std::ops::Range;

use bytes::BytesMut;
use rumqttc::v5::mqttbytes::{
    Error as CodecError,
    v5::{Packet, Publish, check},
};

/// Properties of one PUBLISH that are taken, in bytes on the wire. An empty one has five bytes there and fifty in memory,
/// so that no limit for packets bounds them; the two that MCP wants need a hundred.
pub const MAX_PROPERTY_BYTES: usize = 64 << 10;

/// What came.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one at a time, and a box would be an allocation for each packet"
)]
pub(super) enum Incoming {
    Packet(Packet),
    /// A PUBLISH that is passed over.
    Unusable {
        /// Its packet id, when it has to be acknowledged.
        id: Option<u16>,
        topic: String,
        why: Unusable,
        detail: String,
    },
}

/// Why a message that arrived is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    /// It has more than [`MAX_PROPERTY_BYTES`] of properties.
    Properties,
    /// Its topic or a property is not what MQTT allows: most likely a string that is not UTF-8.
    Malformed,
}

impl Unusable {
    /// For a metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Properties => "properties-too-large",
            Self::Malformed => "malformed-packet",
        }
    }
}

/// Takes the next packet out of the input, if it is whole.
///
/// # Errors
/// It is larger than `max`, or no packet; [`CodecError::InsufficientBytes`] when more has to come.
pub(super) fn take(input: &mut BytesMut, max: u32) -> Result<Incoming, CodecError> {
    let header = check(input.iter(), Some(max))?;
    let Some(envelope) = Envelope::of(&input[..header.frame_length()]) else {
        return Packet::read(input, Some(max)).map(Incoming::Packet);
    };
    let frame = input.split_to(header.frame_length()).freeze();
    let unusable = |why, detail| Incoming::Unusable {
        id: envelope.id,
        topic: String::from_utf8_lossy(&frame[envelope.topic.clone()]).into_owned(),
        why,
        detail,
    };
    if envelope.property_bytes > MAX_PROPERTY_BYTES {
        let detail = format!("{} bytes of properties", envelope.property_bytes);
        return Ok(unusable(Unusable::Properties, detail));
    }
    Ok(match Publish::read(header, frame.clone()) {
        Ok(publish) => Incoming::Packet(Packet::Publish(publish)),
        Err(error) => unusable(Unusable::Malformed, error.to_string()),
    })
}

/// What has to be known of a PUBLISH at QoS 0 or 1 to pass it over. All of it the broker writes itself: where this much
/// cannot be read, the broker breaks the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Where in the frame the topic stands.
    pub topic: Range<usize>,
    /// The packet id, at QoS 1.
    pub id: Option<u16>,
    /// How long the properties say they are; 0 where they do not say it.
    pub property_bytes: usize,
}

impl Envelope {
    /// Of a whole packet. None: it is no PUBLISH, one at another QoS, or its frame is broken.
    pub fn of(frame: &[u8]) -> Option<Self> {
        let (&first, rest) = frame.split_first()?;
        let has_id = match first {
            // The other bits are DUP and RETAIN.
            _ if first & 0xF0 != 0x30 => return None,
            _ if first & 0b0110 == 0b0000 => false,
            _ if first & 0b0110 == 0b0010 => true,
            _ => return None,
        };
        let (_, rest) = variable(rest)?;
        let (length, rest) = rest.split_first_chunk()?;
        let length = usize::from(u16::from_be_bytes(*length));
        let start = frame.len() - rest.len();
        let mut rest = rest.get(length..)?;
        let mut id = None;
        if has_id {
            let (bytes, after) = rest.split_first_chunk()?;
            id = Some(u16::from_be_bytes(*bytes)).filter(|id| *id > 0);
            id?;
            rest = after;
        }
        let property_bytes = variable(rest).map_or(0, |(length, _)| length);
        Some(Self { topic: start..start + length, id, property_bytes })
    }
}

/// A variable byte integer, of four bytes at most, and what follows it.
fn variable(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0;
    for (place, byte) in bytes.iter().enumerate().take(4) {
        value |= usize::from(byte & 0x7F) << (7 * place);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[place + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::mqtt::{Publication, Qos, packet};

    const MAX: u32 = 1 << 20;

    fn written(topic: &str, id: Option<u16>, properties: Vec<(String, String)>, payload: &[u8]) -> BytesMut {
        let qos = if id.is_some() { Qos::AtLeastOnce } else { Qos::AtMostOnce };
        let payload = Bytes::copy_from_slice(payload);
        let publication =
            Publication { user_properties: properties, ..Publication::new(topic, payload, qos) };
        let mut frame = BytesMut::new();
        packet::write_publish(publication, qos, id.unwrap_or_default(), &mut frame)
            .expect("it can be written");
        frame
    }

    /// Takes all there is: how many packets, and which of them are passed over.
    fn take_all(input: &mut BytesMut) -> (usize, Vec<(Option<u16>, Unusable)>) {
        let (mut packets, mut unusable) = (0, Vec::new());
        while let Ok(incoming) = take(input, MAX) {
            match incoming {
                Incoming::Packet(_) => packets += 1,
                Incoming::Unusable { id, why, .. } => unusable.push((id, why)),
            }
        }
        (packets, unusable)
    }

    proptest! {
        #[test]
        fn the_envelope_of_a_publish_is_what_was_written(
            topic in "[a-zä/]{1,300}",
            id in proptest::option::of(1_u16..),
            properties in proptest::collection::vec(("[a-z]{0,20}", "[a-z]{0,200}"), 0..20),
            payload in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let property_bytes = properties.iter().map(|(name, value)| 5 + name.len() + value.len()).sum();
            let frame = written(&topic, id, properties, &payload);
            let envelope = Envelope::of(&frame).expect("it is one");
            prop_assert_eq!(&frame[envelope.topic.clone()], topic.as_bytes());
            prop_assert_eq!((envelope.id, envelope.property_bytes), (id, property_bytes));
        }

        #[test]
        fn any_bytes_are_taken_without_a_panic_and_never_beyond_the_frame(
            head in prop_oneof![Just(0x30_u8), Just(0x32), Just(0x3B), any::<u8>()],
            body in proptest::collection::vec(any::<u8>(), 0..100),
            cut in any::<prop::sample::Index>(),
        ) {
            let _ = Envelope::of(&body);
            let mut frame = BytesMut::from(&[head, u8::try_from(body.len()).expect("short")][..]);
            frame.extend_from_slice(&body);
            let _ = Envelope::of(&frame[..cut.index(frame.len())]);
            let rest = b"what follows";
            let mut input = frame.clone();
            input.extend_from_slice(rest);
            if take(&mut input, MAX).is_ok() {
                prop_assert_eq!(&input[..], &rest[..]);
            }
        }

        #[test]
        fn a_publish_with_other_bytes_in_it_is_passed_over_as_what_it_is_or_read_as_the_codec_reads_it(
            id in proptest::option::of(1_u16..),
            at in any::<prop::sample::Index>(),
            byte: u8,
        ) {
            let properties = vec![("name".to_owned(), "value".to_owned())];
            let mut frame = written("topic", id, properties, b"payload");
            // Type, QoS and length stay as they are.
            let at = 2 + at.index(frame.len() - 2);
            frame[at] = byte;
            let envelope = Envelope::of(&frame);
            let read = Packet::read(&mut frame.clone(), Some(MAX));
            match (take(&mut frame, MAX), envelope) {
                (Ok(Incoming::Packet(packet)), Some(envelope)) => {
                    let Packet::Publish(publish) = &packet else { panic!("{packet:?}") };
                    prop_assert_eq!(publish.pkid, envelope.id.unwrap_or_default());
                    prop_assert_eq!(publish.topic.len(), envelope.topic.len());
                    prop_assert_eq!(packet, read.expect("the codec reads it, too"));
                }
                (Ok(Incoming::Unusable { id, .. }), Some(envelope)) => prop_assert_eq!(id, envelope.id),
                (Err(_), None) => prop_assert!(read.is_err()),
                (taken, envelope) => panic!("{taken:?} {envelope:?}"),
            }
        }
    }

    #[test]
    fn properties_are_bounded_and_what_follows_is_read() {
        let empty = |bytes: usize| vec![(String::new(), String::new()); bytes / 5];
        let mut input = BytesMut::new();
        for (id, bytes) in [(None, MAX_PROPERTY_BYTES), (Some(7), MAX_PROPERTY_BYTES + 5), (None, 1 << 19)] {
            input.extend_from_slice(&written("t", id, empty(bytes), b"x"));
        }
        input.extend_from_slice(&written("t", None, Vec::new(), &vec![b'x'; 2 * MAX_PROPERTY_BYTES]));
        let expected = vec![(Some(7), Unusable::Properties), (None, Unusable::Properties)];
        assert_eq!(take_all(&mut input), (2, expected));
        assert!(input.is_empty());
    }

    #[test]
    fn what_a_client_wrote_is_passed_over_and_what_the_broker_broke_is_an_error() {
        // After the head: length, "t", the packet id 0x0102, then what is told here.
        let table: [(&str, u8, &[u8], Option<Unusable>); 8] = [
            ("user property", 0x30, b"\0\x01t\x06\x26\0\x01\xFF\0\0", Some(Unusable::Malformed)),
            ("at QoS 1", 0x32, b"\0\x01t\x01\x02\x06\x26\0\x01\xFF\0\0", Some(Unusable::Malformed)),
            ("content type", 0x31, b"\0\x01t\x04\x03\0\x01\xFF", Some(Unusable::Malformed)),
            ("unknown property", 0x30, b"\0\x01t\x01\x7F", Some(Unusable::Malformed)),
            ("no properties at all", 0x32, b"\0\x01t\x01\x02", Some(Unusable::Malformed)),
            ("packet id 0", 0x32, b"\0\x01t\0\0\0", None),
            ("topic beyond the frame", 0x30, b"\0\x09t\0", None),
            ("QoS 3", 0x36, b"\0\x01t\x01\x02\0", None),
        ];
        for (what, head, body, expected) in table {
            let mut input = BytesMut::from(&[head, u8::try_from(body.len()).expect("short")][..]);
            input.extend_from_slice(body);
            match (take(&mut input, MAX), expected) {
                (Ok(Incoming::Unusable { id, why, .. }), Some(expected)) => {
                    assert_eq!((id, why), ((head == 0x32).then_some(0x0102), expected), "{what}");
                    assert!(input.is_empty(), "{what}");
                }
                (Err(_), None) => {}
                (taken, _) => panic!("{what}: {taken:?}"),
            }
        }
    }

    #[test]
    fn a_publish_over_the_limit_for_packets_is_an_error_whatever_its_properties() {
        let properties = vec![(String::new(), String::new()); MAX_PROPERTY_BYTES];
        let mut input = written("t", None, properties, b"");
        let taken = take(&mut input, 1000);
        assert!(matches!(taken, Err(CodecError::PayloadSizeLimitExceeded { .. })), "{taken:?}");
    }
}
