//! The client id of a gateway that was given none.

use mcp_mqtt_transport::topic::ServerId;

/// What of the host's name goes into an id, in bytes.
const HOST_BYTES: usize = 32;

/// The first part of the host's name and eight random digits, so that several gateways on one host, and one after
/// the other, do not meet.
pub(super) fn default_server_id() -> String {
    let name = rustix::system::uname();
    of_host(&name.nodename().to_string_lossy(), fastrand::u32(..))
}

fn of_host(host: &str, random: u32) -> String {
    let host = host.split('.').next().unwrap_or_default();
    let kept = |character: &char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_');
    let host: String = host.chars().filter(kept).take(HOST_BYTES).collect();
    let id = format!("{}-{random:08x}", if host.is_empty() { "mcp" } else { &host });
    debug_assert!(ServerId::new(&id).is_ok(), "{id}");
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_readable_and_valid_whatever_the_host_is_called() {
        assert_eq!(of_host("desk.example.com", 7), "desk-00000007");
        for host in ["", "+#/", "ä.b", "a/b+c#d", &"x".repeat(300), "presence"] {
            let id = of_host(host, u32::MAX);
            assert!(ServerId::new(&id).is_ok() && id.len() <= HOST_BYTES + 9, "{id}");
        }
        assert_ne!(default_server_id(), default_server_id());
    }
}
