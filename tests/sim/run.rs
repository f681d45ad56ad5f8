//! One run: the script, then an end to all faults, then an end to all calls.

use std::{sync::Arc, time::Duration};

use super::{
    client::Clients,
    random::{Dice, Random},
    script::{DEVICES, NODES, Step, What},
    state::Mistake,
    weather::Weather,
    witness::{PANIC, Violation, short},
    world::World,
};

/// By then all faults that a script may hold are over, or are ended.
const HEALED_AFTER: Duration = Duration::from_secs(5);
/// What a cluster may take to make all faults good: to find the dead, to let graces pass, to look all
/// calls up.
const SETTLED_AFTER: Duration = Duration::from_secs(45);
/// What it may take to clear away what ended.
const OVER_AFTER: Duration = Duration::from_mins(4);
const DRAIN: Duration = Duration::from_secs(2);

/// What came of a run.
pub struct Outcome {
    pub violation: Option<Violation>,
    pub log: Vec<String>,
}

/// Runs a script. The seed decides all that the script leaves open.
pub fn run(seed: u64, script: &[Step], mistake: Option<Mistake>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime can be built");
    let world = {
        let _entered = runtime.enter();
        World::new(Dice::new(Random::new(seed).next()), mistake)
    };
    super::panics::forget();
    let clients = runtime.block_on(async {
        let clients = Clients::new(world.clone(), NODES);
        live(&clients, script).await;
        clients
    });
    drop(runtime);
    clients.let_go();
    let mut witness = world.witness();
    if let Some(panic) = super::panics::take() {
        witness.violated(PANIC, || panic);
    }
    Outcome { violation: witness.violation.clone(), log: witness.log().cloned().collect() }
}

