//! Signals that stop the process, and the tasks that stop with it.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::TaskTracker,
};
use tracing::{info, warn};

/// Tasks that stop together.
#[derive(Debug, Default)]
pub struct Tasks {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Tasks {
    /// Runs a task that ends by itself once the future that it is given completes.
    pub fn spawn<F>(&self, task: impl FnOnce(WaitForCancellationFutureOwned) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(task(self.stop.clone().cancelled_owned()));
    }

    /// Runs a task that may be dropped wherever it waits.
    pub fn spawn_until(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(task));
    }

    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Completes when all of them have ended.
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
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

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_group_stops_together_and_is_waited_for() {
        let tasks = Tasks::default();
        let (say_done, done) = oneshot::channel();
        tasks.spawn(|stop| async {
            stop.await;
            say_done.send(()).expect("the test waits for it");
        });
        tasks.spawn_until(pending());
        let mut ended = std::pin::pin!(tasks.ended());
        tokio::select! {
            biased;
            () = &mut ended => panic!("nothing told them to stop"),
            () = tokio::task::yield_now() => tasks.stop(),
        }
        ended.await;
        done.await.unwrap();
    }
}
