//! From options to an accepted connection: the settings that the MQTT library needs, and its errors in our words.

use std::{error::Error, io, time::Duration};

use rumqttc::{
    NetworkOptions, TlsConfiguration, Transport,
    v5::{
        AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, StateError,
        mqttbytes::{
            Error as WireError,
            v5::{ConnAck, ConnectProperties, ConnectReturnCode, Packet},
        },
    },
};
use tokio::time::timeout;

use super::{Accepted, ConnectError, ConnectOptions, PublishError, ReasonCode, outbox::FEED, packet, tls};

/// Unacknowledged QoS 1 publishes that we send at most. The library keeps a slot for each possible packet id: its
/// default of 65,535 costs 14 MB a connection, and 64 keep any broker busy.
pub(super) const MAX_IN_FLIGHT: u16 = 64;

/// The library refuses less by panic.
const MIN_KEEP_ALIVE: Duration = Duration::from_secs(5);
/// MQTT says it in 16 bits of seconds.
const MAX_KEEP_ALIVE: Duration = Duration::from_secs(65_535);

/// A connection whose CONNACK has come.
pub(super) struct Dialled {
    pub(super) client: AsyncClient,
    pub(super) event_loop: EventLoop,
    pub(super) accepted: Accepted,
}

/// Connects, up to CONNACK. Each call makes a new event loop: nothing of an earlier connection (packet ids, limits,
/// a collision, queued requests) can reach this one.
pub(super) async fn dial(options: &ConnectOptions) -> Result<Dialled, ConnectError> {
    let address = Address::of(options)?;
    let settings = settings(options, &address)?;
    let (client, mut event_loop) = AsyncClient::new(settings, FEED);
    let event = timeout(options.connect_timeout, event_loop.poll())
        .await
        .map_err(|_| ConnectError::Timeout {
            address: address.text.clone(),
            timeout: options.connect_timeout,
        })?
        .map_err(|error| connect_error(&address, &error))?;
    let Event::Incoming(Packet::ConnAck(connack)) = event else {
        let detail = format!("it sent {event:?} first");
        return Err(ConnectError::Protocol { address: address.text, detail });
    };
    let keep_alive = keep_alive(options);
    let accepted = accepted(connack, keep_alive);
    if accepted.receive_maximum == 0 {
        let detail = "its Receive Maximum is 0".to_owned();
        return Err(ConnectError::Protocol { address: address.text, detail });
    }
    if event_loop.options.keep_alive().is_zero() {
        // A Server Keep Alive of 0 means none. The library would ping without a pause.
        event_loop.options.set_keep_alive(keep_alive);
    }
    Ok(Dialled { client, event_loop, accepted })
}

/// Where to connect to.
struct Address {
    scheme: Scheme,
    host: String,
    port: u16,
    /// For messages: `host:port`.
    text: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Mqtt,
    Mqtts,
    Ws,
    Wss,
}

impl Address {
    fn of(options: &ConnectOptions) -> Result<Self, ConnectError> {
        let url = &options.url;
        let refuse = |why: &str| Err(ConnectError::Options(format!("the URL {}: {why}", redacted(url))));
        let (scheme, default_port) = match url.scheme() {
            "mqtt" => (Scheme::Mqtt, 1883),
            "mqtts" => (Scheme::Mqtts, 8883),
            "ws" => (Scheme::Ws, 80),
            "wss" => (Scheme::Wss, 443),
            _ => return refuse("its scheme is none of mqtt, mqtts, ws, wss"),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return refuse("credentials do not belong in it; give them on their own");
        }
        let Some(host) = url.host_str().filter(|host| !host.is_empty()) else {
            return refuse("it has no host");
        };
        let port = url.port().unwrap_or(default_port);
        let text = format!("{host}:{port}");
        // Without the brackets of an IPv6 address: the resolver takes it, and TLS wants it so.
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { scheme, host, port, text })
    }
}

/// The URL as it may be shown.
fn redacted(url: &url::Url) -> String {
    let mut url = url.clone();
    if url.password().is_some() {
        let _ = url.set_password(Some("***"));
    }
    url.to_string()
}

