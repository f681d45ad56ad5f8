// What travels between clients and the server. Made from /asyncapi.json and /openapi.json by scripts/types.mjs:
// change the server and run `make types`, not this file.
//
//     import { io, type Socket } from 'socket.io-client';
//     import type { Auth, ClientToServerEvents, ServerToClientEvents } from './protocol';
//
//     const auth: Auth = { userId: 'anna', deviceId: 'laptop' };
//     const socket: Socket<ServerToClientEvents, ClientToServerEvents> = io(url, { auth });

/** A request as it arrived. */
export type Arrival = {
  /** The node that answers. */
  node: NodeId;
  /** The address of the connection's other end. */
  peer: string;
  /** Whether that is a trusted proxy. */
  isTrusted: boolean;
  /** The address that the request counts for; a network for IPv6. */
  address: string;
  /** The headers of proxies, and `host`. */
  forwarded: Record<string, string>;
};

/** What a client says when it connects. */
export type Auth = {
  deviceId?: DeviceId;
  /** Who you are, where tokens are checked (`jwt` mode): a JWT whose `sub` is the user's id. `userId` is not needed then. */
  token?: string;
  userId?: UserId;
};

/** The calls that were made in one bucket of time. */
export type Bucket = unknown;

export type CallId = string;

/** A page of calls, newest first. */
export type CallPage = {
  calls: CallRecord[];
  /** Where the next page begins; null on the last one. */
  nextCursor: string | null;
};

/** The row of a call. */
export type CallRecord = {
  id: CallId;
  caller: UserId;
  receiver: UserId;
  callType: CallType;
  status: CallStatus;
  endReason: EndReason | null;
  /** Whole seconds from the answer to the end; null if it was never answered or is live. */
  duration: number | null;
  startedAt: Timestamp | null;
  endedAt: Timestamp | null;
  createdAt: Timestamp;
  updatedAt: Timestamp;
};

/** Statistics of calls. */
export type CallStats = {
  total: Summary;
  /** In order; those without a call are left out. */
  buckets: Bucket[];
};

/** `pending`: it rings. `answered`: it goes on. `rejected`: it was declined. `missed`: it ended before an answer in any other way. `ended`: it ended after an answer. */
export type CallStatus = 'pending' | 'answered' | 'rejected' | 'missed' | 'ended';

export type CallType = 'audio' | 'video';

/** A call as one of its parties may see it: the answer to `call:sync`. */
export type CallView = {
  callId: CallId;
  callType: CallType;
  caller: UserId;
  callerInfo?: CallerInfo;
  createdAt: Timestamp;
  endedAt?: Timestamp;
  /** End of ringing. */
  expiresAt?: Timestamp;
  /** End of the grace period of the other party, if that lost its connection. */
  graceEndsAt?: Timestamp;
  reason?: EndReason;
  receiver: UserId;
  startedAt?: Timestamp;
  status: CallStatus;
};

/** At most 16384 bytes of JSON. Any fields more are passed on. */
export type CallerInfo = {
  /** What to show of the caller. */
  name?: string;
  /** Where the caller's picture is. */
  pic?: string;
};

/** Keep it for as long as your page or app lives, reconnects included. */
export type DeviceId = string;

/** Why a call ended. */
export type EndReason = 'completed' | 'declined' | 'cancelled' | 'no_answer' | 'busy' | 'offline' | 'connection_lost' | 'superseded' | 'terminated' | 'max_duration';

/** The payload of `call:error`, and `error` in an ack. */
export type ErrorBody = {
  callId?: CallId;
  event: string;
  message: string;
  retryAfterMs?: number;
  toUserId?: UserId;
  type: ErrorType;
};

/** The `type` of a `call:error`. It determines whether a retry makes sense. */
export type ErrorType = 'RECIPIENT_OFFLINE' | 'UNAUTHENTICATED' | 'FORBIDDEN' | 'INVALID_PAYLOAD' | 'PAYLOAD_TOO_LARGE' | 'NO_ACTIVE_CALL' | 'ALREADY_ANSWERED' | 'CALL_IN_PROGRESS' | 'GLARE' | 'SELF_CALL' | 'RATE_LIMITED' | 'TEMPORARILY_UNAVAILABLE';

/** As `RTCPeerConnection` makes it, at most 4096 bytes of JSON; null or an empty text is the end of candidates. Any fields more are passed on. */
export type IceCandidate = {
  candidate: string;
  sdpMLineIndex?: number | null;
  sdpMid?: string | null;
  usernameFragment?: string | null;
} | null | '';

