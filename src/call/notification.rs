//! Notifications, derived from two versions of a call.
//!
//! Nodes exchange records. Each compares the version it last saw with the new one and derives the notifications
//! that its own sockets must receive, so a missed version loses none.

use std::sync::Arc;

use super::{Call, Cause, EndReason, Link, Role, State};
use crate::{ids::SocketId, time::Timestamp};

/// A notification for one socket.
#[derive(Debug, Clone, PartialEq)]
pub enum Notification {
    /// The callee rings, on this many sockets.
    Ringing {
        devices: usize,
    },
    /// A call comes in here.
    Incoming,
    /// This socket took the call over from its device's earlier socket.
    Resumed,
    PeerReconnecting {
        grace_ends_at: Timestamp,
    },
    PeerReconnected,
    /// A device of the callee refused, with the reason it gave.
    Rejected {
        reason: Option<Arc<str>>,
    },
    /// The callee is on another call, or a device of the callee said so.
    Busy,
    Ended {
        why: NotifiedReason,
        duration_s: f64,
    },
}

/// The reason in a notification of an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotifiedReason {
    End(EndReason),
    /// Another device of the same user answered.
    AnsweredElsewhere,
    DeclinedElsewhere,
    /// Another socket of the same device took the call over.
    ResumedElsewhere,
}

impl NotifiedReason {
    pub fn as_str(self) -> &'static str {
        match self {
            NotifiedReason::End(reason) => reason.as_str(),
            NotifiedReason::AnsweredElsewhere => "answered_elsewhere",
            NotifiedReason::DeclinedElsewhere => "declined_elsewhere",
            NotifiedReason::ResumedElsewhere => "resumed_elsewhere",
        }
    }
}

/// The notification of the caller's socket about its new call, which rings on `devices` sockets. There is none for an
/// offline callee: the reply to the attempt says it.
pub fn first_notification(call: &Call, devices: usize) -> Option<Notification> {
    match &call.state {
        State::Ringing { .. } => Some(Notification::Ringing { devices }),
        State::Ended { cause: Cause::LineBusy, .. } => Some(Notification::Busy),
        State::Active { .. } | State::Ended { .. } => None,
    }
}

/// The notifications of the change from `before` to `after`, for the bound sockets and the ringing ones (`ringing`).
///
/// The socket that made the change gets its ack only, unless it is in `unacknowledged`: its commit had no reply, so its ack
/// did not carry the result.
pub fn notifications(
    before: &Call,
    after: &Call,
    ringing: &[SocketId],
    unacknowledged: &[SocketId],
) -> Vec<(SocketId, Notification)> {
    let mut all = Vec::new();
    let actor = after.ended_by().filter(|socket| !unacknowledged.contains(socket));
    for role in [Role::Caller, Role::Callee] {
        all.extend(bound_notifications(before, after, role, actor));
    }
    let winner = after.callee.link.socket();
    // One that is busy rings no more: its ack has told it so.
    let rings = |socket: &SocketId| {
        Some(*socket) != winner && (!after.is_busy_on(*socket) || unacknowledged.contains(socket))
    };
    for socket in ringing.iter().copied().filter(rings) {
        let notification = ringing_notification(before, after, socket, actor);
        all.extend(notification.map(|one| (socket, one)));
    }
    all
}

/// Notifications for the sockets that are, or were, bound as `role`.
fn bound_notifications(
    before: &Call,
    after: &Call,
    role: Role,
    actor: Option<SocketId>,
) -> Vec<(SocketId, Notification)> {
    let mut all = Vec::new();
    let Some(socket) = after.party(role).link.socket() else {
        // A rollback of the shared state lost its answer, and the call ended otherwise.
        if let (Link::Bound(binding), Link::Open) =
            (&before.party(role).link, &after.party(role).link)
        {
            all.extend(end_notification(after, role).map(|one| (binding.socket, one)));
        }
        return all;
    };
    let came_back = match &before.party(role).link {
        Link::Open => false,
        Link::Lost { .. } => true,
        Link::Bound(binding) if binding.socket == socket => false,
        Link::Bound(binding) => {
            let why = NotifiedReason::ResumedElsewhere;
            all.push((binding.socket, Notification::Ended { why, duration_s: 0.0 }));
            true
        }
    };
    let notification = if !after.is_live() {
        let concerns = came_back || (before.is_live() && !after.was_superseded_by(role));
        end_notification(after, role).filter(|_| concerns && actor != Some(socket))
    } else if came_back {
        Some(Notification::Resumed)
    } else {
        peer_notification(before, after, role.other())
    };
    all.extend(notification.map(|one| (socket, one)));
    all
}

