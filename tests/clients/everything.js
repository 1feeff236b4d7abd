// node everything.js BROKER_URL SERVER_NAME_FILTER
// Finds an instance of server-everything in the broker's registry, uses it through the official MCP SDK, and
// prints what it saw as one JSON object.
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import {
  CreateMessageRequestSchema,
  ElicitRequestSchema,
  ListRootsRequestSchema,
} from '@modelcontextprotocol/sdk/types.js';
import { connect, discover, MqttClientTransport } from './transport.js';

const [url, filter] = process.argv.slice(2);
const clientId = `mqttjs-${process.pid}-${Date.now()}`;
const seen = { sampling: 0, roots: 0, elicitation: 0, progress: 0 };

const broker = await connect(url, clientId);
const instance = await discover(broker, filter, 15_000);

const mcp = new Client(
  { name: 'mqttjs-test-client', version: '1.0.0' },
  { capabilities: { sampling: {}, elicitation: {}, roots: { listChanged: true } } },
);
mcp.setRequestHandler(CreateMessageRequestSchema, () => {
  seen.sampling += 1;
  return { role: 'assistant', model: 'none', content: { type: 'text', text: 'sampled over MQTT' } };
});
mcp.setRequestHandler(ElicitRequestSchema, () => {
  seen.elicitation += 1;
  return { action: 'decline' };
});
mcp.setRequestHandler(ListRootsRequestSchema, () => {
  seen.roots += 1;
  return { roots: [{ uri: 'file:///srv/data', name: 'data' }] };
});

await mcp.connect(new MqttClientTransport(broker, clientId, instance));
const { tools } = await mcp.listTools();
const names = tools.map((tool) => tool.name);
const call = (name, args, options) => mcp.callTool({ name, arguments: args }, undefined, options);

const echo = await call('echo', { message: 'hello from MQTT.js' });
const long = await call(
  'trigger-long-running-operation',
  { duration: 1, steps: 4 },
  { onprogress: () => (seen.progress += 1) },
);
const sampled = await call('trigger-sampling-request', { prompt: 'say something', maxTokens: 10 });

let refused;
try {
  const result = await call('no-such-tool', {});
  refused = result.isError ? 'isError' : 'answered';
} catch (error) {
  refused = `error ${error.code}`;
}
const server = mcp.getServerVersion();
await mcp.close();
await broker.endAsync();

console.log(
  JSON.stringify({
    instance,
    server,
    tools: names,
    echo: echo.content[0].text,
    long: long.content[0].text,
    sampled: sampled.content[0].text,
    refused,
    seen,
  }),
);