/** An entry of `iceServers`, in the form of `RTCPeerConnection`. An entry with a credential is a relay. */
export type IceServer = {
  credential?: string;
  urls: string[];
  username?: string;
};

/** STUN and TURN servers. */
export type IceServers = {
  iceServers: IceServer[];
  /** For how many seconds the servers may be used. */
  ttl: number;
};

/** A live call. */
export type LiveCall = unknown;

/** A part of the live calls of all nodes. */
export type LiveCalls = {
  calls: LiveCall[];
  /** Where to go on; null at the end. */
  nextCursor: string | null;
};

/** One running process of this service. */
export type NodeId = string;

/** Whom an order went to. */
export type Ordered = {
  /** On how many nodes the user has sockets. */
  nodes: number;
};

/** Percentiles by the nearest-rank method. */
export type Percentiles = {
  p50: number;
  p90: number;
  p99: number;
};

/** The presence of a user. */
export type Presence = 'online' | 'offline' | 'busy';

/** The presence of each user that was asked for. */
export type PresenceOfUsers = {
  presence: Record<string, Presence>;
};

/** The body of an error. */
export type Problem = {
  type: string;
  /** The status in words. */
  title: string;
  status: number;
  /** The problem, in words. */
  detail: string;
  /** The parameter at fault. */
  field?: string;
};

/** The ack of an event that was not carried out. */
export type Refusal = {
  error: ErrorBody;
  ok: false;
};

/** Which of the two parties. */
export type Role = 'caller' | 'callee';

/** As `RTCPeerConnection` makes it. Any fields more are passed on. */
export type SessionDescription = {
  /** Counted in bytes of UTF-8. */
  sdp: string;
  type: string;
};

/** The cause of one version. */
export type Step = {
  version: number;
  at: Timestamp;
  what: What;
  /** The acting or affected party; absent for time-outs and operators. */
  by?: Role;
  /** The device of that party, if it has an id. Over HTTP only that party sees it. */
  device?: DeviceId;
  /** The node that decided it. */
  node: NodeId;
  /** Set on the step that ended the call. */
  reason?: EndReason;
};

/** Statistics of some calls. */
export type Summary = {
  calls: number;
  /** How many of them were answered. */
  answered: number;
  /** The share of answered calls among those that do not ring any more; null if there are none. */
  answerRate: number | null;
  /** By call type. */
  byType: Record<string, number>;
  /** By status. */
  byStatus: Record<string, number>;
  /** By end reason, of those that have ended. */
  byEndReason: Record<string, number>;
  ringMs: Percentiles | null;
  durationS: Percentiles | null;
};

/** The timeline of a call. */
export type Timeline = {
  callId: CallId;
  /** In order. Of very many the first and the latest are kept: a gap in the versions shows where some are left out. */
  steps: Step[];
};

/** Unix time in milliseconds. */
export type Timestamp = number;

/** Why a call is over for this device. `…_elsewhere`: another device of the same user took it or declined it; or another socket of this device took it over. */
export type ToldReason = 'completed' | 'declined' | 'cancelled' | 'no_answer' | 'busy' | 'offline' | 'connection_lost' | 'superseded' | 'terminated' | 'max_duration' | 'answered_elsewhere' | 'declined_elsewhere' | 'resumed_elsewhere';

/** 1 to 128 bytes of UTF-8 without control characters. */
export type UserId = string;

/** The kind of a step. */
export type What = 'placed' | 'answered' | 'lost' | 'returned' | 'confirmed' | 'ended';

export type CallAck = {
  callId: CallId;
  expiresAt?: Timestamp;
  ok: true;
  reason?: EndReason;
  status: CallStatus;
} | Refusal;

export type DoneAck = {
  ok: true;
} | Refusal;

export type IceServersAck = {
  iceServers: IceServer[];
  ok: true;
  /** Lifetime of the credentials, in seconds. */
  ttl: number;
} | Refusal;

export type JoinedAck = {
  ok: true;
  userId: UserId;
} | Refusal;

export type PresenceAck = {
  ok: true;
  presence: Record<string, Presence>;
} | Refusal;

export type RefreshedAck = {
  /** Expiry of the new token. */
  expiresAt: Timestamp;
  ok: true;
} | Refusal;

export type RelayedAck = {
  callId: CallId;
  ok: true;
} | Refusal;

export type SyncAck = {
  call: CallView | null;
  ok: true;
} | Refusal;

