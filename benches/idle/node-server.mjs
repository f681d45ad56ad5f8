// The server that people write by hand: one Socket.IO process that joins each user to a room.
import { createServer } from 'node:http';
import { Server } from 'socket.io';

const http = createServer();
const io = new Server(http, { transports: ['websocket'] });
const users = new Map();

io.on('connection', (socket) => {
  const userId = socket.handshake.auth.userId;
  socket.join(`user:${userId}`);
  users.set(userId, socket.id);
  socket.on('call:initiate', ({ toUserId, ...call }) => {
    io.to(`user:${toUserId}`).emit('call:incoming', { fromUserId: userId, ...call });
  });
  socket.on('disconnect', () => users.delete(userId));
});

http.listen(0, '127.0.0.1', () => {
  console.log(`ready: http://127.0.0.1:${http.address().port}/`);
});
