//! `cargo xtask mcp`: an MCP client over MQTT for the command line.

mod access;

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use mcp_mqtt_transport::{
    client::{Client, Instance, Session, Unhandled},
    topic::ServerName,
};
use serde_json::{Value, json, value::RawValue};

pub(crate) use self::access::connect;
use self::access::{Access, PASSWORD};
use crate::{
    cluster::{self, Cluster},
    release,
    workspace::this_program,
};

/// How long a look at the registry, an `initialize` or a call may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How long `list` waits for presences: retained messages come at once.
const GLANCE: Duration = Duration::from_secs(3);

/// Whom to ask, and what.
#[derive(Debug, clap::Args)]
pub(crate) struct McpArgs {
    #[command(flatten)]
    access: Access,
    /// The demo's cluster.
    #[arg(long, env = cluster::VARIABLE, default_value = cluster::DEFAULT)]
    cluster: String,
    #[command(subcommand)]
    command: McpCommand,
}

/// What to ask.
#[derive(Debug, clap::Subcommand)]
enum McpCommand {
    /// The server instances in the broker's registry.
    List {
        /// Server names to show; an MQTT topic filter.
        #[arg(default_value = "#")]
        filter: String,
    },
    /// The tools of a server.
    Tools {
        /// Server name, as `list` shows it.
        server: ServerName,
    },
    /// Call a tool.
    Call {
        /// Server name, as `list` shows it.
        server: ServerName,
        /// Name of the tool.
        tool: String,
        /// Its arguments, a JSON object.
        #[arg(default_value = "{}")]
        arguments: String,
    },
}

/// Runs one command: against the broker that was named, or inside the network of the demo's cluster against its own.
///
/// # Errors
/// When there is no such broker or server, or it does not answer.
pub(crate) fn main(arguments: &McpArgs) -> Result<()> {
    let McpArgs { access, command, .. } = arguments;
    if access.broker.is_some() {
        return crate::runtime()?.block_on(run(access, command));
    }
    let cluster = Cluster::named(&arguments.cluster)?;
    let broker = release::broker(&cluster)?;
    let mut again = cluster.command(this_program()?)?;
    again.args(["mcp", "--broker", broker.as_str()]).args(std::env::args_os().skip(2));
    // It is another broker's.
    again.env_remove(PASSWORD);
    Err(cluster::exec(again))
}

/// Runs one command against a broker and prints what it says.
async fn run(access: &Access, command: &McpCommand) -> Result<()> {
    let client = access.connect(std::env::var(PASSWORD).ok()).await?;
    match command {
        McpCommand::List { filter } => {
            let instances = client.discover(filter, GLANCE).await?;
            print_instances(&instances);
        }
        McpCommand::Tools { server } => {
            let session = open(&client, server).await?;
            for tool in list_tools(&session).await? {
                println!("{:<28} {}", tool.name, first_line(&tool.description));
            }
        }
        McpCommand::Call { server, tool, arguments } => {
            let arguments: Value = serde_json::from_str(arguments).context("the arguments are not JSON")?;
            let session = open(&client, server).await?;
            let (text, failed) = call_tool(&session, tool, &arguments).await?;
            println!("{text}");
            if failed {
                bail!("{tool} answered that it failed");
            }
        }
    }
    client.close(PATIENCE).await?;
    Ok(())
}

/// Opens a session with any instance of a server.
pub(crate) async fn open(client: &Client, server: &ServerName) -> Result<Session> {
    let instance = client.find(server, PATIENCE).await?;
    open_with(client, &instance).await
}

/// Opens a session with this instance.
pub(crate) async fn open_with(client: &Client, instance: &Instance) -> Result<Session> {
    let none = RawValue::from_string("{}".to_owned())?;
    let session = client.open_session(instance, &none, Arc::new(Unhandled), PATIENCE).await;
    session.with_context(|| format!("cannot open a session with {}", instance.server_id))
}

/// A tool as `tools/list` has it.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct Tool {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) description: String,
}

/// All tools of a server, page by page.
pub(crate) async fn list_tools(session: &Session) -> Result<Vec<Tool>> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Page {
        tools: Vec<Tool>,
        next_cursor: Option<String>,
    }
    let mut tools = Vec::new();
    let mut params = json!({});
    loop {
        let result = session.request("tools/list", Some(&params), PATIENCE).await?;
        let page: Page = serde_json::from_str(result.get())?;
        tools.extend(page.tools);
        match page.next_cursor {
            Some(cursor) => params = json!({ "cursor": cursor }),
            None => return Ok(tools),
        }
    }
}

/// Calls a tool; gives the text of its answer, and whether it says that it failed.
pub(crate) async fn call_tool(session: &Session, tool: &str, arguments: &Value) -> Result<(String, bool)> {
    let params = json!({ "name": tool, "arguments": arguments });
    let result = session
        .request("tools/call", Some(&params), PATIENCE)
        .await
        .with_context(|| format!("tools/call {tool}"))?;
    let result: Value = serde_json::from_str(result.get())?;
    let blocks = result["content"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text: Vec<String> = blocks
        .iter()
        .map(|block| {
            block["text"]
                .as_str()
                .map_or_else(|| format!("[{}]", block["type"].as_str().unwrap_or("?")), str::to_owned)
        })
        .collect();
    Ok((text.join("\n"), result["isError"] == true))
}

/// The registry as a table.
pub(crate) fn print_instances(instances: &[Instance]) {
    if instances.is_empty() {
        println!("no server is registered");
        return;
    }
    let width = instances.iter().map(|i| i.server_name.as_str().len()).max().unwrap_or_default();
    println!("{:<width$}  {:<52}  DESCRIPTION", "SERVER NAME", "INSTANCE");
    for instance in instances {
        let name = instance.server_name.as_str();
        println!(
            "{name:<width$}  {:<52}  {}",
            instance.server_id.as_str(),
            first_line(&instance.online.description)
        );
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