/** What clients are sent. */
export interface ServerToClientEvents {
  /** The token of this socket expires then: send `auth:refresh`. */
  'auth:expiring': (event: {
    expiresAt: Timestamp;
  }) => void;
  /** An answer, as the other party sent it. */
  'call:answer': (event: {
    answer: SessionDescription;
    callId: CallId;
    fromUserId: UserId;
    timestamp: Timestamp;
  }) => void;
  /** The callee is in another call. */
  'call:busy': (event: {
    callId: CallId;
    fromUserId: UserId;
    message: string;
    timestamp: Timestamp;
  }) => void;
  /** The call ended, for this device at least. */
  'call:ended': (event: {
    callId: CallId;
    duration: number;
    fromUserId: UserId;
    reason: ToldReason;
    timestamp: Timestamp;
  }) => void;
  /** An event that was sent without an ack was refused. */
  'call:error': (event: ErrorBody) => void;
  /** A candidate, as the other party sent it. */
  'call:ice-candidate': (event: {
    callId: CallId;
    candidate: IceCandidate;
    fromUserId: UserId;
  }) => void;
  /** An incoming call: ring. */
  'call:incoming': (event: {
    callId: CallId;
    callType: CallType;
    callerInfo?: CallerInfo;
    expiresAt?: Timestamp;
    fromUserId: UserId;
    timestamp: Timestamp;
  }) => void;
  /** An offer, as the other party sent it. */
  'call:offer': (event: {
    callId: CallId;
    fromUserId: UserId;
    offer: SessionDescription;
    timestamp: Timestamp;
  }) => void;
  /** The other party is back. */
  'call:peer-reconnected': (event: {
    callId: CallId;
    fromUserId: UserId;
  }) => void;
  /** The other party lost its connection and may return. */
  'call:peer-reconnecting': (event: {
    callId: CallId;
    fromUserId: UserId;
    graceEndsAt: Timestamp;
  }) => void;
  /** The callee declined. */
  'call:rejected': (event: {
    callId: CallId;
    fromUserId: UserId;
    reason?: string;
    timestamp: Timestamp;
  }) => void;
  /** This device is back in its call. */
  'call:resumed': (event: CallView) => void;
  /** The call that this device placed rings. */
  'call:ringing': (event: {
    callId: CallId;
    devices: number;
    expiresAt?: Timestamp;
    toUserId: UserId;
  }) => void;
  /** The presence of a watched user changed. */
  'presence:update': (event: {
    status: Presence;
    timestamp: Timestamp;
    userId: UserId;
  }) => void;
  /** This node is stopping: the library reconnects. */
  'server:draining': (event: {
    reconnectWithinMs: number;
  }) => void;
}

