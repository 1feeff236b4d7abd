// A server on the SDK's second line, for a test of what the gateway makes of revision 2026-07-28:
//
//   node server.mjs stdio|http [--port=N] [--dual]
//
// Without --dual it refuses `initialize`, as a server that speaks only 2026-07-28 does.

import { createServer } from 'node:http';
import { toNodeHandler } from '@modelcontextprotocol/node';
import {
  McpServer, ResourceTemplate, acceptedContent, completable, createMcpHandler, inputRequired, inputResponse,
} from '@modelcontextprotocol/server';
import { serveStdio } from '@modelcontextprotocol/server/stdio';
import { z } from 'zod';

const [transport, ...options] = process.argv.slice(2);
const port = Number(options.find((option) => option.startsWith('--port='))?.slice('--port='.length) ?? 0);
const serving = options.includes('--dual') ? {} : { legacy: 'reject' };

let counter = 0;
let extra = false;
// Over HTTP every request has a server of its own; the handler's bus reaches those that listen.
let notify;

const text = (value) => ({ content: [{ type: 'text', text: typeof value === 'string' ? value : JSON.stringify(value) }] });

function build() {
  const server = new McpServer({ name: 'modern', version: '2.0.0' }, {
    instructions: 'Call echo.',
    capabilities: {
      logging: {}, tools: { listChanged: true }, prompts: { listChanged: true },
      resources: { listChanged: true, subscribe: true },
    },
  });

  server.registerTool('echo', { description: 'Says it again', inputSchema: z.object({ message: z.string() }) },
    async ({ message }) => text(message));
  server.registerTool('meta', { description: 'What came with the request' },
    async (context) => text({ meta: context.mcpReq._meta ?? null, envelope: context.mcpReq.envelope ?? null }));
  server.registerTool('region', {
    description: 'A parameter that goes into a header',
    inputSchema: z.object({ region: z.string().meta({ 'x-mcp-header': 'Region' }), count: z.number().int().optional().meta({ 'x-mcp-header': 'Count' }) }),
  }, async ({ region, count }) => text(`${region} ${count ?? '-'}`));
  server.registerTool('numbers', { description: 'A structured result that is no object', outputSchema: z.array(z.number()) },
    async () => ({ ...text('1, 2, 3'), structuredContent: [1, 2, 3] }));

  server.registerTool('elicit', { description: 'Asks the user for a name' }, async (context) => {
    const answer = inputResponse(context.mcpReq.inputResponses, 'who');
    if (answer.kind === 'missing') {
      return inputRequired({
        requestState: 'round "1"',
        inputRequests: {
          who: inputRequired.elicit({
            message: 'Who are you?',
            requestedSchema: { type: 'object', properties: { name: { type: 'string' } }, required: ['name'] },
          }),
        },
      });
    }
    const accepted = acceptedContent(context.mcpReq.inputResponses, 'who');
    return text({ ...answer, name: accepted?.name, state: context.mcpReq.requestState() });
  });
  server.registerTool('visit', { description: 'Sends the user to a page' }, async (context) => {
    const answer = inputResponse(context.mcpReq.inputResponses, 'page');
    if (answer.kind !== 'missing') return text(answer);
    return inputRequired({ inputRequests: { page: inputRequired.elicitUrl({ message: 'Sign in', url: 'https://example.com/' }) } });
  });
  server.registerTool('sample', { description: 'Asks the model of the client and lists its roots' }, async (context) => {
    const responses = context.mcpReq.inputResponses;
    const sampled = inputResponse(responses, 'said');
    if (sampled.kind === 'missing') {
      return inputRequired({
        inputRequests: {
          said: inputRequired.createMessage({ maxTokens: 10, messages: [{ role: 'user', content: { type: 'text', text: 'Hi' } }] }),
          where: inputRequired.listRoots(),
        },
      });
    }
    return text({ said: responses.said, where: responses.where });
  });
  server.registerTool('endless', { description: 'Is never content with an answer' },
    async () => inputRequired({ inputRequests: { again: inputRequired.listRoots() } }));
  server.registerTool('retry', { description: 'Wants to be called again, three times' }, async (context) => {
    const round = Number(context.mcpReq.requestState() ?? 0);
    return round < 3 ? inputRequired({ requestState: String(round + 1) }) : text(`round ${round}`);
  });

  server.registerTool('steps', { description: 'Tells of its progress', inputSchema: z.object({ count: z.number().int() }) },
    async ({ count }, context) => {
      const { progressToken } = context.mcpReq._meta ?? {};
      for (let step = 1; step <= count && progressToken !== undefined; step += 1) {
        await context.mcpReq.notify({ method: 'notifications/progress', params: { progressToken, progress: step, total: count } });
      }
      return text(`${count} steps`);
    });
  server.registerTool('log', { description: 'Writes to the log' }, async (context) => {
    await context.mcpReq.log('debug', 'a detail');
    await context.mcpReq.log('warning', 'a warning');
    return text('logged');
  });
  server.registerTool('hang', { description: 'Answers when it is cancelled' }, async (context) => {
    await new Promise((resolve) => {
      if (context.mcpReq.signal.aborted) resolve();
      context.mcpReq.signal.addEventListener('abort', resolve);
    });
    process.stderr.write('hang was cancelled\n');
    return text('cancelled');
  });
  server.registerTool('exit', { description: 'Ends the process' }, async () => process.exit(7));

  const added = server.registerTool('extra', { description: 'There now and then' }, async () => text('extra'));
  if (!extra) added.disable();
  server.registerTool('toggle', { description: 'Adds a tool, or takes it away' }, async () => {
    extra = !extra;
    added.update({ enabled: extra });
    notify?.toolsChanged();
    return text(String(extra));
  });
  server.registerTool('count', { description: 'Changes the resource test://counter' }, async () => {
    counter += 1;
    if (notify) notify.resourceUpdated('test://counter');
    else await server.server.sendResourceUpdated({ uri: 'test://counter' });
    return text(String(counter));
  });

  server.registerPrompt('greet', {
    description: 'A greeting', argsSchema: z.object({ name: completable(z.string(), (start) => ['Ada', 'Alan', 'Grace'].filter((name) => name.startsWith(start))) }),
  }, async ({ name }) => ({ messages: [{ role: 'user', content: { type: 'text', text: `Hello ${name}` } }] }));
  server.registerResource('counter', 'test://counter', { mimeType: 'text/plain' },
    async (uri) => ({ contents: [{ uri: uri.href, text: String(counter) }] }));
  server.registerResource('page', new ResourceTemplate('test://pages/{name}', { list: undefined }), {},
    async (uri, { name }) => ({ contents: [{ uri: uri.href, text: `page ${decodeURIComponent(name)}` }] }));
  return server;
}

if (transport === 'http') {
  const handler = createMcpHandler(build, serving);
  notify = handler.notify;
  createServer(toNodeHandler(handler)).listen(port, '127.0.0.1');
} else {
  serveStdio(build, serving);
}