fn keep_alive(options: &ConnectOptions) -> Duration {
    options.keep_alive.clamp(MIN_KEEP_ALIVE, MAX_KEEP_ALIVE)
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

fn settings(options: &ConnectOptions, address: &Address) -> Result<MqttOptions, ConnectError> {
    check(options)?;
    let host = match address.scheme {
        Scheme::Mqtt | Scheme::Mqtts => address.host.clone(),
        // For websockets the library takes the whole URL in the place of the host.
        Scheme::Ws | Scheme::Wss => options.url.to_string(),
    };
    let mut settings = MqttOptions::new(options.client_id.as_str(), host, address.port);
    let configure_tls = || {
        tls::client_config(&options.tls)
            .map(TlsConfiguration::Rustls)
            .map_err(|detail| ConnectError::Tls { address: address.text.clone(), detail })
    };
    settings.set_transport(match address.scheme {
        Scheme::Mqtt => Transport::Tcp,
        Scheme::Mqtts => Transport::Tls(configure_tls()?),
        Scheme::Ws => Transport::Ws,
        Scheme::Wss => Transport::Wss(configure_tls()?),
    });
    let mut network = NetworkOptions::new();
    // Off by default there, and 40 to 90 ms per QoS 1 round trip without it.
    network.set_tcp_nodelay(true);
    settings.set_network_options(network);
    settings.set_keep_alive(keep_alive(options));
    settings.set_clean_start(true);
    // In whole seconds there; ours is the one that ends the wait.
    settings.set_connection_timeout(options.connect_timeout.as_secs() + 2);
    settings.set_outgoing_inflight_upper_limit(MAX_IN_FLIGHT);
    if options.username.is_some() || options.password.is_some() {
        let password = options.password.as_deref().unwrap_or_default();
        let password = std::str::from_utf8(password)
            .map_err(|_| ConnectError::Options("the password is not UTF-8".to_owned()))?;
        settings.set_credentials(options.username.as_deref().unwrap_or_default(), password);
    }
    // All at once: this call replaces what any setter of a single property did before.
    let mut properties = ConnectProperties::new();
    properties.max_packet_size = Some(options.max_packet_size);
    properties.user_properties.clone_from(&options.user_properties);
    // Session Expiry Interval stays absent, which means 0; Topic Alias Maximum stays absent, which means none.
    settings.set_connect_properties(properties);
    if let Some(will) = &options.will {
        settings.set_last_will(packet::wire_will(will));
    }
    Ok(settings)
}

fn accepted(connack: ConnAck, keep_alive: Duration) -> Accepted {
    let mut accepted = Accepted {
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

fn connect_error(address: &Address, error: &ConnectionError) -> ConnectError {
    let address = address.text.clone();
    if let ConnectionError::ConnectionRefused(code) = error {
        let reason = connack_reason(*code);
        return match code {
            ConnectReturnCode::BadUserNamePassword
            | ConnectReturnCode::NotAuthorized
            | ConnectReturnCode::ClientIdentifierNotValid
            | ConnectReturnCode::BadClientId
            | ConnectReturnCode::BadAuthenticationMethod
            | ConnectReturnCode::Banned => ConnectError::RefusedCredentials { address, reason },
            _ => ConnectError::Refused { address, reason },
        };
    }
    let detail = detail(error);
    let tls = io_error(error).map_or_else(|| caused_by_tls(error), |error| caused_by_tls(error));
    if tls || matches!(error, ConnectionError::Tls(_)) {
        return ConnectError::Tls { address, detail };
    }
    match error {
        // After the connection stood: it broke off or sent something else.
        ConnectionError::MqttState(_) | ConnectionError::NotConnAck(_) => {
            ConnectError::Protocol { address, detail }
        }
        _ => ConnectError::Unreachable { address, detail },
    }
}

/// Whether rustls is behind it. In TLS 1.3 a broker refuses a client certificate after the handshake, so that
/// comes as a failed read.
fn caused_by_tls(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<rustls::Error>() {
            return true;
        }
        if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            return caused_by_tls(inner);
        }
        next = error.source();
    }
    false
}

/// The system's error behind it; the library does not link it as the source.
fn io_error(error: &ConnectionError) -> Option<&io::Error> {
    match error {
        ConnectionError::Io(error)
        | ConnectionError::MqttState(
            StateError::Io(error) | StateError::Deserialization(WireError::Io(error)),
        ) => Some(error),
        _ => None,
    }
}

/// An error in words: the system's own where there are some, else all of the chain.
pub(super) fn detail(error: &ConnectionError) -> String {
    if let Some(error) = io_error(error) {
        return error.to_string();
    }
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let inner = error.to_string();
        if !text.contains(&inner) {
            text = format!("{text}: {inner}");
        }
        next = error.source();
    }
    text
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
