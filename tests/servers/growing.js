// An MCP server made with the official SDK, over Streamable HTTP, whose list of tools grows while a session uses it:
//
//   node growing.js PORT
const { randomUUID } = require("node:crypto");
const { createServer } = require("node:http");
const { setTimeout } = require("node:timers/promises");
const { McpServer } = require("@modelcontextprotocol/sdk/server/mcp.js");
const { StreamableHTTPServerTransport } = require("@modelcontextprotocol/sdk/server/streamableHttp.js");

const sessions = new Map();
const text = (text) => ({ content: [{ type: "text", text }] });

async function begin() {
  const session = {};
  const server = new McpServer({ name: "growing", version: "1" });
  server.registerTool("grow", { description: "Adds the tool grown" }, async () => {
    // What concerns no request goes out on the session's own stream: without one the SDK drops it.
    while (!session.stream?.headersSent) await setTimeout(5);
    server.registerTool("grown", { description: "Was added" }, async () => text("grown"));
    return text("done");
  });
  session.transport = new StreamableHTTPServerTransport({
    sessionIdGenerator: randomUUID,
    onsessioninitialized: (id) => sessions.set(id, session),
  });
  await server.connect(session.transport);
  return session;
}

createServer(async (request, response) => {
  const session = sessions.get(request.headers["mcp-session-id"]) ?? await begin();
  if (request.method === "GET") session.stream = response;
  await session.transport.handleRequest(request, response);
}).listen(Number(process.argv[2]), "127.0.0.1");
