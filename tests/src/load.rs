//! Closed-loop clients that run throughout a fault and keep account: every request is answered or explicitly
//! refused, or it was lost.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use mcp_mqtt_transport::{
    client::{Instance, RequestError, Session, SessionEnd},
    jsonrpc::RpcError,
    topic::{ServerId, ServerName},
};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use url::Url;

use crate::{cluster::eventually, lock, platform};

/// A request without answer or refusal for so long is lost. Far above the gateway's own timeouts in these tests.
const LOST_AFTER: Duration = Duration::from_secs(90);

/// How long it may take until all clients are at work. A first `initialize` and its first call may each be given up on a
/// machine on which dozens of servers start at one time; what is lost is counted by its own time.
const AT_WORK: Duration = Duration::from_mins(5);

/// Pause of a client that finds no instance, or was refused, before it tries again.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a client that has just come waits for the instances that there are, to choose among.
const SETTLED: Duration = Duration::from_millis(200);

/// How long a client waits for an instance to come.
const NONE_COMES: Duration = Duration::from_secs(5);

/// What the clients do.
#[derive(Debug, Clone)]
pub struct Work {
    /// Tools and arguments that most clients call, one after the other.
    pub quick: Vec<(&'static str, Value)>,
    /// What every fourth client calls.
    pub slow: (&'static str, Value),
    /// How long a client rests after each answer.
    pub rest: Duration,
    /// Every fourth client (another one) dies now and then in the middle of a call: once in so many, without a
    /// goodbye.
    pub dies_in: Option<u32>,
}

/// Clients at work.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    clients: JoinSet<Account>,
}

/// What can be seen while they are at it.
#[derive(Debug)]
struct Counts {
    /// Of each client.
    answered: Vec<AtomicU64>,
    /// Of each client, what it waits for, or met last.
    at: Vec<Mutex<String>>,
    sessions: AtomicU64,
}

/// What became of the requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// Answered with a result.
    pub answered: u64,
    /// Answered with an error, or ended by an explicit end of the session or the connection.
    pub refused: u64,
    /// Of these, what the server may have begun with: all but what the gateway says it never took.
    pub cut: u64,
    /// Neither, for a long time.
    pub lost: u64,
    /// Sessions that were opened.
    pub sessions: u64,
    /// Calls in the middle of which a client died.
    pub deaths: u64,
    /// The longest time without a result, as one client saw it.
    pub longest_gap: Duration,
    /// The longest time from the end of a client's session to its next one.
    pub longest_move: Duration,
    /// Why requests were refused or lost, each kind once.
    pub reasons: Vec<String>,
}

impl Load {
    /// Starts so many clients. Every fourth calls a tool that takes a second, the others `echo`, with a rest between
    /// two calls: what a fault wants is requests under way, not a machine on which nothing else can start.
    pub fn start(broker: &Url, server: &ServerName, clients: usize) -> Self {
        let work = Work {
            quick: vec![("echo", json!({ "message": "load" }))],
            slow: ("trigger-long-running-operation", json!({ "duration": 1, "steps": 1 })),
            rest: Duration::from_millis(20),
            dies_in: None,
        };
        Self::start_with(broker, server, clients, &work)
    }

