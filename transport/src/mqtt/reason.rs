//! MQTT 5 reason codes (section 2.4).

use std::fmt;

/// A reason code of CONNACK, PUBACK, SUBACK, UNSUBACK or DISCONNECT. From 0x80 on it is a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReasonCode(pub u8);

impl ReasonCode {
    /// Success; granted QoS 0; normal disconnection.
    pub const SUCCESS: Self = Self(0x00);
    /// Granted QoS 1.
    pub const GRANTED_QOS_1: Self = Self(0x01);
    /// PUBACK: nobody is subscribed.
    pub const NO_MATCHING_SUBSCRIBERS: Self = Self(0x10);
    /// UNSUBACK: there was no such subscription.
    pub const NO_SUBSCRIPTION_EXISTED: Self = Self(0x11);
    /// The broker does not say why.
    pub const UNSPECIFIED_ERROR: Self = Self(0x80);
    /// Not authorized.
    pub const NOT_AUTHORIZED: Self = Self(0x87);
    /// Another client took the client id over.
    pub const SESSION_TAKEN_OVER: Self = Self(0x8E);
    /// The broker will not have this topic name.
    pub const TOPIC_NAME_INVALID: Self = Self(0x90);
    /// The packet is larger than the broker takes.
    pub const PACKET_TOO_LARGE: Self = Self(0x95);
    /// A quota is used up.
    pub const QUOTA_EXCEEDED: Self = Self(0x97);

    /// The broker keeps no retained messages.
    pub const RETAIN_NOT_SUPPORTED: Self = Self(0x9A);

    /// Whether it is a failure.
    pub fn is_error(self) -> bool {
        self.0 >= 0x80
    }

    /// Its name in the MQTT specification.
    pub fn name(self) -> &'static str {
        match self.0 {
            0x00 => "success",
            0x01 => "granted QoS 1",
            0x02 => "granted QoS 2",
            0x04 => "disconnect with will message",
            0x10 => "no matching subscribers",
            0x11 => "no subscription existed",
            0x80 => "unspecified error",
            0x81 => "malformed packet",
            0x82 => "protocol error",
            0x83 => "implementation specific error",
            0x84 => "unsupported protocol version",
            0x85 => "client identifier not valid",
            0x86 => "bad user name or password",
            0x87 => "not authorized",
            0x88 => "server unavailable",
            0x89 => "server busy",
            0x8A => "banned",
            0x8B => "server shutting down",
            0x8C => "bad authentication method",
            0x8D => "keep alive timeout",
            0x8E => "session taken over",
            0x8F => "topic filter invalid",
            0x90 => "topic name invalid",
            0x91 => "packet identifier in use",
            0x93 => "receive maximum exceeded",
            0x94 => "topic alias invalid",
            0x95 => "packet too large",
            0x96 => "message rate too high",
            0x97 => "quota exceeded",
            0x98 => "administrative action",
            0x99 => "payload format invalid",
            0x9A => "retain not supported",
            0x9B => "QoS not supported",
            0x9C => "use another server",
            0x9D => "server moved",
            0x9E => "shared subscriptions not supported",
            0x9F => "connection rate exceeded",
            0xA0 => "maximum connect time",
            0xA1 => "subscription identifiers not supported",
            0xA2 => "wildcard subscriptions not supported",
            _ => "unknown reason code",
        }
    }
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (0x{:02X})", self.name(), self.0)
    }
}
