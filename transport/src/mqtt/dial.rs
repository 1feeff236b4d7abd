//! From options to an accepted connection: CONNECT, CONNACK, and refusals in our words.

use std::{future::poll_fn, time::Duration};

use rumqttc::v5::mqttbytes::v5::{ConnAck, Connect, ConnectProperties, ConnectReturnCode, Login, Packet};
use tokio::time::timeout;

use super::{
    Accepted, ConnectError, ConnectOptions, KEEP_ALIVE, PublishError, ReasonCode,
    incoming::Incoming,
    packet,
    socket::{Address, caused_by_tls},
    wire::{Wire, WireError},
};

/// Unacknowledged QoS 1 publishes that we send at most; 64 keep any broker busy.
pub(super) const MAX_IN_FLIGHT: u16 = 64;

/// A connection whose CONNACK has come.
pub(super) struct Dialled {
    pub(super) wire: Wire,
    pub(super) accepted: Accepted,
}

/// Connects, up to CONNACK.
pub(super) async fn dial(options: &ConnectOptions) -> Result<Dialled, ConnectError> {
    let address = Address::of(options)?;
    check(options)?;
    timeout(options.connect_timeout, shake_hands(options, &address)).await.unwrap_or_else(|_| {
        Err(ConnectError::Timeout { address: address.text.clone(), timeout: options.connect_timeout })
    })
}

async fn shake_hands(options: &ConnectOptions, address: &Address) -> Result<Dialled, ConnectError> {
    let connect = connect_packet(options)?;
    let mut wire = Wire::new(address.open(options).await?, options.max_packet_size);
    let protocol = |detail| ConnectError::Protocol { address: address.text.clone(), detail };
    connect.write(wire.output(), None).map_err(|error| protocol(error.to_string()))?;
    wire.hurry();
    let first = first_packet(&mut wire).await.map_err(|error| match error {
        WireError::Read(error) | WireError::Write(error) if caused_by_tls(&error) => {
            address.tls(error.to_string())
        }
        error => protocol(error.to_string()),
    })?;
    let Incoming::Packet(Packet::ConnAck(connack)) = first else {
        return Err(protocol(format!("it sent {first:?} first")));
    };
    if connack.code != ConnectReturnCode::Success {
        return Err(refusal(address, connack.code));
    }
    let accepted = accepted(connack, keep_alive(options));
    if accepted.receive_maximum == 0 {
        return Err(protocol("its Receive Maximum is 0".to_owned()));
    }
    Ok(Dialled { wire, accepted })
}

async fn first_packet(wire: &mut Wire) -> Result<Incoming, WireError> {
    loop {
        if let Some(packet) = wire.packet()? {
            return Ok(packet);
        }
        poll_fn(|cx| wire.poll(cx, true)).await?;
    }
}

fn keep_alive(options: &ConnectOptions) -> Duration {
    options.keep_alive.clamp(*KEEP_ALIVE.start(), *KEEP_ALIVE.end())
}

/// Whether MQTT can carry what is asked for.
fn check(options: &ConnectOptions) -> Result<(), ConnectError> {
    let refuse = |what: &str, error: PublishError| ConnectError::Options(format!("{what}: {error}"));
    let texts = [("the client id", Some(&options.client_id)), ("the user name", options.username.as_ref())];
    for (what, text) in texts {
        packet::check_string(text.map(String::as_bytes)).map_err(|error| refuse(what, error))?;
    }
    packet::check_string(options.password.as_deref()).map_err(|error| refuse("the password", error))?;
    packet::check_properties(&options.user_properties).map_err(|error| refuse("a user property", error))?;
    if let Some(will) = &options.will {
        packet::check_publication(will)
            .and_then(|()| packet::check_string(Some(&will.payload)))
            .map_err(|error| refuse("the will", error))?;
    }
    Ok(())
}

