//! A small stdio MCP server whose tools do what a test asks for. It answers at once and uses no runtime, so that it
//! costs a measurement as little as a server can.

use std::{
    collections::HashMap,
    io::{BufRead, BufWriter, Write, stdin, stdout},
    process::exit,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use serde_json::{Value, json};

/// The tools: name, and what it does.
const TOOLS: [(&str, &str); 15] = [
    ("echo", "gives {message} back"),
    ("sleep", "answers after {ms}"),
    ("stall", "reads nothing for {ms}, then answers"),
    ("silence", "never answers"),
    ("crash", "ends the process with {code}, without an answer"),
    ("big", "answers with {bytes} bytes"),
    ("flood", "sends {count} log messages of {bytes} bytes, then answers"),
    ("change", "says notifications/{kind}/list_changed, then answers"),
    ("progress", "reports {steps} times, {ms} apart, then answers"),
    ("ask", "asks the client {method} with {params}, and answers what it answered"),
    ("twice", "answers twice"),
    ("garbage", "writes a line that is no message ({kind}: text, utf8, json), then answers"),
    ("stranger", "answers a request that nobody made, by number and by text, then answers"),
    ("state", "tells {pid, calls, cancelled}"),
    ("meta", "gives the _meta of its own call back"),
];

/// `--list-changed-first`: say so before the `initialize` result, as a well-known server does.
/// `--trouble FILE`: do what the file says at start: `exit`, `hang`, `flood`, `refuse` (as below), or go on as usual when
/// it is not there.
/// `--modern`: speak 2026-07-28 and nothing else, as far as its tools go.
/// `--refuse`: answer `initialize` with an error. `--slow MS`: answer `initialize` after so long.
struct Manners {
    list_changed_first: bool,
    modern: bool,
    refuse: bool,
    slow: Duration,
}

#[derive(Default)]
struct Server {
    /// The client's answers to our requests.
    asked: Mutex<HashMap<u64, mpsc::Sender<Value>>>,
    last_id: AtomicU64,
    calls: AtomicU64,
    cancelled: Mutex<Vec<Value>>,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let value = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1));
    let slow = value("--slow");
    let kind = value("--trouble").and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
    trouble(kind.trim());
    let manners = Manners {
        modern: args.iter().any(|arg| arg == "--modern"),
        list_changed_first: args.iter().any(|arg| arg == "--list-changed-first"),
        refuse: kind.trim() == "refuse" || args.iter().any(|arg| arg == "--refuse"),
        slow: Duration::from_millis(slow.and_then(|ms| ms.parse().ok()).unwrap_or_default()),
    };
    let server = Arc::new(Server::default());
    for line in stdin().lock().lines() {
        let Ok(line) = line else { return };
        match serde_json::from_str::<Value>(&line) {
            Ok(message) => server.take(message, &manners),
            Err(error) => eprintln!("not JSON: {error}"),
        }
    }
}

