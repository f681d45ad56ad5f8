//! Shutdown signals.

use std::io;

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing::{info, warn};

/// Completes its waiters when the service stops. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

/// Triggers a [`Shutdown`] once.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

pub fn shutdown() -> (Trigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Shutdown(receiver))
}

impl Trigger {
    pub fn fire(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// Completes when the trigger has fired or was dropped.
    pub async fn wait(mut self) {
        let _ = self.0.wait_for(|stopping| *stopping).await;
    }
}

/// Installs signal handlers; the returned future completes with SIGINT (Ctrl-C) or SIGTERM.
pub fn signalled() -> io::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        let name = tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        };
        info!(signal = name, "stopping");
    })
}

/// Ends the process at a second signal. `flush` is called before.
pub async fn exit_at_second_signal(flush: impl FnOnce()) {
    let Ok(signalled) = signalled() else { return };
    signalled.await;
    warn!("stopping at once");
    flush();
    std::process::exit(1);
}
