//! What MQTT can carry, and how many bytes it takes on the wire.

use bytes::BytesMut;
use rumqttc::v5::mqttbytes::{
    Error as CodecError, QoS,
    v5::{Filter as WireFilter, LastWill, LastWillProperties, Publish, PublishProperties},
    valid_filter,
};

use super::{Filter, Publication, PublishError, Qos};

/// Longest string of MQTT; the codec would cut a longer one and write a broken packet.
const MAX_STRING_BYTES: usize = 65_535;

/// Largest packet of MQTT: type, four bytes of length, 268,435,455 bytes.
pub(super) const MAX_PACKET_BYTES: usize = 268_435_460;

/// Whether MQTT can carry it at all, whatever the broker.
pub(super) fn check_publication(publication: &Publication) -> Result<(), PublishError> {
    let topic = &publication.topic;
    if topic.is_empty() {
        return Err(PublishError::Invalid("the topic is empty"));
    }
    if topic.contains(['+', '#', '\0']) {
        return Err(PublishError::Invalid("the topic contains '+', '#' or NUL"));
    }
    if topic.len() > MAX_STRING_BYTES {
        return Err(PublishError::Invalid("the topic is longer than 65,535 bytes"));
    }
    check_properties(&publication.user_properties)
}

/// Whether MQTT can carry it as a string or as the payload of a will.
pub(super) fn check_string(text: Option<&[u8]>) -> Result<(), PublishError> {
    if text.is_some_and(|text| text.len() > MAX_STRING_BYTES) {
        return Err(PublishError::Invalid("it is longer than 65,535 bytes"));
    }
    Ok(())
}

/// Whether MQTT can carry these user properties.
pub(super) fn check_properties(properties: &[(String, String)]) -> Result<(), PublishError> {
    let too_long = |text: &String| text.len() > MAX_STRING_BYTES;
    if properties.iter().any(|(name, value)| too_long(name) || too_long(value)) {
        return Err(PublishError::Invalid("a user property is longer than 65,535 bytes"));
    }
    Ok(())
}

/// Whether these filters can be asked for.
pub(super) fn check_filters<'a>(filters: impl ExactSizeIterator<Item = &'a str>) -> Result<(), PublishError> {
    if filters.len() == 0 {
        return Err(PublishError::Invalid("there is no topic filter"));
    }
    for filter in filters {
        if !valid_filter(filter) || filter.contains('\0') {
            return Err(PublishError::Invalid("a topic filter is malformed"));
        }
        if filter.len() > MAX_STRING_BYTES {
            return Err(PublishError::Invalid("a topic filter is longer than 65,535 bytes"));
        }
    }
    Ok(())
}

/// Bytes of the PUBLISH packet.
pub(super) fn publish_size(publication: &Publication) -> usize {
    let id = match publication.qos {
        Qos::AtMostOnce => 0,
        Qos::AtLeastOnce => 2,
    };
    let properties: usize =
        publication.user_properties.iter().map(|(name, value)| 5 + name.len() + value.len()).sum();
    whole(2 + publication.topic.len() + id + prefixed(properties) + publication.payload.len())
}

/// Bytes of the SUBSCRIBE packet.
pub(super) fn subscribe_size(filters: &[Filter]) -> usize {
    whole(2 + prefixed(0) + filters.iter().map(|filter| 3 + filter.filter.len()).sum::<usize>())
}

/// Bytes of the UNSUBSCRIBE packet.
pub(super) fn unsubscribe_size(filters: &[String]) -> usize {
    whole(2 + prefixed(0) + filters.iter().map(|filter| 2 + filter.len()).sum::<usize>())
}

/// A packet with so many bytes after its fixed header.
fn whole(remaining: usize) -> usize {
    1 + prefixed(remaining)
}

/// `length` and the variable byte integer that says it.
fn prefixed(length: usize) -> usize {
    let prefix = match length {
        0..=127 => 1,
        128..=16_383 => 2,
        16_384..=2_097_151 => 3,
        _ => 4,
    };
    prefix + length
}

pub(super) fn wire_qos(qos: Qos) -> QoS {
    match qos {
        Qos::AtMostOnce => QoS::AtMostOnce,
        Qos::AtLeastOnce => QoS::AtLeastOnce,
    }
}

