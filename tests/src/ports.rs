//! TCP ports on loopback for the processes that must be told theirs, so that no two tests share one.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    ops::Range,
    sync::Arc,
};

use anyhow::{Result, bail};

/// Below the kernel's own choices for outgoing connections, and for whom asks for port 0: whoever connects to
/// a port among those before somebody listens may find himself at the other end.
const RANGE: Range<u16> = 1300..30_000;
const ATTEMPTS: usize = 100;

/// A port that no other test on this machine gets as long as this or a clone of it lives.
///
/// Its UDP twin is held for that: a process that is started can listen on the TCP port, stop and listen again,
/// and in between nobody else is given it.
#[derive(Debug, Clone)]
pub struct Port {
    number: u16,
    _twin: Arc<UdpSocket>,
}

impl Port {
    /// One that nobody listens on.
    ///
    /// # Errors
    /// There is none.
    pub fn reserve() -> Result<Self> {
        for _ in 0..ATTEMPTS {
            let number = fastrand::u16(RANGE);
            let address = (Ipv4Addr::LOCALHOST, number);
            if let Ok(twin) = UdpSocket::bind(address)
                && TcpListener::bind(address).is_ok()
            {
                return Ok(Self { number, _twin: Arc::new(twin) });
            }
        }
        bail!("{ATTEMPTS} ports of {RANGE:?} are all taken")
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// On loopback.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.number).into()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, net::TcpListener};

    use super::Port;

    #[test]
    fn nobody_is_given_a_port_that_is_held_or_listened_on() {
        let held: Vec<Port> = (0..300).map(|_| Port::reserve().unwrap()).collect();
        let numbers: HashSet<u16> = held.iter().map(Port::number).collect();
        assert_eq!(numbers.len(), held.len());
        // As whoever does not know of reservations would take one.
        let listeners: Vec<TcpListener> =
            numbers.iter().filter_map(|&number| TcpListener::bind(("127.0.0.1", number)).ok()).collect();
        assert!(!listeners.is_empty());
        drop(held);
        let listening: HashSet<u16> =
            listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        for _ in 0..300 {
            assert!(!listening.contains(&Port::reserve().unwrap().number()));
        }
    }
}
