// An MCP server made with the official SDK, with one tool that does what it is told about cancellation.
const { appendFileSync } = require("node:fs");
const { McpServer } = require("@modelcontextprotocol/sdk/server/mcp.js");
const { StdioServerTransport } = require("@modelcontextprotocol/sdk/server/stdio.js");

const journal = process.argv[2];
const server = new McpServer({ name: "cancellable", version: "1" });
server.registerTool("wait", { description: "Waits until it is cancelled" }, async ({ signal }) => {
  appendFileSync(journal, "started\n");
  await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
  appendFileSync(journal, `stopped: ${signal.reason}\n`);
  return { content: [] };
});
server.connect(new StdioServerTransport());
