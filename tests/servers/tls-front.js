// TLS before an HTTP server on this machine: node tls-front.js CERT KEY PORT, and its own port on stdout.
const { readFileSync } = require("node:fs");
const http = require("node:http");
const https = require("node:https");

const [cert, key, port] = process.argv.slice(2);
const front = https.createServer({ cert: readFileSync(cert), key: readFileSync(key) }, (request, response) => {
  const { method, url, headers } = request;
  const behind = http.request({ host: "127.0.0.1", port, method, path: url, headers }, (answer) => {
    response.writeHead(answer.statusCode, answer.headers);
    response.flushHeaders();
    answer.pipe(response);
  });
  behind.on("error", () => response.destroy());
  response.on("close", () => behind.destroy());
  request.pipe(behind);
});
front.listen(0, "127.0.0.1", () => console.log(front.address().port));
