//! What a running gateway says of itself, over its admin port.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use mcp_mqtt_sidecar::{metrics::Metrics, status::GatewayStatus};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::{Gateway, PATIENCE};

impl Gateway {
    /// Waits until `/readyz` says so.
    ///
    /// # Errors
    /// It does not, and what is pending then.
    pub async fn wait_ready(&self) -> Result<()> {
        self.wait_for("readiness", GatewayStatus::ready).await.map(|_| ())
    }

    /// Waits until `/status` fits.
    ///
    /// # Errors
    /// It does not in time; the last status is in the message.
    pub async fn wait_for(&self, what: &str, fits: impl Fn(&GatewayStatus) -> bool) -> Result<GatewayStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status().await;
            match &status {
                Ok(status) if fits(status) => return Ok(status.clone()),
                _ if Instant::now() < deadline => sleep(Duration::from_millis(5)).await,
                _ => bail!("no {what} within {PATIENCE:?}: {status:?}\nthe gateway's log:\n{}", self.log()),
            }
        }
    }

    /// `/status`.
    ///
    /// # Errors
    /// It cannot be had.
    pub async fn status(&self) -> Result<GatewayStatus> {
        Ok(serde_json::from_str(&self.get("/status").await?.1)?)
    }

    /// Code and body of a GET at the admin port.
    ///
    /// # Errors
    /// No answer.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        get_at(self.admin.address(), path).await
    }

    /// As [`metric_at`].
    ///
    /// # Errors
    /// No answer, or a metric that does not exist.
    pub async fn metric(&self, line: &str) -> Result<u64> {
        metric_at(self.admin.address(), line).await
    }

    /// Waits until a metric has this value.
    ///
    /// # Errors
    /// It does not.
    pub async fn wait_metric(&self, line: &str, value: u64) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.metric(line).await?;
            if now == value {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{line} is {now}, not {value}\n{}", self.log());
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until a metric is above this value.
    ///
    /// # Errors
    /// It is not.
    pub async fn wait_metric_above(&self, line: &str, value: u64) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.metric(line).await? <= value {
            ensure!(Instant::now() < deadline, "{line} is not above {value}\n{}", self.log());
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

async fn get_at(admin: SocketAddr, path: &str) -> Result<(u16, String)> {
    let answer = timeout(PATIENCE, async {
        let mut stream = TcpStream::connect(admin).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    });
    let answer = answer.await??;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let code = head.split(' ').nth(1).context("no HTTP status")?.parse()?;
    Ok((code, body.to_owned()))
}

/// The value of a metric's line at a gateway's admin port; the line is given without the prefix:
/// `messages_dropped_total{reason="no-session"}`.
///
/// # Errors
/// No answer, or a metric that does not exist. A line that is not there is 0.
pub async fn metric_at(admin: SocketAddr, line: &str) -> Result<u64> {
    let name = line.split('{').next().unwrap_or_default();
    let is_it = |known: &str| known.strip_prefix("mcp_mqtt_gateway_") == Some(name);
    ensure!(Metrics::catalogue().iter().any(|metric| is_it(&metric.name)), "there is no metric {name}");
    let (_, text) = get_at(admin, "/metrics").await?;
    let line = format!("mcp_mqtt_gateway_{line} ");
    let value = text.lines().find_map(|l| l.strip_prefix(&line));
    Ok(value.map_or(Ok(0), str::parse)?)
}
