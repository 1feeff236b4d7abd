//! Sessions that are held and say nothing, over a server on HTTP: what the gateway holds for each.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use mcp_mqtt_tests::{baseline, gateway::Gateway};
use mcp_mqtt_transport::mqtt::Qos;
use url::Url;

use crate::{
    Plan,
    client::{Client, Peer},
    http_server::Manner,
    meter::Memory,
    report,
    stage::{self, Stage, Transport},
};

/// Sessions that come and go before anything is measured: code, pools and tables have been used then.
const WARM_UP: usize = 32;
/// Clients that open their sessions at one time.
const AT_ONCE: usize = 32;
/// Between two looks whether the gateway has come to rest.
const LOOK: Duration = Duration::from_millis(500);
/// Looks at most.
const LOOKS: usize = 40;

/// What a gateway without a session may hold: it stands in every pod, whatever the load.
const WITH_NOTHING: u64 = 10 << 20;

/// The table, with as many sessions as are planned.
pub(crate) async fn sessions(stage: &Stage, plan: &Plan) -> Result<()> {
    println!("\nA gateway with nothing to do");
    for transport in [Transport::Stdio, Transport::Http(Manner::Json)] {
        let gateway = stage::start(stage.gateway(transport, Qos::AtLeastOnce)?).await?;
        let Held { memory, descriptors } = at_rest(&gateway).await;
        println!("  {:<15} {memory}, {descriptors} descriptors", transport.name());
        ensure!(
            !plan.strict || memory.resident <= WITH_NOTHING,
            "a gateway with nothing to do holds {:.1} MiB (aim: ≤ {:.0} MiB)",
            report::mebibytes(memory.resident),
            report::mebibytes(WITH_NOTHING)
        );
    }
    println!(
        "\nSessions held, all of them idle\n  {:<15} {:>8} │ {:>9} {:>16} │ {:>12} {:>12}",
        "server", "sessions", "KiB each", "descriptors each", "MiB with all", "MiB without"
    );
    for count in plan.idle_counts() {
        for manner in [Manner::Json, Manner::Standing] {
            let transport = Transport::Http(manner);
            let gateway = stage::start(stage.gateway(transport, Qos::AtLeastOnce)?).await?;
            let broker = stage.url();
            close(open(&broker, &gateway, WARM_UP).await?, &gateway).await?;
            let before = at_rest(&gateway).await;
            let clients = open(&broker, &gateway, count).await?;
            let with_all = at_rest(&gateway).await;
            close(clients, &gateway).await?;
            let after = at_rest(&gateway).await;
            #[expect(clippy::cast_precision_loss, reason = "some thousand")]
            let each = |all: f64| all / count as f64;
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let grown = |of: fn(&Held) -> u64| of(&with_all) as f64 - of(&before) as f64;
            println!(
                "  {:<15} {count:>8} │ {:>9.1} {:>16.2} │ {:>12.1} {:>12.1}",
                transport.name(),
                each(grown(|held| held.memory.resident) / 1024.0),
                each(grown(|held| held.descriptors)),
                report::mebibytes(with_all.memory.resident),
                report::mebibytes(after.memory.resident),
            );
        }
    }
    Ok(())
}

/// What a gateway holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    memory: Memory,
    descriptors: u64,
}

/// Sessions of so many clients, a connection each.
async fn open(broker: &Url, gateway: &Gateway, count: usize) -> Result<Vec<Client>> {
    let peer = Peer::Gateway(gateway.instance());
    let clients = stream::iter(0..count).map(|_| Client::connect(broker, &peer, Qos::AtLeastOnce));
    clients.buffer_unordered(AT_ONCE).try_collect().await
}

async fn close(clients: Vec<Client>, gateway: &Gateway) -> Result<()> {
    for client in clients {
        client.leave().await?;
    }
    stage::emptied(gateway).await
}

/// What it holds once that has stopped changing.
async fn at_rest(gateway: &Gateway) -> Held {
    let look = || Held {
        memory: Memory::of(gateway.pid()),
        descriptors: baseline::fds(gateway.pid()).try_into().unwrap_or(u64::MAX),
    };
    let mut last = look();
    for _ in 0..LOOKS {
        tokio::time::sleep(LOOK).await;
        let now = look();
        if now == last {
            break;
        }
        last = now;
    }
    last
}