async fn live(clients: &Arc<Clients>, script: &[Step]) {
    let world = &clients.world;
    let may_forget = script.iter().any(|step| step.what.forgets());
    let ends = |step: &Step| matches!(step.what, What::Kill { .. } | What::Drain { .. });
    world.witness().may_be_late = script.iter().any(|step| step.what.stalls());
    world.witness().may_forget = may_forget;
    let loses = |step: &Step| matches!(step.what, What::Lossy { .. });
    let pauses = |step: &Step| matches!(step.what, What::Pause { .. });
    world.witness().may_lose_messages = script.iter().any(loses);
    world.witness().may_stand_still = script.iter().any(pauses);
    world.witness().may_lose_rows = may_forget && script.iter().any(ends);
    let started = world.now();
    for device in 0..DEVICES {
        clients.connect(device, world.dice.roll(|dice| dice.below(50)));
    }
    for step in script {
        let at = started + Duration::from_millis(step.at_ms + 100);
        tokio::time::sleep(at - world.now()).await;
        if world.witness().violation.is_some() {
            return;
        }
        world.note(|| format!("-- {:?}", step.what));
        happen(clients, &step.what);
    }
    tokio::time::sleep(HEALED_AFTER).await;
    heal(clients);
    tokio::time::sleep(SETTLED_AFTER).await;
    world.note(|| "-- all should be settled".to_owned());
    world.witness().settled(&world.state(), world.now(), &clients.open_sockets());
    if script.iter().any(|step| matches!(step.what, What::RecordGone { .. })) {
        clients.call_each_other().await;
    }
    if world.witness().violation.is_some() {
        return;
    }
    world.note(|| "-- all leave".to_owned());
    clients.leave_all();
    let left = world.now();
    while world.now() - left < OVER_AFTER && !world.state().calls.is_empty() {
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    world.witness().over(&world.state(), &world.table.rows());
}

fn heal(clients: &Arc<Clients>) {
    let world = &clients.world;
    let deaf = std::mem::take(&mut world.weather().deaf);
    *world.weather() = Weather { deaf: deaf.clone(), ..Weather::default() };
    for (node, (_, until)) in deaf {
        if until > world.now() {
            world.weather().deaf.entry(node).and_modify(|(_, until)| *until = world.now());
            world.hears_again(node);
        }
    }
    world.thaw();
    world.reconnect(None);
    for place in 0..NODES {
        clients.fill(place);
    }
    world.note(|| "-- all faults are over".to_owned());
}

fn happen(clients: &Arc<Clients>, what: &What) {
    let world = clients.world.clone();
    let until = |ms: &u64| Some(world.now() + Duration::from_millis(*ms));
    match what {
        What::Device(device, act) => clients.act(*device, act),
        What::Kill { node, back_ms } => {
            let Some(killed) = clients.take_node(*node) else { return };
            let lost = clients.on(&killed);
            killed.kill();
            for device in lost {
                clients.disconnect(device, 0, true);
                clients.connect(device, world.dice.roll(|dice| dice.between(100, 4_000)));
            }
            fill_later(clients, *node, *back_ms);
        }
        What::Drain { node, back_ms } => {
            let Some(node_) = clients.take_node(*node) else { return };
            let own = clients.clone();
            tokio::spawn(async move {
                node_.begin_to_leave();
                for device in own.on(&node_) {
                    let world = &own.world;
                    tokio::time::sleep(Duration::from_millis(
                        world.dice.roll(|dice| dice.below(200)),
                    ))
                    .await;
                    own.disconnect(device, 0, true);
                    own.connect(device, world.dice.roll(|dice| dice.between(10, 1_500)));
                }
                node_.leave(DRAIN).await;
            });
            fill_later(clients, *node, *back_ms);
        }
        What::Pause { node, for_ms } => {
            if let Some(node) = clients.node(*node) {
                world
                    .weather()
                    .paused
                    .insert(node.id, world.now() + Duration::from_millis(*for_ms));
            }
        }
        What::RedisFrozen { for_ms } => {
            world.weather().frozen = until(for_ms);
            world.weather().frozen_since = Some(world.now());
            later(&world, *for_ms, |world| {
                world.thaw();
                world.reconnect(None);
            });
        }
        What::RedisDown { for_ms } => {
            world.weather().down = until(for_ms);
            later(&world, *for_ms, |world| world.reconnect(None));
        }
        What::RedisEmpty { for_ms } => {
            world.weather().down = until(for_ms);
            world.forget(None);
            later(&world, *for_ms, |world| world.reconnect(None));
        }
        What::RedisBehind { writes } => {
            world.weather().down = until(&200);
            world.forget(Some(*writes));
            later(&world, 200, |world| world.reconnect(None));
        }
        What::Flaky { for_ms } => world.weather().flaky = until(for_ms),
        What::CutOff { node, for_ms } => {
            let Some(node) = clients.node(*node) else { return };
            let id = node.id;
            world.weather().cut_off.insert(id, world.now() + Duration::from_millis(*for_ms));
            later(&world, *for_ms, move |world| world.reconnect(Some(id)));
        }
        What::Deaf { node, for_ms } => {
            let Some(node) = clients.node(*node) else { return };
            let (id, now) = (node.id, world.now());
            world.weather().deaf.insert(id, (now, now + Duration::from_millis(*for_ms)));
            later(&world, *for_ms, move |world| world.hears_again(id));
        }
        What::Far { node, for_ms } => {
            let Some(node) = clients.node(*node) else { return };
            world.weather().far.insert(node.id, world.now() + Duration::from_millis(*for_ms));
        }
        What::RecordGone { which } => {
            let lost = world.state().lose_record(*which);
            world.note(|| format!("the record of {:?} is gone", lost.map(short)));
        }
        What::Lossy { for_ms } => world.weather().lossy = until(for_ms),
        What::Slow { for_ms } => world.weather().slow = until(for_ms),
        What::HistoryDown { for_ms } => world.weather().history_down = until(for_ms),
        What::HistoryHalf { for_ms } => world.weather().history_half = until(for_ms),
        What::HistorySlow { for_ms } => world.weather().history_slow = until(for_ms),
    }
}

fn fill_later(clients: &Arc<Clients>, place: usize, after_ms: u64) {
    let clients = clients.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        clients.fill(place);
    });
}

fn later(world: &Arc<World>, after_ms: u64, then: impl FnOnce(&World) + Send + 'static) {
    let world = world.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        then(&world);
    });
}