/// Notifications for a ringing socket that did not answer.
fn ringing_notification(
    before: &Call,
    after: &Call,
    socket: SocketId,
    actor: Option<SocketId>,
) -> Option<Notification> {
    if after.is_ringing() {
        return peer_notification(before, after, Role::Caller);
    }
    if !before.is_ringing() || actor == Some(socket) {
        return None;
    }
    let why = match &after.state {
        // This device ended the call, and got no reply.
        State::Ended { since: None, .. } if after.ended_by() == Some(socket) => {
            NotifiedReason::End(after.end_reason()?)
        }
        State::Active { .. } | State::Ended { since: Some(_), .. } => {
            NotifiedReason::AnsweredElsewhere
        }
        State::Ended { cause, .. } => match cause {
            Cause::HangUp { role: Role::Callee, .. } | Cause::Reject { .. } => {
                NotifiedReason::DeclinedElsewhere
            }
            _ => NotifiedReason::End(after.end_reason()?),
        },
        State::Ringing { .. } => return None,
    };
    Some(Notification::Ended { why, duration_s: after.notified_duration_s() })
}

/// Changes of the connection of the party with role `peer`.
fn peer_notification(before: &Call, after: &Call, peer: Role) -> Option<Notification> {
    match (&before.party(peer).link, &after.party(peer).link) {
        (Link::Bound(_), Link::Lost { until, .. }) => {
            Some(Notification::PeerReconnecting { grace_ends_at: *until })
        }
        (Link::Lost { .. }, Link::Bound(_)) => Some(Notification::PeerReconnected),
        (Link::Open, _)
        | (_, Link::Open)
        | (Link::Bound(_), Link::Bound(_))
        | (Link::Lost { .. }, Link::Lost { .. }) => None,
    }
}

/// The end of `call` for the bound device of the party with role `to`.
fn end_notification(call: &Call, to: Role) -> Option<Notification> {
    let State::Ended { cause, .. } = &call.state else {
        return None;
    };
    Some(match cause {
        Cause::Reject { reason, .. } if to == Role::Caller => {
            Notification::Rejected { reason: reason.clone() }
        }
        Cause::Busy { .. } | Cause::LineBusy if to == Role::Caller => Notification::Busy,
        _ => Notification::Ended {
            why: NotifiedReason::End(call.end_reason()?),
            duration_s: call.notified_duration_s(),
        },
    })
}

impl Call {
    /// The `duration` of `call:ended`: as reported by the client that ended the call, else as measured, else 0.
    fn notified_duration_s(&self) -> f64 {
        match &self.state {
            State::Ended {
                cause: Cause::HangUp { reported_duration_s: Some(reported), .. },
                ..
            } => *reported,
            #[expect(clippy::cast_precision_loss, reason = "seconds of one call")]
            _ => self.duration_s().unwrap_or(0) as f64,
        }
    }

    /// Whether the party with this role superseded the call by another one.
    fn was_superseded_by(&self, role: Role) -> bool {
        matches!(&self.state,
            State::Ended { cause: Cause::Superseded { role: by }, .. } if *by == role)
    }

    /// The socket whose own event ended the call.
    pub fn ended_by(&self) -> Option<SocketId> {
        match &self.state {
            State::Ended {
                cause: Cause::HangUp { by, .. } | Cause::Reject { by, .. } | Cause::Busy { by },
                ..
            } => Some(*by),
            State::Ringing { .. } | State::Active { .. } | State::Ended { .. } => None,
        }
    }
}
