// Every call of the ledger has its one row, with the end that its parties were told, and there are no others.

import { setTimeout as pause } from 'node:timers/promises';
import { eventually } from '../support/check.mjs';

/** A record whose node died is written down by another a minute after its end. */
const WRITTEN_WITHIN_MS = 90_000;

const STATUS = { declined: 'rejected', cancelled: 'missed', no_answer: 'missed', busy: 'missed', offline: 'missed' };

/** Notes in the ledger what is missing or wrong, once there was time to write it. `faultAt` says which fault was on. */
export async function checkHistory(postgres, ledger, faultAt) {
  const ended = [...ledger.calls.values()].filter((call) => call.reason);
  let rows = new Map();
  const isWhole = async () => {
    rows = await readRows(postgres);
    return ended.every((call) => rows.get(call.id)?.[0]?.reason === call.reason);
  };
  const lookNowAndThen = async () => (await isWhole()) || pause(500);
  await eventually(lookNowAndThen, 'history is whole', WRITTEN_WITHIN_MS).catch(() => {});
  for (const call of ended) {
    const wrong = whatIsWrong(call, rows.get(call.id) ?? []);
    if (wrong) ledger.note('history', `${call.id} (${call.reason}): ${wrong}`, call.fault);
  }
  for (const [id, [{ createdAt, reason }]] of rows) {
    if (!ledger.calls.has(id)) ledger.note('history', `${id} (${reason}) is a call that nobody knows of`, faultAt(createdAt));
  }
  return ended.length;
}

async function readRows(postgres) {
  const columns = 'id, caller, receiver, status, end_reason, extract(epoch from created_at) * 1000, ended_at IS NOT NULL';
  const text = await postgres.ask(`SELECT ${columns} FROM calls`);
  const rows = new Map();
  for (const line of text.split('\n').filter(Boolean)) {
    const [id, caller, receiver, status, reason, createdAt, hasEnded] = line.split('|');
    const row = { caller, receiver, status, reason, createdAt: Number(createdAt), hasEnded: hasEnded === 't' };
    rows.set(id, [...(rows.get(id) ?? []), row]);
  }
  return rows;
}

function whatIsWrong(call, rows) {
  if (rows.length !== 1) return `${rows.length} rows`;
  const [{ caller, receiver, status, reason, hasEnded }] = rows;
  if (caller !== call.caller.userId || receiver !== call.callee.userId) return `between ${caller} and ${receiver}`;
  if (reason !== call.reason) return `the row says ${reason || 'nothing'}`;
  const expected = STATUS[reason] ?? 'ended';
  // One that lost a party may have ended before the answer or after it.
  if (reason !== 'connection_lost' && status !== expected) return `its status is ${status}`;
  if (!hasEnded) return 'it has no end';
  return undefined;
}