/// Writes a PUBLISH with this packet id (0 at QoS 0), and gives the publication back as it was. No topic alias, ever.
pub(super) fn write_publish(
    publication: Publication,
    qos: Qos,
    id: u16,
    output: &mut BytesMut,
) -> Result<Publication, CodecError> {
    let Publication { topic, payload, qos: wanted, retain, user_properties } = publication;
    let properties = (!user_properties.is_empty())
        .then(|| PublishProperties { user_properties, ..PublishProperties::default() });
    let publish = Publish {
        dup: false,
        qos: wire_qos(qos),
        retain,
        topic: topic.into(),
        pkid: id,
        payload,
        properties,
    };
    publish.write(output)?;
    Ok(Publication {
        // It was a string before.
        topic: String::from_utf8(publish.topic.into()).unwrap_or_default(),
        payload: publish.payload,
        qos: wanted,
        retain,
        user_properties: publish.properties.map(|properties| properties.user_properties).unwrap_or_default(),
    })
}

pub(super) fn wire_filters(filters: Vec<Filter>, highest: Qos) -> Vec<WireFilter> {
    let wire = |filter: Filter| {
        let mut wire = WireFilter::new(filter.filter, wire_qos(filter.qos.min(highest)));
        wire.nolocal = filter.no_local;
        wire
    };
    filters.into_iter().map(wire).collect()
}

pub(super) fn wire_will(will: &Publication) -> LastWill {
    let properties = LastWillProperties {
        delay_interval: None,
        payload_format_indicator: None,
        message_expiry_interval: None,
        content_type: None,
        response_topic: None,
        correlation_data: None,
        user_properties: will.user_properties.clone(),
    };
    LastWill::new(
        will.topic.as_str(),
        will.payload.clone(),
        wire_qos(will.qos),
        will.retain,
        Some(properties),
    )
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use rumqttc::v5::mqttbytes::v5::{Packet, Subscribe, Unsubscribe};

    use super::*;

    fn written(packet: &Packet) -> usize {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, None).expect("it can be written");
        bytes.len()
    }

    proptest! {
        #[test]
        fn the_size_of_a_publish_is_what_is_written(
            topic in "[a-z/]{1,200}",
            payload in prop_oneof![0_usize..300, 16_000_usize..17_000, Just(2_097_100), Just(2_097_200)],
            properties in proptest::collection::vec(("[a-z]{0,20}", "[a-z]{0,150}"), 0..4),
            at_least_once: bool,
        ) {
            let qos = if at_least_once { Qos::AtLeastOnce } else { Qos::AtMostOnce };
            let publication = Publication {
                topic, payload: Bytes::from(vec![0; payload]), qos, retain: false, user_properties: properties,
            };
            let size = publish_size(&publication);
            let mut output = BytesMut::new();
            let back = write_publish(publication.clone(), qos, u16::from(at_least_once), &mut output);
            prop_assert_eq!(size, output.len());
            let back = back.expect("it can be written");
            prop_assert_eq!((&back.topic, &back.payload), (&publication.topic, &publication.payload));
            prop_assert_eq!(back.user_properties, publication.user_properties);
        }

        #[test]
        fn the_sizes_of_subscribe_and_unsubscribe_are_what_is_written(
            names in proptest::collection::vec("[a-z/]{1,90}", 1..5),
        ) {
            let filters: Vec<_> = names.iter().map(|name| Filter::new(name, Qos::AtLeastOnce)).collect();
            let mut subscribe = Subscribe::new_many(wire_filters(filters.clone(), Qos::AtLeastOnce), None);
            subscribe.pkid = 1;
            prop_assert_eq!(subscribe_size(&filters), written(&Packet::Subscribe(subscribe)));
            let unsubscribe = Unsubscribe { pkid: 1, filters: names.clone(), properties: None };
            prop_assert_eq!(unsubscribe_size(&names), written(&Packet::Unsubscribe(unsubscribe)));
        }
    }

    #[test]
    fn what_mqtt_cannot_carry_is_refused_before_it_is_queued() {
        let publication = |topic: &str| Publication::new(topic, Bytes::new(), Qos::AtLeastOnce);
        for topic in ["", "a/+/b", "a/#", "a\0b", &"a".repeat(65_536)] {
            let refused = check_publication(&publication(topic));
            assert!(matches!(refused, Err(PublishError::Invalid(_))), "{topic:.10}: {refused:?}");
        }
        let mut long = publication("a");
        long.user_properties.push(("name".to_owned(), "v".repeat(65_536)));
        assert!(matches!(check_publication(&long), Err(PublishError::Invalid(_))));
        for filter in ["", "a#", "a/#/b", "a+/b", &"a".repeat(65_536)] {
            assert!(
                matches!(check_filters([filter].into_iter()), Err(PublishError::Invalid(_))),
                "{filter:.10}"
            );
        }
        assert!(check_filters(["$mcp-server/presence/+/#"].into_iter()).is_ok());
        assert!(check_filters([].into_iter()).is_err());
    }
}