    /// Starts so many clients with this work.
    pub fn start_with(broker: &Url, server: &ServerName, clients: usize, work: &Work) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = (0..clients).map(|_| AtomicU64::new(0)).collect();
        let at = (0..clients).map(|_| Mutex::default()).collect();
        let counts = Arc::new(Counts { answered, at, sessions: AtomicU64::new(0) });
        let mut running = JoinSet::new();
        for n in 0..clients {
            let client = LoadClient {
                broker: broker.clone(),
                server: server.clone(),
                number: n,
                work: work.clone(),
                slow: n % 4 == 3,
                dies_in: work.dies_in.filter(|_| n % 4 == 1),
                calls: n,
                counts: Arc::clone(&counts),
                stop: Arc::clone(&stop),
                account: Account::default(),
                last_answer: Instant::now(),
                left: None,
                avoided: None,
            };
            running.spawn(client.run());
        }
        Self { stop, counts, clients: running }
    }

    /// Requests answered with a result so far.
    pub fn answered(&self) -> u64 {
        self.of_each().iter().sum()
    }

    fn of_each(&self) -> Vec<u64> {
        self.counts.answered.iter().map(|of_one| of_one.load(Ordering::Relaxed)).collect()
    }

    /// Waits until every client has had one more answer than when it was called: all are at work, on a machine however
    /// busy.
    ///
    /// # Errors
    /// When one of them is not answered for minutes.
    pub async fn all_answered(&self) -> Result<()> {
        let before = self.of_each();
        let behind = || -> Vec<String> {
            let of_each = self.of_each().into_iter().zip(&before).zip(&self.counts.at);
            of_each.filter(|((now, before), _)| now <= before).map(|(_, at)| lock(at).clone()).collect()
        };
        eventually(AT_WORK, async || behind().is_empty().then_some(())).await.with_context(|| {
            let behind = behind();
            format!("{} of {} clients are not answered: {behind:?}", behind.len(), before.len())
        })
    }

    /// Sessions opened so far.
    pub fn sessions(&self) -> u64 {
        self.counts.sessions.load(Ordering::Relaxed)
    }

    /// Lets every client finish its request, and adds up.
    ///
    /// # Errors
    /// When a request was lost, or none was answered at all.
    pub async fn finish(self) -> Result<Account> {
        let total = self.stop().await?;
        println!("load: {total:?}");
        ensure!(total.lost == 0, "{} requests were lost: {:?}", total.lost, total.reasons);
        ensure!(total.answered > 0, "no request was answered: {:?}", total.reasons);
        Ok(total)
    }

    /// The same without a judgement.
    ///
    /// # Errors
    /// When a client panicked.
    pub async fn stop(mut self) -> Result<Account> {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = Account::default();
        while let Some(account) = self.clients.join_next().await {
            total.add(account?);
        }
        Ok(total)
    }
}

impl Account {
    /// Those of other clients with it.
    pub fn add(&mut self, other: Self) {
        let Self { answered, refused, cut, lost, sessions, deaths, longest_gap, longest_move, reasons } =
            other;
        self.answered += answered;
        self.refused += refused;
        self.cut += cut;
        self.lost += lost;
        self.sessions += sessions;
        self.deaths += deaths;
        self.longest_gap = self.longest_gap.max(longest_gap);
        self.longest_move = self.longest_move.max(longest_move);
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
    /// Which of the clients it is, from 0.
    number: usize,
    work: Work,
    slow: bool,
    dies_in: Option<u32>,
    /// So far; where it stands in its work.
    calls: usize,
    counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
    account: Account,
    last_answer: Instant,
    /// When its session ended, while it has none.
    left: Option<Instant>,
    /// The instance that it comes from: it would send it away again.
    avoided: Option<ServerId>,
}

impl LoadClient {
    async fn run(mut self) -> Account {
        while !self.stopped() {
            if let Err(error) = self.life().await {
                // No instance, or no broker: what a fault looks like from here, until it is over.
                self.note(format!("{error:#}"));
                tokio::time::sleep(PAUSE).await;
            }
        }
        self.account
    }

    /// What it does now.
    fn at(&self, what: String) {
        *lock(&self.counts.at[self.number]) = what;
    }

