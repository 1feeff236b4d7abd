//! mcp-mqtt-operator: `McpService` to Deployment.

pub mod cli;