fn connect_packet(options: &ConnectOptions) -> Result<Packet, ConnectError> {
    let login = if options.username.is_some() || options.password.is_some() {
        let password = options.password.as_deref().unwrap_or_default();
        let password = std::str::from_utf8(password)
            .map_err(|_| ConnectError::Options("the password is not UTF-8".to_owned()))?;
        Some(Login::new(options.username.as_deref().unwrap_or_default(), password))
    } else {
        None
    };
    let mut properties = ConnectProperties::new();
    properties.max_packet_size = Some(options.max_packet_size);
    properties.user_properties.clone_from(&options.user_properties);
    // Without one the Session Expiry Interval stays absent, which means 0; Topic Alias Maximum always does: none.
    properties.session_expiry_interval =
        options.session_expiry.map(|expiry| u32::try_from(expiry.as_secs()).unwrap_or(u32::MAX));
    let connect = Connect {
        keep_alive: u16::try_from(keep_alive(options).as_secs()).unwrap_or(u16::MAX),
        client_id: options.client_id.clone(),
        clean_start: options.session_expiry.is_none(),
        properties: Some(properties),
    };
    Ok(Packet::Connect(connect, options.will.as_ref().map(packet::wire_will), login))
}

fn accepted(connack: ConnAck, keep_alive: Duration) -> Accepted {
    let mut accepted = Accepted {
        session_present: connack.session_present,
        maximum_packet_size: None,
        receive_maximum: u16::MAX,
        maximum_qos: 2,
        retain_available: true,
        wildcard_subscription_available: true,
        assigned_client_id: None,
        keep_alive,
        user_properties: Vec::new(),
    };
    if let Some(properties) = connack.properties {
        accepted.maximum_packet_size = properties.max_packet_size;
        accepted.receive_maximum = properties.receive_max.unwrap_or(u16::MAX);
        accepted.maximum_qos = properties.max_qos.unwrap_or(2);
        accepted.retain_available = properties.retain_available != Some(0);
        accepted.wildcard_subscription_available = properties.wildcard_subscription_available != Some(0);
        accepted.assigned_client_id = properties.assigned_client_identifier;
        if let Some(seconds @ 1..) = properties.server_keep_alive {
            accepted.keep_alive = Duration::from_secs(seconds.into());
        }
        accepted.user_properties = properties.user_properties;
    }
    accepted
}

fn refusal(address: &Address, code: ConnectReturnCode) -> ConnectError {
    let (address, reason) = (address.text.clone(), connack_reason(code));
    match code {
        ConnectReturnCode::BadUserNamePassword
        | ConnectReturnCode::NotAuthorized
        | ConnectReturnCode::ClientIdentifierNotValid
        | ConnectReturnCode::BadClientId
        | ConnectReturnCode::BadAuthenticationMethod
        | ConnectReturnCode::Banned => ConnectError::RefusedCredentials { address, reason },
        _ => ConnectError::Refused { address, reason },
    }
}

fn connack_reason(code: ConnectReturnCode) -> ReasonCode {
    use ConnectReturnCode as Code;
    ReasonCode(match code {
        Code::Success => 0x00,
        Code::UnspecifiedError => 0x80,
        Code::MalformedPacket => 0x81,
        Code::ProtocolError => 0x82,
        Code::ImplementationSpecificError => 0x83,
        Code::UnsupportedProtocolVersion | Code::RefusedProtocolVersion => 0x84,
        Code::ClientIdentifierNotValid | Code::BadClientId => 0x85,
        Code::BadUserNamePassword => 0x86,
        Code::NotAuthorized => 0x87,
        Code::ServerUnavailable | Code::ServiceUnavailable => 0x88,
        Code::ServerBusy => 0x89,
        Code::Banned => 0x8A,
        Code::BadAuthenticationMethod => 0x8C,
        Code::TopicNameInvalid => 0x90,
        Code::PacketTooLarge => 0x95,
        Code::QuotaExceeded => 0x97,
        Code::PayloadFormatInvalid => 0x99,
        Code::RetainNotSupported => 0x9A,
        Code::QoSNotSupported => 0x9B,
        Code::UseAnotherServer => 0x9C,
        Code::ServerMoved => 0x9D,
        Code::ConnectionRateExceeded => 0x9F,
    })
}