    /// What it met.
    fn note(&mut self, reason: String) {
        self.at(reason.clone());
        self.account.note(reason);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// One connection, with one session after the other, until it ends.
    async fn life(&mut self) -> Result<()> {
        let client = platform::connect(&self.broker).await?;
        let mut watch = client.watch(self.server.as_str()).await?;
        tokio::time::sleep(SETTLED).await;
        while !self.stopped() {
            let Some(found) = self.choose(watch.instances()) else {
                let comes = tokio::time::timeout(NONE_COMES, watch.changed()).await.unwrap_or(false);
                ensure!(comes, "no instance of {} comes", self.server);
                continue;
            };
            self.avoided = Some(found.server_id.clone());
            self.at(format!("initialize of {}", found.server_id));
            let none = serde_json::value::RawValue::from_string("{}".to_owned())?;
            let handler = Arc::new(mcp_mqtt_transport::client::Unhandled);
            let opened = client.open_session(&found, &none, handler, LOST_AFTER).await;
            match opened {
                Ok(session) => {
                    self.account.sessions += 1;
                    self.counts.sessions.fetch_add(1, Ordering::Relaxed);
                    if let Some(left) = self.left.take() {
                        self.account.longest_move = self.account.longest_move.max(left.elapsed());
                    }
                    let used = self.use_session(&session).await;
                    self.left = Some(Instant::now());
                    used?;
                    session.close();
                }
                Err(error) => {
                    ensure!(!error.to_string().contains("no answer within"), "initialize was lost: {error}");
                    self.note(error.to_string());
                    tokio::time::sleep(PAUSE).await;
                }
            }
            ensure!(self.stopped() || !client.publisher().is_closed(), "the connection is over");
        }
        client.close(LOST_AFTER).await?;
        Ok(())
    }

    /// Any of the instances, another one than the last if there is another.
    fn choose(&self, instances: Vec<Instance>) -> Option<Instance> {
        let avoided = |instance: &Instance| self.avoided.as_ref() == Some(&instance.server_id);
        let (old, others): (Vec<_>, Vec<_>) = instances.into_iter().partition(avoided);
        fastrand::choice(others).or(old.into_iter().next())
    }

    /// Requests one after the other, until one is not answered with a result.
    async fn use_session(&mut self, session: &Session) -> Result<()> {
        while !self.stopped() && self.request(session).await {
            if !self.work.rest.is_zero() {
                tokio::time::sleep(self.work.rest).await;
            }
            if self.dies_in.is_some_and(|calls| fastrand::u32(..calls) == 0) {
                self.account.deaths += 1;
                // What is dropped with the error is the connection, without a word.
                let _half = tokio::time::timeout(Duration::from_millis(1), self.request(session)).await;
                bail!("died as it was meant to");
            }
        }
        Ok(())
    }

    async fn request(&mut self, session: &Session) -> bool {
        self.calls += 1;
        let quick = &self.work.quick;
        let (tool, arguments) = if self.slow { &self.work.slow } else { &quick[self.calls % quick.len()] };
        let tool = *tool;
        let params = json!({ "name": tool, "arguments": arguments });
        self.at(format!("call {} of {tool}", self.calls));
        let call = session.request("tools/call", Some(&params), LOST_AFTER);
        // The session's own time-out comes first; this one is for a client that forgets it.
        let result = tokio::time::timeout(2 * LOST_AFTER, call).await;
        match result {
            Ok(Ok(_)) => {
                self.account.answered += 1;
                self.counts.answered[self.number].fetch_add(1, Ordering::Relaxed);
                self.account.longest_gap = self.account.longest_gap.max(self.last_answer.elapsed());
                self.last_answer = Instant::now();
                true
            }
            Ok(Err(error)) => {
                match error {
                    RequestError::Timeout(_) => self.account.lost += 1,
                    _ => self.account.refused += 1,
                }
                self.account.cut += u64::from(may_have_begun(&error));
                self.note(format!("tools/call: {error}"));
                false
            }
            Err(_) => {
                self.account.lost += 1;
                self.note(format!("{tool}: nothing within {LOST_AFTER:?}"));
                false
            }
        }
    }
}

/// Whether the server may have seen the request: not after a gateway's goodbye, which comes behind all answers, and not
/// where the gateway says that it takes no more.
fn may_have_begun(error: &RequestError) -> bool {
    let refused = error.rpc().and_then(RpcError::reason) == Some("draining");
    !refused && !matches!(error, RequestError::Ended(SessionEnd::Disconnected) | RequestError::Timeout(_))
}
