// An HTTP server, alone or as a cluster whose workers get the listener from their primary: node_http.js PORT WORKERS.
'use strict';
const cluster = require('node:cluster'), http = require('node:http'), crypto = require('node:crypto');
const [port, workers] = process.argv.slice(2).map(Number);

function serve() {
  http.createServer((request, response) => {
    const size = Number(new URL(request.url, 'http://x').searchParams.get('size') ?? 100);
    if (request.method === 'POST') {
      const hash = crypto.createHash('sha256');
      request.on('data', (part) => hash.update(part));
      request.on('end', () => response.end(hash.digest('hex')));
      return;
    }
    response.setHeader('x-worker', String(process.pid));
    response.end(Buffer.alloc(size, 'node'));
  }).listen(port, '127.0.0.1', () => console.log('listening', process.pid));
}

if (workers && cluster.isPrimary) {
  for (let i = 0; i < workers; i++) cluster.fork();
  // One that dies is replaced, as in node's own examples.
  let ending = false;
  cluster.on('exit', () => ending || cluster.fork());
  process.on('SIGTERM', () => { ending = true; cluster.disconnect(() => process.exit(0)); });
} else {
  serve();
  process.on('SIGTERM', () => process.exit(0));
}
