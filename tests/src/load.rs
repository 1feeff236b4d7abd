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
    client::{Client, ClientOptions, Instance, OpenError, RequestError, Session, SessionEnd, Unhandled},
    jsonrpc::RpcError,
    topic::{ClientId, ServerId, ServerName},
};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use url::Url;

use crate::{cluster::eventually, lock};

/// A request without answer or refusal for so long is lost. Far above the gateway's own timeouts in these tests.
pub const LOST_AFTER: Duration = Duration::from_secs(90);

/// No call waits longer for its answer or its refusal, once all clients are at work. The longest that a fault needs is
/// the silence of a broker or a gateway that is gone without a word: two and a half keep-alives.
const LONGEST_CALL: Duration = Duration::from_secs(30);

/// And no `initialize`: the gateway gives up a server that does not start after 30 s, and on a machine on which many start
/// at one time that may be so.
const LONGEST_OPENING: Duration = Duration::from_secs(45);

/// Of the clients.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// From TCP connect to CONNACK.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A goodbye that comes so long after a request finds it begun: a message's way takes milliseconds.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// The gateway's word for a request that its server left without an answer.
const TIMED_OUT: &str = "timed-out";

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
    /// A request is lost that has no answer for so long: [`LOST_AFTER`].
    pub lost_after: Duration,
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
    /// All clients have been answered: what they wait for from now on is judged by its time.
    at_work: AtomicBool,
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
    /// Neither, for a long time; or given up by the gateway, because its server was silent.
    pub lost: u64,
    /// Sessions that were opened.
    pub sessions: u64,
    /// Calls in the middle of which a client died.
    pub deaths: u64,
    /// The longest time from a call to its answer or refusal, once all clients were at work.
    pub longest_call: Duration,
    /// The same of an `initialize`.
    pub longest_opening: Duration,
    /// The longest time without a result, as one client saw it.
    pub longest_gap: Duration,
    /// The longest time from the end of a client's session to its next one.
    pub longest_move: Duration,
    /// Why requests were refused or lost, each kind once.
    pub reasons: Vec<String>,
}

impl Load {
    /// Starts so many clients. Every fourth calls a tool that takes two seconds, the others `echo`, with a rest between
    /// two calls: what a fault wants is requests under way, not a machine on which nothing else can start.
    pub fn start(broker: &Url, server: &ServerName, clients: usize) -> Self {
        let work = Work {
            quick: vec![("echo", json!({ "message": "load" }))],
            slow: ("trigger-long-running-operation", json!({ "duration": 2, "steps": 1 })),
            rest: Duration::from_millis(20),
            dies_in: None,
            lost_after: LOST_AFTER,
        };
        Self::start_with(broker, server, clients, &work)
    }

