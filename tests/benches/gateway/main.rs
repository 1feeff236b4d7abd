//! `cargo xtask bench`: `tools/call` through the gateway and a stdio server against the same broker's plain echo
//! (client → broker → echo → broker → client), in turn, in one run. Both sides use the same client loop, the same
//! QoS 1 and payloads of the same size, so the ratio is what the gateway and the server's pipes cost.

mod peers;
mod report;
mod rounds;

use std::time::Duration;

use anyhow::Result;

/// Rounds of each side per row; the median of the rounds is shown.
const ROUNDS: usize = 5;

/// Length of one round.
const ROUND: Duration = Duration::from_secs(2);

/// Clients at one time, a row each.
const CLIENTS: [usize; 3] = [1, 8, 32];

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match (args.next().as_deref(), args.next()) {
        (Some("echo"), Some(url)) => runtime.block_on(peers::serve_echo(&url.parse()?)),
        _ => runtime.block_on(compare()),
    }
}

async fn compare() -> Result<()> {
    let stage = peers::Stage::up().await?;
    println!("{}", report::machine());
    println!("{}", stage.footprint()?);
    println!("{}", report::header());
    for clients in CLIENTS {
        let mut pairs = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            let echo = rounds::run(&stage.url, &rounds::Peer::Echo, clients, ROUND).await?;
            let gateway = rounds::run(&stage.url, &peers::Stage::gateway_peer(), clients, ROUND).await?;
            pairs.push((echo, gateway));
        }
        println!("{}", report::row(clients, &pairs));
    }
    println!("{}", stage.footprint()?);
    Ok(())
}
