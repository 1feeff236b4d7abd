// MCP over MQTT as a transport of the official SDK's Client, over MQTT.js: written from the specification's
// text and sharing no code with this project, so that the gateway is judged by somebody else's MCP and MQTT.
import mqtt from 'mqtt';

const userProperties = (clientId) => ({
  'MCP-COMPONENT-TYPE': 'mcp-client',
  'MCP-MQTT-CLIENT-ID': clientId,
});

/** Waits for the first retained presence that matches `filter`; answers `{serverId, serverName, online}`. */
export async function discover(client, filter, timeoutMs) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no presence for ${filter} in ${timeoutMs} ms`)), timeoutMs);
    client.on('message', (topic, payload) => {
      if (!topic.startsWith('$mcp-server/presence/') || payload.length === 0) return;
      clearTimeout(timer);
      const [serverId, ...name] = topic.split('/').slice(2);
      resolve({ serverId, serverName: name.join('/'), online: JSON.parse(payload.toString()) });
    });
    client.subscribe(`$mcp-server/presence/+/${filter}`, { qos: 1 }, (error) => error && reject(error));
  });
}

/** Connects as an MCP client: MQTT 5, no session, `notifications/disconnected` as the will. */
export function connect(url, clientId) {
  return mqtt.connectAsync(url, {
    protocolVersion: 5,
    clientId,
    clean: true,
    reconnectPeriod: 0,
    properties: {
      sessionExpiryInterval: 0,
      userProperties: { 'MCP-COMPONENT-TYPE': 'mcp-client', 'MCP-META': '{}' },
    },
    will: {
      topic: `$mcp-client/presence/${clientId}`,
      payload: Buffer.from(JSON.stringify({ jsonrpc: '2.0', method: 'notifications/disconnected' })),
      qos: 1,
      retain: false,
      properties: { userProperties: userProperties(clientId) },
    },
  });
}

/** The SDK's Transport interface over one MQTT connection and one server instance. */
export class MqttClientTransport {
  constructor(client, clientId, { serverId, serverName }) {
    this.client = client;
    this.clientId = clientId;
    this.control = `$mcp-server/${serverId}/${serverName}`;
    this.capability = `$mcp-server/capability/${serverId}/${serverName}`;
    this.presence = `$mcp-server/presence/${serverId}/${serverName}`;
    this.rpc = `$mcp-rpc/${clientId}/${serverId}/${serverName}`;
  }

  async start() {
    this.client.on('message', (topic, payload) => this.receive(topic, payload));
    this.client.on('close', () => this.onclose?.());
    this.client.on('error', (error) => this.onerror?.(error));
    await this.client.subscribeAsync({
      [this.rpc]: { qos: 1, nl: true },
      [this.capability]: { qos: 1 },
      [this.presence]: { qos: 1 },
    });
  }

  receive(topic, payload) {
    if (topic === this.presence) {
      if (payload.length === 0) this.onclose?.();
      return;
    }
    if (topic !== this.rpc && topic !== this.capability) return;
    const message = JSON.parse(payload.toString());
    if (message.method === 'notifications/disconnected') this.onclose?.();
    else this.onmessage?.(message);
  }

  async send(message) {
    const topic = message.method === 'initialize' ? this.control : this.rpc;
    await this.client.publishAsync(topic, JSON.stringify(message), {
      qos: 1,
      properties: { userProperties: userProperties(this.clientId) },
    });
  }

  async close() {
    await this.client.publishAsync(
      `$mcp-client/presence/${this.clientId}`,
      JSON.stringify({ jsonrpc: '2.0', method: 'notifications/disconnected' }),
      { qos: 1, properties: { userProperties: userProperties(this.clientId) } },
    );
    await this.client.unsubscribeAsync([this.rpc, this.capability, this.presence]);
    this.onclose?.();
  }
}
