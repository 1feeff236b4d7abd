//! An HTTP server that breaks as a call asks it to: raw TCP, since no proper server does.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
    time::sleep,
};
use url::Url;

/// Between two bytes of what never ends.
const DRIP: Duration = Duration::from_millis(50);

/// Dropping it ends it.
pub(crate) struct Broken {
    pub(crate) url: Url,
    task: AbortHandle,
}

impl Broken {
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/mcp", listener.local_addr()?).parse()?;
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        });
        Ok(Self { url, task: task.abort_handle() })
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One request after the other, until one breaks the connection.
async fn serve(stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        let mut first = String::new();
        if stream.read_line(&mut first).await? == 0 {
            return Ok(());
        }
        let mut length = 0;
        loop {
            let mut header = String::new();
            stream.read_line(&mut header).await?;
            if header.trim().is_empty() {
                break;
            }
            if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        match first.split(' ').next().context("a method")? {
            "POST" => answer(&mut stream, &serde_json::from_slice(&body)?).await?,
            "DELETE" => say(&mut stream, "200 OK", "text/plain", "").await?,
            _ => say(&mut stream, "405 Method Not Allowed", "text/plain", "").await?,
        }
    }
}

async fn answer(stream: &mut BufReader<TcpStream>, message: &Value) -> Result<()> {
    let id = &message["id"];
    let result = |result: Value| json!({"jsonrpc": "2.0", "id": id, "result": result}).to_string();
    let text = |text: &str| result(json!({"content": [{"type": "text", "text": text}]}));
    match message["method"].as_str().unwrap_or_default() {
        "initialize" => {
            let body = result(json!({
                "protocolVersion": message["params"]["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "stub", "version": "1"},
            }));
            let head = format!(
                "HTTP/1.1 200 OK\r\nMcp-Session-Id: s\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all((head + &body).as_bytes()).await?;
        }
        "tools/call" => match message["params"]["name"].as_str().unwrap_or_default() {
            "echo" => {
                let said = message["params"]["arguments"]["message"].as_str().unwrap_or_default();
                say(stream, "200 OK", "application/json", &text(said)).await?;
            }
            "500" => say(stream, "500 Internal Server Error", "text/html", "<h1>Oops</h1>").await?,
            "502" => say(stream, "502 Bad Gateway", "text/plain", "no upstream").await?,
            "slow-head" => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nX-Slow: ").await?;
                drip(stream, "z").await?;
            }
            "slow-body" => {
                let head =
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n";
                stream.write_all(head.as_bytes()).await?;
                drip(stream, " ").await?;
            }
            "endless" | "chatter" => {
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
                stream.write_all(head.as_bytes()).await?;
                let event = if message["params"]["name"] == "chatter" {
                    let note = json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "x"}});
                    format!("data: {note}\n\n")
                } else {
                    ": still here\n\n".to_owned()
                };
                drip(stream, &format!("{:x}\r\n{event}\r\n", event.len())).await?;
            }
            other => say(stream, "404 Not Found", "text/plain", other).await?,
        },
        _ => say(stream, "202 Accepted", "text/plain", "").await?,
    }
    Ok(())
}

async fn say(stream: &mut BufReader<TcpStream>, status: &str, kind: &str, body: &str) -> Result<()> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len());
    Ok(stream.write_all((head + body).as_bytes()).await?)
}

/// The same again and again, until nobody takes it.
async fn drip(stream: &mut BufReader<TcpStream>, what: &str) -> Result<()> {
    loop {
        stream.write_all(what.as_bytes()).await?;
        sleep(DRIP).await;
    }
}
