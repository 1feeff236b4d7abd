//! mcp-mqtt-operator
