//! mcp-mqtt-tests
