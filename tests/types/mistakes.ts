// Code that must not compile. TypeScript reports each expected error that does not occur.

import type { Socket } from 'socket.io-client';
import type { Auth, CallRecord, ClientToServerEvents, HttpApi, ServerToClientEvents } from '../../web/protocol.js';

declare const socket: Socket<ServerToClientEvents, ClientToServerEvents>;
const offer = { type: 'offer', sdp: '' };

// @ts-expect-error There is no such event.
socket.emit('call:dance', {}, () => {});
// @ts-expect-error There is no such event.
socket.on('call:dances', () => {});
// @ts-expect-error The type of the call is missing.
socket.emitWithAck('call:initiate', { toUserId: 'ben' });
// @ts-expect-error There are no such calls.
socket.emitWithAck('call:initiate', { toUserId: 'ben', callType: 'fax' });
// @ts-expect-error Users are named by a text.
socket.emitWithAck('call:end', { toUserId: 1 });
// @ts-expect-error It is called `offer`.
socket.emitWithAck('call:offer', { toUserId: 'ben', answer: offer });
// @ts-expect-error An offer has an SDP.
socket.emitWithAck('call:offer', { toUserId: 'ben', offer: { type: 'offer' } });
// @ts-expect-error A field that does not exist.
socket.emitWithAck('call:reject', { toUserId: 'ben', because: 'no' });
// @ts-expect-error A payload is needed.
socket.emitWithAck('presence:subscribe');
// @ts-expect-error An answer may be a refusal.
socket.emitWithAck('call:initiate', { toUserId: 'ben', callType: 'audio' }).then(({ callId }) => callId);
// @ts-expect-error There is no such field.
socket.on('call:incoming', ({ toUserId }) => toUserId);
// @ts-expect-error It may be missing.
socket.on('call:incoming', ({ callerInfo }) => callerInfo.name);
// @ts-expect-error There is no such reason.
socket.on('call:ended', ({ reason }) => reason === 'bored');
// @ts-expect-error There is no such error.
socket.on('call:error', ({ type }) => type === 'OOPS');

// @ts-expect-error A device has a name.
export const auth: Auth = { deviceId: 1 };
// @ts-expect-error The asking user is missing.
export const query: HttpApi['GET /v1/calls']['query'] = { limit: 5 };
// @ts-expect-error There is no such status.
export const status: CallRecord['status'] = 'lost';
// @ts-expect-error A live call has no end.
export const end = (record: CallRecord): number => record.endedAt;