    /// Starts so many clients with this work.
    pub fn start_with(broker: &Url, server: &ServerName, clients: usize, work: &Work) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = (0..clients).map(|_| AtomicU64::new(0)).collect();
        let at = (0..clients).map(|_| Mutex::default()).collect();
        let (sessions, at_work) = (AtomicU64::new(0), AtomicBool::new(false));
        let counts = Arc::new(Counts { answered, at, sessions, at_work });
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
        })?;
        self.counts.at_work.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Sessions opened so far.
    pub fn sessions(&self) -> u64 {
        self.counts.sessions.load(Ordering::Relaxed)
    }

    /// Lets every client finish its request, and adds up.
    ///
    /// # Errors
    /// As [`Account::judge`].
    pub async fn finish(self) -> Result<Account> {
        let total = self.stop().await?;
        println!("load: {total:?}");
        total.judge()?;
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
    /// Whether every request was answered or refused, and soon enough.
    ///
    /// # Errors
    /// When one was lost or waited for too long, or none was answered at all.
    pub fn judge(&self) -> Result<()> {
        let Self { answered, lost, longest_call, longest_opening, reasons, .. } = self;
        ensure!(*lost == 0, "{lost} requests were lost: {reasons:?}");
        ensure!(*answered > 0, "no request was answered: {reasons:?}");
        for (what, waited, most) in
            [("a call", longest_call, LONGEST_CALL), ("an initialize", longest_opening, LONGEST_OPENING)]
        {
            ensure!(*waited <= most, "{what} waited for {waited:?}, and {most:?} is too long: {reasons:?}");
        }
        Ok(())
    }

    /// Those of other clients with it.
    pub fn add(&mut self, other: Self) {
        let Self {
            answered,
            refused,
            cut,
            lost,
            sessions,
            deaths,
            longest_call,
            longest_opening,
            longest_gap,
            longest_move,
            reasons,
        } = other;
        self.answered += answered;
        self.refused += refused;
        self.cut += cut;
        self.lost += lost;
        self.sessions += sessions;
        self.deaths += deaths;
        self.longest_call = self.longest_call.max(longest_call);
        self.longest_opening = self.longest_opening.max(longest_opening);
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
        let id = ClientId::new(&format!("load-{:x}", fastrand::u64(..)))?;
        let mut options = ClientOptions::new(self.broker.clone(), id);
        (options.keep_alive, options.connect_timeout) = (KEEP_ALIVE, CONNECT_TIMEOUT);
        let connected = Client::connect(options).await;
        let client = connected.with_context(|| format!("cannot connect to {}", self.broker))?;
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
            let (asked, judged) = self.asks();
            let opened = client.open_session(&found, &none, Arc::new(Unhandled), self.work.lost_after).await;
            if judged {
                self.account.longest_opening = self.account.longest_opening.max(asked.elapsed());
            }
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
                    let lost = matches!(&error, OpenError::Initialize(RequestError::Timeout(_)));
                    self.account.lost += u64::from(lost);
                    self.note(error.to_string());
                    tokio::time::sleep(PAUSE).await;
                }
            }
            ensure!(self.stopped() || !client.publisher().is_closed(), "the connection is over");
        }
        client.close(self.work.lost_after).await?;
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

    /// A request begins: when, and whether it is judged by its time.
    fn asks(&self) -> (Instant, bool) {
        (Instant::now(), self.counts.at_work.load(Ordering::Relaxed))
    }

    async fn request(&mut self, session: &Session) -> bool {
        self.calls += 1;
        let quick = &self.work.quick;
        let (tool, arguments) = if self.slow { &self.work.slow } else { &quick[self.calls % quick.len()] };
        let tool = *tool;
        let params = json!({ "name": tool, "arguments": arguments });
        self.at(format!("call {} of {tool}", self.calls));
        let patience = self.work.lost_after;
        let (asked, judged) = self.asks();
        let call = session.request("tools/call", Some(&params), patience);
        // The session's own time-out comes first; this one is for a client that forgets it.
        let result = tokio::time::timeout(2 * patience, call).await;
        if judged {
            self.account.longest_call = self.account.longest_call.max(asked.elapsed());
        }
        match result {
            Ok(Ok(_)) => {
                self.account.answered += 1;
                self.counts.answered[self.number].fetch_add(1, Ordering::Relaxed);
                self.account.longest_gap = self.account.longest_gap.max(self.last_answer.elapsed());
                self.last_answer = Instant::now();
                true
            }
            Ok(Err(error)) => {
                if is_lost(&error, judged) {
                    self.account.lost += 1;
                } else {
                    self.account.refused += 1;
                    self.account.cut += u64::from(may_have_begun(&error, asked.elapsed()));
                }
                self.note(format!("tools/call: {error}"));
                false
            }
            Err(_) => {
                self.account.lost += 1;
                self.note(format!("{tool}: nothing within {patience:?}"));
                false
            }
        }
    }
}

/// Whether nobody answered the call. The gateway's own word for that counts where the call is judged: a machine on which
/// dozens of servers start at one time may let a first call wait for so long.
fn is_lost(error: &RequestError, judged: bool) -> bool {
    let timed_out = error.rpc().and_then(RpcError::reason) == Some(TIMED_OUT);
    matches!(error, RequestError::Timeout(_)) || (judged && timed_out)
}

/// Whether the server may have begun with a request that was cut off after so long: not where the gateway says that it
/// takes no more, or that the server was silent, and not where its goodbye, which comes behind all answers, met the request on its way.
fn may_have_begun(error: &RequestError, waited: Duration) -> bool {
    match error {
        RequestError::Ended(SessionEnd::Disconnected) => waited > ON_ITS_WAY,
        error => !matches!(error.rpc().and_then(RpcError::reason), Some("draining" | TIMED_OUT)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goodbye_long_after_a_request_has_cut_it_off() {
        let goodbye = RequestError::Ended(SessionEnd::Disconnected);
        assert!(!may_have_begun(&goodbye, Duration::from_millis(900)));
        assert!(may_have_begun(&goodbye, Duration::from_millis(1100)));
        assert!(may_have_begun(&RequestError::Ended(SessionEnd::Offline), Duration::ZERO));
    }

    #[test]
    fn an_account_with_a_hang_does_not_pass() {
        let (longest_call, longest_opening) = (LONGEST_CALL, LONGEST_OPENING);
        let good = Account { answered: 1, longest_call, longest_opening, ..Account::default() };
        assert!(good.judge().is_ok());
        for bad in [
            Account { lost: 1, ..good.clone() },
            Account { answered: 0, ..good.clone() },
            Account { longest_call: LONGEST_CALL + Duration::from_secs(1), ..good.clone() },
            Account { longest_opening: LONGEST_OPENING + Duration::from_secs(1), ..good },
        ] {
            assert!(bad.judge().is_err(), "{bad:?}");
        }
    }
}