/** What clients send. Each event is answered: with a callback, or with `emitWithAck`. */
export interface ClientToServerEvents {
  /** Gives a new token of the same user. Refused in open mode, which has none. */
  'auth:refresh': (payload: {
    /** Counted in bytes of UTF-8. */
    token: string;
  }, ack: (answer: RefreshedAck) => void) => void;
  /** Takes the call, and passes an answer on. The first device wins. */
  'call:answer': (payload: {
    answer: SessionDescription;
    callId?: CallId | null;
    toUserId: UserId;
  }, ack: (answer: RelayedAck) => void) => void;
  /** Says that this device is in another call. `toUserId` or `callId` names this one. */
  'call:busy': (...args: [ack: (answer: CallAck) => void] | [payload: {
    callId?: CallId | null;
    toUserId?: UserId | null;
  }, ack: (answer: CallAck) => void]) => void;
  /** Hangs up, gives up or declines. `toUserId` or `callId` names the call. */
  'call:end': (...args: [ack: (answer: CallAck) => void] | [payload: {
    callId?: CallId | null;
    duration?: number | null;
    toUserId?: UserId | null;
  }, ack: (answer: CallAck) => void]) => void;
  /** Passes a candidate on. */
  'call:ice-candidate': (payload: {
    callId?: CallId | null;
    candidate: IceCandidate;
    toUserId: UserId;
  }, ack: (answer: RelayedAck) => void) => void;
  /** Calls a user: all their devices ring. */
  'call:initiate': (payload: {
    callType: CallType;
    callerInfo?: CallerInfo | null;
    /** Counted in bytes of UTF-8. */
    clientCallId?: string | null;
    toUserId: UserId;
  }, ack: (answer: CallAck) => void) => void;
  /** Passes an offer on. */
  'call:offer': (payload: {
    callId?: CallId | null;
    offer: SessionDescription;
    toUserId: UserId;
  }, ack: (answer: RelayedAck) => void) => void;
  /** Declines the call for all devices. `toUserId` or `callId` names it. */
  'call:reject': (...args: [ack: (answer: CallAck) => void] | [payload: {
    callId?: CallId | null;
    /** Counted in bytes of UTF-8. */
    reason?: string | null;
    toUserId?: UserId | null;
  }, ack: (answer: CallAck) => void]) => void;
  /** Reports how good the media connection is. */
  'call:stats': (payload: {
    callId: CallId;
    /** Counted in bytes of UTF-8. */
    candidateType?: string | null;
    /** Counted in bytes of UTF-8. */
    iceState?: string | null;
    jitterMs?: number | null;
    lossPercent?: number | null;
    roundTripMs?: number | null;
  }, ack: (answer: RelayedAck) => void) => void;
  /** Asks for the live call, or for this one up to a minute after its end. */
  'call:sync': (...args: [ack: (answer: SyncAck) => void] | [payload: {
    callId?: CallId | null;
  }, ack: (answer: SyncAck) => void]) => void;
  /** Asks for the servers that `RTCPeerConnection` needs. */
  'ice:servers': (...args: [ack: (answer: IceServersAck) => void] | [payload: Record<string, never>, ack: (answer: IceServersAck) => void]) => void;
  /** Asks who can be called, and to be told of changes. */
  'presence:subscribe': (payload: {
    userIds: UserId[];
  }, ack: (answer: PresenceAck) => void) => void;
  /** Asks not to be told of changes any more. */
  'presence:unsubscribe': (payload: {
    userIds: UserId[];
  }, ack: (answer: DoneAck) => void) => void;
  /** Says who this socket speaks for, if the handshake did not. */
  'user-connected': (payload: UserId | {
    userId: UserId;
  }, ack: (answer: JoinedAck) => void) => void;
}

/** The HTTP API. What is refused is answered with a `Problem`. Lists in a query have commas between. */
export interface HttpApi {
  /** Live calls */
  'GET /v1/admin/calls': {
    query: {
      /** Only the call that this user is in. */
      userId?: UserId;
      /** About how many calls to list. */
      limit?: number;
      cursor?: string;
    };
    answer: LiveCalls;
  };
  /** End a call */
  'POST /v1/admin/calls/{id}/end': {
    path: {
      /** The call's id */
      id: CallId;
    };
    answer: CallRecord;
  };
  /** Show this request */
  'GET /v1/admin/request': {
    answer: Arrival;
  };
  /** Disconnect a user */
  'POST /v1/admin/users/{id}/disconnect': {
    path: {
      /** The user's id */
      id: UserId;
    };
    answer: Ordered;
  };
  /** A user's calls */
  'GET /v1/calls': {
    query: {
      /** The asking user: only calls of this user are returned. */
      userId: UserId;
      limit?: number;
      cursor?: string;
      status?: CallStatus;
      type?: CallType;
      /** The other party. */
      with?: UserId;
      /** Only calls made at this time or later. */
      since?: number;
      /** Only calls made before this time. */
      until?: number;
    };
    answer: CallPage;
  };
  /** One call */
  'GET /v1/calls/{id}': {
    path: {
      /** The call's id */
      id: CallId;
    };
    query: {
      /** The asking user: one of the two parties. */
      userId: UserId;
    };
    answer: CallRecord;
  };
  /** Timeline of a call */
  'GET /v1/calls/{id}/timeline': {
    path: {
      /** The call's id */
      id: CallId;
    };
    query: {
      /** The asking user: one of the two parties. */
      userId: UserId;
    };
    answer: Timeline;
  };
  /** The servers that `RTCPeerConnection` needs */
  'GET /v1/ice-servers': {
    query: {
      userId: UserId;
    };
    answer: IceServers;
  };
  /** Presence of users */
  'GET /v1/presence': {
    query: {
      /** User ids separated by commas. Repeated ids count. An id that has a comma itself can be asked for on the socket only. */
      userIds: string[];
    };
    answer: PresenceOfUsers;
  };
  /** Statistics of calls */
  'GET /v1/stats': {
    query: {
      /** Calls made at this time or later. */
      since: number;
      /** Calls made before this time. */
      until: number;
      /** How long a bucket is. It begins at a full minute, hour or day, UTC. There are at most 1,000 buckets in an answer. Default: `day`. */
      bucket?: 'minute' | 'hour' | 'day';
    };
    answer: CallStats;
  };
}
