//! What is read of a PUBLISH before the codec reads it, against a cursor that goes through it byte by byte.

use mcp_mqtt_transport::mqtt::parsers::Envelope;

/// A packet.
pub(crate) fn run(frame: &[u8]) {
    let envelope = Envelope::of(frame);
    assert_eq!(envelope, simple(frame));
    let Some(envelope) = envelope else { return };
    assert!(envelope.topic.start <= envelope.topic.end && envelope.topic.end <= frame.len(), "{envelope:?}");
    assert!(envelope.property_bytes < 1 << 28, "{envelope:?}");
}

fn simple(frame: &[u8]) -> Option<Envelope> {
    let mut bytes = frame.iter().copied().enumerate();
    let mut next = || bytes.next();
    let (_, head) = next()?;
    let (kind, qos) = (head >> 4, head / 2 % 4);
    if kind != 3 || qos > 1 {
        return None;
    }
    number(&mut next)?;
    let (_, high) = next()?;
    let (at, low) = next()?;
    let start = at + 1;
    let end = start + usize::from(high) * 256 + usize::from(low);
    for _ in start..end {
        next()?;
    }
    let mut id = None;
    if qos == 1 {
        let (_, high) = next()?;
        let (_, low) = next()?;
        if (high, low) == (0, 0) {
            return None;
        }
        id = Some(u16::from(high) * 256 + u16::from(low));
    }
    let property_bytes = number(&mut next).unwrap_or_default();
    Some(Envelope { topic: start..end, id, property_bytes })
}

/// A variable byte integer.
fn number(next: &mut impl FnMut() -> Option<(usize, u8)>) -> Option<usize> {
    let (mut value, mut factor) = (0, 1);
    for _ in 0..4 {
        let (_, byte) = next()?;
        value += usize::from(byte % 128) * factor;
        factor *= 128;
        if byte < 128 {
            return Some(value);
        }
    }
    None
}