impl Server {
    fn take(self: &Arc<Self>, mut message: Value, manners: &Manners) {
        let id = message.get("id").cloned();
        let params = message["params"].take();
        match (message["method"].as_str(), id) {
            (Some("initialize"), Some(id)) => initialize(&id, &params, manners),
            (Some("server/discover"), Some(id)) if manners.modern => answer(
                &id,
                &json!({
                    "resultType": "complete", "ttlMs": 0, "cacheScope": "private",
                    "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}},
                }),
            ),
            (Some("tools/list"), Some(id)) => {
                let tools = TOOLS.map(|(name, description)| {
                    json!({"name": name, "description": description, "inputSchema": {"type": "object"}})
                });
                answer(&id, &json!({"tools": tools}));
            }
            (Some("tools/call"), Some(id)) => self.call(id, params),
            (Some("ping" | "logging/setLevel" | "resources/subscribe"), Some(id)) => answer(&id, &json!({})),
            (Some(method), Some(id)) => {
                say(
                    &json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": format!("no {method}")}}),
                );
            }
            (Some("notifications/cancelled"), None) => {
                self.cancelled
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(params["requestId"].clone());
            }
            (None, Some(id)) => {
                let asked = id
                    .as_u64()
                    .and_then(|id| self.asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&id));
                if let Some(asked) = asked {
                    let _ = asked.send(message); // who asked may have given up
                }
            }
            _ => {}
        }
    }

    fn call(self: &Arc<Self>, id: Value, mut params: Value) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let arguments = params["arguments"].take();
        let number = |name: &str| arguments[name].as_u64().unwrap_or_default();
        let ms = Duration::from_millis(number("ms"));
        match params["name"].as_str().unwrap_or_default() {
            "echo" => text(&id, arguments["message"].as_str().unwrap_or_default()),
            "sleep" => {
                thread::spawn(move || {
                    thread::sleep(ms);
                    text(&id, "slept");
                });
            }
            "stall" => {
                thread::sleep(ms);
                text(&id, "stalled");
            }
            "silence" => {}
            "meta" => text(&id, &params["_meta"].to_string()),
            "crash" => exit(i32::try_from(number("code")).unwrap_or(1)),
            "big" => text(&id, &"x".repeat(usize::try_from(number("bytes")).unwrap_or_default())),
            "flood" => {
                let data = "x".repeat(usize::try_from(number("bytes")).unwrap_or_default());
                for n in 0..number("count") {
                    notify("notifications/message", &json!({"level": "info", "data": format!("{n} {data}")}));
                }
                text(&id, "flooded");
            }
            "change" => {
                let kind = arguments["kind"].as_str().unwrap_or("tools");
                let method = format!("notifications/{kind}/list_changed");
                say(&json!({"jsonrpc": "2.0", "method": method}));
                text(&id, "changed");
            }
            "progress" => {
                let token = params["_meta"]["progressToken"].take();
                let steps = number("steps");
                thread::spawn(move || {
                    for step in 1..=steps {
                        thread::sleep(ms);
                        let report = json!({"progressToken": token, "progress": step, "total": steps});
                        notify("notifications/progress", &report);
                    }
                    text(&id, "done");
                });
            }
            "ask" => {
                let method = arguments["method"].as_str().unwrap_or("sampling/createMessage").to_owned();
                self.ask(id, &method, &arguments["params"]);
            }
            "twice" => {
                text(&id, "first");
                text(&id, "second");
            }
            "garbage" => {
                let line: &[u8] = match arguments["kind"].as_str() {
                    Some("utf8") => b"{\"jsonrpc\":\"2.0\",\"method\":\"notifications/\xff\xfe\"}\n",
                    Some("json") => b"{\"jsonrpc\":\"2.0\",\"method\":\"notifications/own\",\n",
                    _ => b"this is no JSON\n",
                };
                let mut out = stdout().lock();
                let _ = out.write_all(line).and_then(|()| out.flush());
                drop(out);
                text(&id, "said");
            }
            "stranger" => {
                text(&json!(424_242), "to nobody");
                text(&json!("nobody"), "to nobody");
                text(&id, "said");
            }
            "state" => {
                let cancelled = self.cancelled.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let calls = self.calls.load(Ordering::Relaxed);
                let state = json!({"pid": std::process::id(), "calls": calls, "cancelled": cancelled});
                text(&id, &state.to_string());
            }
            other => say(&json!({
                "jsonrpc": "2.0", "id": id, "error": {"code": -32602, "message": format!("no tool {other}")}
            })),
        }
    }

    /// A request to the client; the call is answered with what comes back.
    fn ask(self: &Arc<Self>, call: Value, method: &str, params: &Value) {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::channel();
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        say(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}));
        thread::spawn(move || {
            if let Ok(answer) = receiver.recv() {
                let part = if answer.get("error").is_some() { "error" } else { "result" };
                text(&call, &json!({part: answer[part]}).to_string());
            }
        });
    }
}

/// What a broken server does in place of its work.
fn trouble(kind: &str) {
    match kind {
        "exit" => exit(7),
        "hang" => loop {
            thread::park();
        },
        "flood" => loop {
            notify("notifications/message", &json!({"level": "info", "data": "x".repeat(1000)}));
        },
        _ => {}
    }
}

fn initialize(id: &Value, params: &Value, manners: &Manners) {
    thread::sleep(manners.slow);
    if manners.modern {
        let error = json!({"code": -32022, "message": "unsupported", "data": {"supported": ["2026-07-28"]}});
        return say(&json!({"jsonrpc": "2.0", "id": id, "error": error}));
    }
    if manners.refuse {
        return say(&json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32000, "message": "not today"}}));
    }
    if manners.list_changed_first {
        say(&json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}));
    }
    answer(
        id,
        &json!({
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {"listChanged": true}, "logging": {}},
            "serverInfo": {"name": "stub", "version": "1.0.0"},
        }),
    );
}

fn text(id: &Value, text: &str) {
    answer(id, &json!({"content": [{"type": "text", "text": text}]}));
}

fn answer(id: &Value, result: &Value) {
    say(&json!({"jsonrpc": "2.0", "id": id, "result": result}));
}

fn notify(method: &str, params: &Value) {
    say(&json!({"jsonrpc": "2.0", "method": method, "params": params}));
}

/// One line. Without a reader there is nobody left to serve.
fn say(message: &Value) {
    let mut out = BufWriter::new(stdout().lock());
    let said = writeln!(out, "{message}").and_then(|()| out.flush());
    if said.is_err() {
        exit(0);
    }
}
