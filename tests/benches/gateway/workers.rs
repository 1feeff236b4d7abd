//! Whether more connections to the broker make calls quicker.

use anyhow::Result;
use mcp_mqtt_transport::mqtt::Qos;

use crate::{
    Plan,
    client::Peer,
    compare::SMALL,
    echo::Echo,
    report::{self, Bar, Ratios},
    rounds::{self, Measured, Shape},
    stage::{self, Stage, Transport},
};

/// Workers of the gateways that are compared.
const WORKERS: [usize; 4] = [0, 1, 2, 4];
/// Clients: where throughput is looked for.
const CLIENTS: [usize; 2] = [32, 128];

/// The table: each round is one of the echo and one through each gateway, so that all have the same of what the machine
/// is doing.
pub(crate) async fn calls(stage: &Stage, plan: &Plan) -> Result<()> {
    let mut gateways = Vec::new();
    for workers in WORKERS {
        let gateway = stage::start(stage.gateway_with(Transport::Stdio, Qos::AtLeastOnce, workers)?).await?;
        gateway.wait_metric(r#"broker_connections{role="worker"}"#, workers as u64).await?;
        gateways.push(gateway);
    }
    println!(
        "\nWorkers: calls on stdio through gateways with 0, 1, 2 and 4 workers, in turn\n{}",
        Bar::head()
    );
    let broker = stage.url();
    for clients in CLIENTS {
        let shape = Shape { clients, payload: SMALL, qos: Qos::AtLeastOnce, load: None };
        let mut pairs: [Vec<(Measured, Measured)>; WORKERS.len()] = Default::default();
        for _ in 0..plan.rounds {
            let echo =
                rounds::run(&broker, &Peer::Echo(Echo::Plain), shape, plan.length(), std::process::id())
                    .await?;
            for (gateway, pairs) in gateways.iter().zip(&mut pairs) {
                let peer = Peer::Gateway(gateway.instance());
                let through = rounds::run(&broker, &peer, shape, plan.length(), gateway.pid()).await?;
                stage::emptied(gateway).await?;
                pairs.push((echo, through));
            }
        }
        for (workers, of_these) in WORKERS.iter().zip(&pairs) {
            let of_none = pairs[0].iter().zip(of_these);
            let to_none = of_none.map(|((_, none), (_, these))| these.per_second / none.per_second);
            println!(
                "{}   calls × {:.2} of those with none",
                Bar::of(&format!("{workers} workers"), shape, &Ratios::of(of_these)),
                report::median_of(to_none),
            );
        }
        println!("{}", Bar::foot());
    }
    Ok(())
}
