//! mcp-mqtt-transport
