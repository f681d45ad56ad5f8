//! Executes one run: plays the script, then ends all faults and checks the recovery, then ends all
//! calls and checks that no state is left over.

use std::{sync::Arc, time::Duration};

use switchboard::{cluster::mistakes, time::Timestamp};

use super::{
    checker::{PANIC, Violation, short},
    client::Clients,
    random::{Dice, Random},
    script::{DEVICES, NODES, Step, What},
    simulation::{Mistake, Simulation},
    store::{evict_key, lose_record},
};

/// After this time every fault of a script has ended or is ended.
const HEALED_AFTER: Duration = Duration::from_secs(5);
/// The longest time that a cluster may take to recover from all faults: to detect dead nodes, to
/// let grace periods expire, to look up all calls.
const SETTLED_AFTER: Duration = Duration::from_secs(45);
/// The longest time until ended calls are cleared away.
const OVER_AFTER: Duration = Duration::from_mins(4);
const DRAIN: Duration = Duration::from_secs(2);

/// The result of a run.
pub struct Outcome {
    pub violation: Option<Violation>,
    pub log: Vec<String>,
}

/// Runs a script. The seed decides everything that the script leaves open.
pub fn run(seed: u64, script: &[Step], mistake: Option<Mistake>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime can be built");
    let sim = {
        let _entered = runtime.enter();
        Simulation::new(Dice::new(Random::new(seed).next()), mistake)
    };
    super::panics::forget();
    mistakes::make(match mistake {
        Some(Mistake::InCluster(mistake)) => Some(mistake),
        _ => None,
    });
    let clients = runtime.block_on(async {
        let clients = Clients::new(sim.clone(), NODES);
        live(&clients, script).await;
        clients
    });
    drop(runtime);
    clients.let_go();
    let mut checker = sim.checker();
    if let Some(panic) = super::panics::take() {
        checker.violated(PANIC, || panic);
    }
    Outcome { violation: checker.violation.clone(), log: checker.log().cloned().collect() }
}

