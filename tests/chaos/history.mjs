// Checks that every call of the ledger has exactly one row, with the end that its parties know, and that there are no
// other rows.

import { setTimeout as pause } from 'node:timers/promises';
import { eventually } from '../support/check.mjs';

/** The row of a call whose node died is written by another node a minute after its end. */
const WRITTEN_WITHIN_MS = 90_000;

/** An attempt has been executed within this time, even if it waits for Redis. */
const CARRIED_OUT_WITHIN_MS = 10_000;
/** Rows have Redis' time; all clocks are this machine's. */
const CLOCKS_DIFFER_MS = 500;

const STATUS = { declined: 'rejected', cancelled: 'missed', no_answer: 'missed', busy: 'missed', offline: 'missed' };

/**
 * Records missing and wrong rows in the ledger, after there was time to write them. `faultAt` returns the fault of a
 * time.
 */
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
    if (wrong) ledger.note('history', `${call.id} (${call.reason}): ${wrong}`, { fault: call.fault, call });
  }
  const unanswered = [...ledger.unanswered];
  for (const [id, [row]] of rows) {
    if (ledger.calls.has(id)) continue;
    const made = unanswered.findIndex((attempt) => isOf(attempt, row));
    if (made >= 0) unanswered.splice(made, 1);
    else ledger.note('history', `${id} (${JSON.stringify(row)}) is a call that nobody knows of`, { fault: faultAt(row.createdAt) });
  }
}

/**
 * Whether a row may be of an attempt whose reply was lost, and that was repeated after Redis had lost it: its client
 * knows the call by the second id only.
 */
function isOf({ caller, callee, callType, sentAt }, row) {
  const isTheirs = row.caller === caller && row.receiver === callee && row.callType === callType;
  const isOfThen = row.createdAt >= sentAt - CLOCKS_DIFFER_MS && row.createdAt <= sentAt + CARRIED_OUT_WITHIN_MS;
  return isTheirs && isOfThen && row.status === 'missed' && row.hasEnded;
}

async function readRows(postgres) {
  const columns = 'id, caller, receiver, call_type, status, end_reason, extract(epoch from created_at) * 1000, ended_at IS NOT NULL';
  const text = await postgres.ask(`SELECT ${columns} FROM calls`);
  const rows = new Map();
  for (const line of text.split('\n').filter(Boolean)) {
    const [id, caller, receiver, callType, status, reason, createdAt, hasEnded] = line.split('|');
    const row = { caller, receiver, callType, status, reason, createdAt: Number(createdAt), hasEnded: hasEnded === 't' };
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
  // A call that lost a party may have ended before or after the answer.
  if (reason !== 'connection_lost' && status !== expected) return `its status is ${status}`;
  if (!hasEnded) return 'it has no end';
  return undefined;
}
