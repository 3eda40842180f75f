// Talks to node_http.js: keep-alive and short requests, a large answer, a large upload, fetch, a refused port.
'use strict';
const http = require('node:http'), net = require('node:net'), crypto = require('node:crypto'), assert = require('node:assert');
const port = Number(process.argv[2]), closed = Number(process.argv[3]), cluster = Number(process.argv[4] ?? 0);
const base = `http://127.0.0.1:${port}`;

function request(options, body) {
  return new Promise((resolve, reject) => {
    const r = http.request({ host: '127.0.0.1', port, ...options }, (response) => {
      const parts = [];
      response.on('data', (part) => parts.push(part));
      response.on('end', () => resolve({ body: Buffer.concat(parts), worker: response.headers['x-worker'] }));
      response.on('error', reject);
    });
    r.on('error', reject);
    r.end(body);
  });
}

async function main() {
  const workers = new Set();
  for (const agent of [new http.Agent({ keepAlive: true, maxSockets: 8 }), new http.Agent({ keepAlive: false })]) {
    const all = await Promise.all(Array.from({ length: 200 }, (_, i) => request({ agent, path: `/?size=${i * 100}` })));
    all.forEach((one, i) => { assert.equal(one.body.length, i * 100); workers.add(one.worker); });
    agent.destroy();
  }
  const large = await request({ path: '/?size=20000000' });
  assert(large.body.equals(Buffer.alloc(20000000, 'node')));
  const up = crypto.randomBytes(10000000);
  const sum = await request({ method: 'POST', path: '/' }, up);
  assert.equal(sum.body.toString(), crypto.createHash('sha256').update(up).digest('hex'));
  const fetched = await fetch(`${base}/?size=1000`);
  assert.equal((await fetched.arrayBuffer()).byteLength, 1000);
  const refused = await new Promise((resolve) => net.connect(closed, '127.0.0.1').on('error', (e) => resolve(e.code)));
  assert.equal(refused, 'ECONNREFUSED');
  if (cluster) assert(workers.size > 1, `all answers came from one worker of ${cluster}`);
  console.log(`${workers.size} workers answered`);
  process.exit(0);
}
main().catch((error) => { console.error(error); process.exit(1); });