async fn live(clients: &Arc<Clients>, script: &[Step]) {
    let sim = &clients.sim;
    let may_forget = script.iter().any(|step| step.what.forgets());
    let ends = |step: &Step| matches!(step.what, What::Kill { .. } | What::Drain { .. });
    sim.checker().may_be_late = script.iter().any(|step| step.what.stalls());
    sim.checker().may_forget = may_forget;
    sim.checker().may_lose_claims =
        script.iter().any(|step| matches!(step.what, What::Evicted { .. }));
    let loses = |step: &Step| matches!(step.what, What::Lossy { .. });
    let pauses = |step: &Step| matches!(step.what, What::Pause { .. });
    sim.checker().may_lose_messages = script.iter().any(loses);
    sim.checker().may_stand_still = script.iter().any(pauses);
    sim.checker().may_lose_rows = may_forget && script.iter().any(ends);
    let started = sim.now();
    for device in 0..DEVICES {
        clients.connect(device, sim.dice.roll(|dice| dice.below(50)));
    }
    for step in script {
        let at = started + Duration::from_millis(step.at_ms + 100);
        tokio::time::sleep(at - sim.now()).await;
        if sim.checker().violation.is_some() {
            return;
        }
        sim.note(|| format!("-- {:?}", step.what));
        happen(clients, &step.what);
    }
    tokio::time::sleep(HEALED_AFTER).await;
    heal(clients);
    tokio::time::sleep(SETTLED_AFTER).await;
    sim.note(|| "-- all should be settled".to_owned());
    let (agreed, alive) = (sim.agreed_now(), sim.listeners().keys().copied().collect());
    sim.checker().settled(sim, agreed, &clients.open_sockets(), &alive);
    let loses = |step: &Step| matches!(step.what, What::RecordGone { .. } | What::Evicted { .. });
    if script.iter().any(loses) {
        clients.call_each_other().await;
    }
    if sim.checker().violation.is_some() {
        return;
    }
    sim.note(|| "-- all leave".to_owned());
    clients.leave_all();
    let left = sim.now();
    while sim.now() - left < OVER_AFTER && !sim.holds_no_call() {
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    sim.checker().over(&sim.state(), &sim.table.rows());
}

fn heal(clients: &Arc<Clients>) {
    let sim = &clients.sim;
    let ended = std::mem::take(&mut *sim.faults());
    let now = sim.now();
    sim.thaw();
    // Only connections that are gone now are replaced: a new connection has its node start over, which would hide
    // what the node has missed.
    let lasts = |until: &Timestamp| *until > now;
    let is_frozen = ended.frozen.as_ref().is_some_and(lasts);
    if ended.down.as_ref().is_some_and(lasts) || (is_frozen && ended.is_given_up(now)) {
        sim.reconnect(None);
    }
    for (node, _) in ended.cut_off.iter().filter(|(_, until)| lasts(until)) {
        sim.reconnect(Some(*node));
    }
    for place in 0..NODES {
        clients.fill(place);
    }
    sim.note(|| "-- all faults are over".to_owned());
}

fn happen(clients: &Arc<Clients>, what: &What) {
    let sim = clients.sim.clone();
    let until = |ms: &u64| Some(sim.now() + Duration::from_millis(*ms));
    match what {
        What::Device(device, act) => clients.act(*device, act),
        What::Kill { node, back_ms } => {
            let Some(killed) = clients.take_node(*node) else { return };
            let lost = clients.on(&killed);
            killed.kill();
            for device in lost {
                clients.disconnect(device, 0, true);
                clients.connect(device, sim.dice.roll(|dice| dice.between(100, 4_000)));
            }
            fill_later(clients, *node, *back_ms);
        }
        What::Drain { node, back_ms } => {
            let Some(node_) = clients.take_node(*node) else { return };
            let own = clients.clone();
            tokio::spawn(async move {
                node_.begin_to_leave();
                for device in own.on(&node_) {
                    let sim = &own.sim;
                    tokio::time::sleep(Duration::from_millis(
                        sim.dice.roll(|dice| dice.below(200)),
                    ))
                    .await;
                    own.disconnect(device, 0, true);
                    own.connect(device, sim.dice.roll(|dice| dice.between(10, 1_500)));
                }
                node_.leave(DRAIN).await;
            });
            fill_later(clients, *node, *back_ms);
        }
        What::Pause { node, for_ms } => {
            if let Some(node) = clients.node(*node) {
                sim.faults().paused.insert(node.id, sim.now() + Duration::from_millis(*for_ms));
            }
        }
        What::RedisFrozen { for_ms } => {
            sim.faults().frozen = until(for_ms);
            sim.faults().frozen_since = Some(sim.now());
            later(&sim, *for_ms, |sim| {
                sim.thaw();
                if sim.faults().is_given_up(sim.now()) {
                    sim.reconnect(None);
                }
            });
        }
        What::RedisDown { for_ms } => {
            sim.faults().down = until(for_ms);
            later(&sim, *for_ms, |sim| sim.reconnect(None));
        }
        What::RedisEmpty { for_ms } => {
            sim.faults().down = until(for_ms);
            sim.forget(None);
            later(&sim, *for_ms, |sim| sim.reconnect(None));
        }
        What::RedisBehind { writes } => {
            sim.faults().down = until(&200);
            sim.forget(Some(*writes));
            later(&sim, 200, |sim| sim.reconnect(None));
        }
        What::Flaky { for_ms } => sim.faults().flaky = until(for_ms),
        What::CutOff { node, for_ms } => {
            let Some(node) = clients.node(*node) else { return };
            let id = node.id;
            sim.faults().cut_off.insert(id, sim.now() + Duration::from_millis(*for_ms));
            later(&sim, *for_ms, move |sim| sim.reconnect(Some(id)));
        }
        What::Deaf { node, for_ms } => {
            let Some(node) = clients.node(*node) else { return };
            sim.faults().deaf.insert(node.id, sim.now() + Duration::from_millis(*for_ms));
            if let Some(listener) = sim.listeners().get_mut(&node.id) {
                listener.fall_silent();
            }
        }
        What::Far { node, for_ms } => {
            let Some(node) = clients.node(*node) else { return };
            sim.faults().far.insert(node.id, sim.now() + Duration::from_millis(*for_ms));
        }
        What::RecordGone { which } => {
            let lost = lose_record(&mut sim.state(), *which);
            sim.note(|| format!("the record of {:?} is gone", lost.map(short)));
        }
        What::Evicted { which } => {
            for which in which {
                let key = evict_key(&mut sim.state(), *which);
                sim.note(|| format!("{key} is evicted"));
            }
        }
        What::ClockJump { by_ms } => sim.move_redis_clock(*by_ms),
        What::Lossy { for_ms } => sim.faults().lossy = until(for_ms),
        What::Slow { for_ms } => sim.faults().slow = until(for_ms),
        What::HistoryDown { for_ms } => sim.faults().history_down = until(for_ms),
        What::HistoryHalf { for_ms } => sim.faults().history_half = until(for_ms),
        What::HistorySlow { for_ms } => sim.faults().history_slow = until(for_ms),
    }
}

fn fill_later(clients: &Arc<Clients>, place: usize, after_ms: u64) {
    let clients = clients.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        clients.fill(place);
    });
}

fn later(sim: &Arc<Simulation>, after_ms: u64, then: impl FnOnce(&Simulation) + Send + 'static) {
    let sim = sim.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        then(&sim);
    });
}
