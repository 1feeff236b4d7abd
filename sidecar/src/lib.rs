//! mcp-mqtt-sidecar
