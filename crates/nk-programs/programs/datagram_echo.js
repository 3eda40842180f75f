// node's dgram: `server PORT` answers until it is killed; `client PORT` asks 300 times and checks each answer.
const dgram = require('dgram');
const [role, port] = [process.argv[2], Number(process.argv[3])];
const socket = dgram.createSocket('udp4');
if (role === 'server') {
  socket.on('message', (message, from) => socket.send(message, from.port, from.address));
  socket.bind(port, '127.0.0.1', () => console.log('ready'));
} else {
  let n = 0, timer;
  const ask = () => {
    clearTimeout(timer);
    socket.send('message ' + n, port, '127.0.0.1');
    timer = setTimeout(ask, 500); // a datagram may be lost
  };
  socket.on('message', (message) => {
    if (message.toString() !== 'message ' + n) return;
    if (++n < 300) return ask();
    clearTimeout(timer);
    console.log(n + ' answers');
    socket.close();
  });
  ask();
}
