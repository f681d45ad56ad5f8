// A hand-written server in the design that switchboard replaces: Socket.IO with a room per user, a table of online users, a row
// per call. Several processes share a Redis through the usual adapter.
//
// PORT; REDIS_URL and ADAPTER (classic or sharded) for several processes; DATABASE_URL for history.

import { createServer } from 'node:http';
import { createAdapter, createShardedAdapter } from '@socket.io/redis-adapter';
import pg from 'pg';
import { createClient } from 'redis';
import { Server } from 'socket.io';

const { PORT = '0', REDIS_URL, ADAPTER = 'classic', DATABASE_URL } = process.env;

const http = createServer();
const io = new Server(http);

let redis;
if (REDIS_URL) {
  redis = createClient({ url: REDIS_URL, RESP: 3 });
  const subscriber = redis.duplicate();
  await Promise.all([redis.connect(), subscriber.connect()]);
  io.adapter(ADAPTER === 'sharded' ? createShardedAdapter(redis, subscriber) : createAdapter(redis, subscriber));
}

let pool;
if (DATABASE_URL) {
  pool = new pg.Pool({ connectionString: DATABASE_URL });
  await pool.query(
    `CREATE TABLE IF NOT EXISTS reference_calls (id bigserial PRIMARY KEY, caller text, receiver text, call_type text,
       status text, duration int, started_at timestamptz, ended_at timestamptz, created_at timestamptz DEFAULT now())`,
  );
}

const online = new Map();
const isOnline = async (userId) => (redis ? (await redis.hGet('online', userId)) !== null : online.has(userId));
const log = (error) => console.error(error.message);

io.on('connection', (socket) => {
  let userId;
  const peers = new Map();

  socket.on('user-connected', async (named) => {
    userId = typeof named === 'string' ? named : named.userId;
    socket.join(`user:${userId}`);
    online.set(userId, socket.id);
    await redis?.hSet('online', userId, socket.id);
  });

  socket.on('call:initiate', async ({ toUserId, callType, callerInfo }) => {
    if (!(await isOnline(toUserId))) {
      socket.emit('call:error', { type: 'RECIPIENT_OFFLINE', message: 'User is currently offline', toUserId });
      return;
    }
    const timestamp = Date.now();
    io.to(`user:${toUserId}`).emit('call:incoming', { fromUserId: userId, callType, callerInfo, timestamp });
    pool
      ?.query('INSERT INTO reference_calls (caller, receiver, call_type, status) VALUES ($1, $2, $3, $4) RETURNING id', [
        userId, toUserId, callType, 'pending',
      ])
      .then(({ rows }) => peers.set(toUserId, rows[0].id), log);
  });

  socket.on('call:offer', ({ toUserId, offer }) => {
    io.to(`user:${toUserId}`).emit('call:offer', { fromUserId: userId, offer, timestamp: Date.now() });
  });

  socket.on('call:answer', ({ toUserId, answer }) => {
    io.to(`user:${toUserId}`).emit('call:answer', { fromUserId: userId, answer, timestamp: Date.now() });
    pool
      ?.query(
        `UPDATE reference_calls SET status = 'answered', started_at = now()
         WHERE id = (SELECT max(id) FROM reference_calls WHERE caller = $1 AND receiver = $2)`,
        [toUserId, userId],
      )
      .catch(log);
  });

  socket.on('call:ice-candidate', ({ toUserId, candidate }) => {
    io.to(`user:${toUserId}`).emit('call:ice-candidate', { fromUserId: userId, candidate });
  });

  for (const [event, status] of [['call:reject', 'rejected'], ['call:busy', 'missed']]) {
    socket.on(event, ({ toUserId, reason }) => {
      const name = event === 'call:reject' ? 'call:rejected' : 'call:busy';
      io.to(`user:${toUserId}`).emit(name, { fromUserId: userId, reason, timestamp: Date.now() });
      pool?.query('UPDATE reference_calls SET status = $1, ended_at = now() WHERE id = $2', [status, peers.get(toUserId)]).catch(log);
    });
  }

  socket.on('call:end', ({ toUserId, duration = 0 }) => {
    io.to(`user:${toUserId}`).emit('call:ended', { fromUserId: userId, duration, timestamp: Date.now() });
    pool
      ?.query("UPDATE reference_calls SET status = 'ended', ended_at = now(), duration = $1 WHERE id = $2", [
        duration, peers.get(toUserId),
      ])
      .catch(log);
  });

  socket.on('disconnect', async () => {
    if (!userId) return;
    online.delete(userId);
    await redis?.hDel('online', userId);
  });
});

http.listen(Number(PORT), '127.0.0.1', () => console.log(`ready: http://127.0.0.1:${http.address().port}/`));
