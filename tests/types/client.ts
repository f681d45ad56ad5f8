// A typical client. It is compiled, not run.

import { io, type Socket } from 'socket.io-client';
import type { Auth, CallPage, ClientToServerEvents, HttpApi, IceCandidate, Problem, ServerToClientEvents } from '../../web/protocol.js';

const auth: Auth = { userId: 'anna', deviceId: 'laptop' };
const socket: Socket<ServerToClientEvents, ClientToServerEvents> = io('http://127.0.0.1:3000', { auth });
const peer = new RTCPeerConnection();

export async function call(toUserId: string): Promise<string> {
  const { ok: hasServers, ...servers } = await socket.emitWithAck('ice:servers');
  if (hasServers && 'iceServers' in servers) peer.setConfiguration({ iceServers: servers.iceServers });
  const placed = await socket.emitWithAck('call:initiate', { toUserId, callType: 'video', callerInfo: { name: 'Anna' } });
  if (!placed.ok) {
    const wait: number | undefined = placed.error.retryAfterMs;
    throw new Error(placed.error.type === 'GLARE' ? 'they call too' : `${placed.error.message} ${wait ?? ''}`);
  }
  await peer.setLocalDescription();
  socket.emit('call:offer', { toUserId, offer: peer.localDescription!, callId: placed.callId }, (answer) => {
    if (!answer.ok) console.error(answer.error.message);
  });
  peer.onicecandidate = ({ candidate }) => socket.emit('call:ice-candidate', { toUserId, candidate }, () => {});
  return placed.callId;
}

socket.on('call:answer', ({ answer }) => peer.setRemoteDescription(answer as RTCSessionDescriptionInit));
socket.on('call:ice-candidate', ({ candidate }: { candidate: IceCandidate }) => candidate && peer.addIceCandidate(candidate));
socket.on('call:ended', ({ reason, duration }) => console.log(reason === 'answered_elsewhere', duration.toFixed()));
socket.on('presence:update', ({ userId, status }) => console.log(userId, status === 'busy'));
socket.on('connect', async () => {
  const synced = await socket.emitWithAck('call:sync', { callId: null });
  if (synced.ok && synced.call) console.log(synced.call.status, synced.call.graceEndsAt);
  const watched = await socket.emitWithAck('presence:subscribe', { userIds: ['ben'] });
  if (watched.ok) console.log(watched.presence['ben'] === 'online');
});

type Get<E extends keyof HttpApi> = HttpApi[E];

export async function history(query: Get<'GET /v1/calls'>['query']): Promise<CallPage> {
  const response = await fetch(`/v1/calls?userId=${encodeURIComponent(query.userId)}&limit=${query.limit ?? 50}`);
  if (!response.ok) throw new Error(((await response.json()) as Problem).field);
  const page = (await response.json()) as Get<'GET /v1/calls'>['answer'];
  console.log(page.calls[0]?.endReason, page.nextCursor);
  return page;
}
