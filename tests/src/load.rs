//! Closed-loop clients that run throughout a fault and keep account: every request is answered or explicitly
//! refused, or it was lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use mcp_mqtt_transport::{
    client::{RequestError, Session},
    topic::ServerName,
};
use serde_json::json;
use tokio::task::JoinSet;
use url::Url;

use crate::platform::{self, call};

/// A request without answer or refusal for so long is lost. Far above the gateway's own timeouts in these tests.
const LOST_AFTER: Duration = Duration::from_secs(90);

/// Pause of a client that finds no instance, or was refused, before it tries again.
const PAUSE: Duration = Duration::from_millis(50);

/// Clients at work.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: JoinSet<Account>,
}

/// What became of the requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// Answered with a result.
    pub answered: u64,
    /// Answered with an error, or ended by an explicit end of the session or the connection.
    pub refused: u64,
    /// Neither, for a long time.
    pub lost: u64,
    /// Sessions that were opened.
    pub sessions: u64,
    /// The longest time without a result, as one client saw it.
    pub longest_gap: Duration,
    /// Why requests were refused or lost, each kind once.
    pub reasons: Vec<String>,
}

impl Load {
    /// Starts so many clients. Every fourth calls a tool that takes a second, the others `echo`.
    pub fn start(broker: &Url, server: &ServerName, clients: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut running = JoinSet::new();
        for n in 0..clients {
            let client = LoadClient {
                broker: broker.clone(),
                server: server.clone(),
                slow: n % 4 == 3,
                stop: Arc::clone(&stop),
                account: Account::default(),
                last_answer: Instant::now(),
            };
            running.spawn(client.run());
        }
        Self { stop, clients: running }
    }

    /// Lets every client finish its request, and adds up.
    ///
    /// # Errors
    /// When a request was lost, or none was answered at all.
    pub async fn finish(mut self) -> Result<Account> {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = Account::default();
        while let Some(account) = self.clients.join_next().await {
            total.add(account?);
        }
        println!("load: {total:?}");
        ensure!(total.lost == 0, "{} requests were lost: {:?}", total.lost, total.reasons);
        ensure!(total.answered > 0, "no request was answered: {:?}", total.reasons);
        Ok(total)
    }
}

impl Account {
    fn add(&mut self, other: Self) {
        let Self { answered, refused, lost, sessions, longest_gap, reasons } = other;
        self.answered += answered;
        self.refused += refused;
        self.lost += lost;
        self.sessions += sessions;
        self.longest_gap = self.longest_gap.max(longest_gap);
        for reason in reasons {
            self.note(reason);
        }
    }

    fn note(&mut self, reason: String) {
        if !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
    }
}

struct LoadClient {
    broker: Url,
    server: ServerName,
    slow: bool,
    stop: Arc<AtomicBool>,
    account: Account,
    last_answer: Instant,
}

impl LoadClient {
    async fn run(mut self) -> Account {
        while !self.stopped() {
            if let Err(error) = self.life().await {
                // No instance, or no broker: what a fault looks like from here, until it is over.
                self.account.note(format!("{error:#}"));
                tokio::time::sleep(PAUSE).await;
            }
        }
        self.account
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// One connection, with one session after the other, until it ends.
    async fn life(&mut self) -> Result<()> {
        let client = platform::connect(&self.broker).await?;
        while !self.stopped() {
            let found = client.find(&self.server, Duration::from_secs(5)).await?;
            let none = serde_json::value::RawValue::from_string("{}".to_owned())?;
            let handler = Arc::new(mcp_mqtt_transport::client::Unhandled);
            let opened = client.open_session(&found, &none, handler, LOST_AFTER).await;
            match opened {
                Ok(session) => {
                    self.account.sessions += 1;
                    self.use_session(&session).await;
                    session.close();
                }
                Err(error) => {
                    ensure!(!error.to_string().contains("no answer within"), "initialize was lost: {error}");
                    self.account.note(error.to_string());
                    tokio::time::sleep(PAUSE).await;
                }
            }
            ensure!(self.stopped() || !client.publisher().is_closed(), "the connection is over");
        }
        client.close(LOST_AFTER).await?;
        Ok(())
    }

    /// Requests one after the other, until one is not answered with a result.
    async fn use_session(&mut self, session: &Session) {
        while !self.stopped() && self.request(session).await {}
    }

    async fn request(&mut self, session: &Session) -> bool {
        let (tool, arguments) = if self.slow {
            ("trigger-long-running-operation", json!({ "duration": 1, "steps": 1 }))
        } else {
            ("echo", json!({ "message": "load" }))
        };
        let result = tokio::time::timeout(LOST_AFTER, call(session, tool, arguments)).await;
        match result {
            Ok(Ok(_)) => {
                self.account.answered += 1;
                self.account.longest_gap = self.account.longest_gap.max(self.last_answer.elapsed());
                self.last_answer = Instant::now();
                true
            }
            Ok(Err(error)) => {
                match error.downcast_ref::<RequestError>() {
                    Some(RequestError::Timeout(_)) => self.account.lost += 1,
                    _ => self.account.refused += 1,
                }
                self.account.note(format!("{error:#}"));
                false
            }
            Err(_) => {
                self.account.lost += 1;
                self.account.note(format!("{tool}: nothing within {LOST_AFTER:?}"));
                false
            }
        }
    }
}
