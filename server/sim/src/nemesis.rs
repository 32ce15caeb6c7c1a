//! What goes wrong, and what people do meanwhile: crashes, cuts, disks and lines that are slow or fail, damage, snapshots,
//! compactions, moved leaders, other members and other addresses.

use crate::chance::Chance;
use crate::files;
use crate::net::{FIRST_PORT, host_of, url_of};
use crate::world::{Crash, NOT_NOW, REMOVED, World};
use ferretcd_raft::Role;
use ferretcd_types::MemberId;
use ferretcd_wal::fs::mem::{Call, PowerLoss};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Hosts there may be in all: founders and those that were added.
const HOSTS_MAX: usize = 9;

/// Troubles the world until `until` (microseconds).
pub async fn trouble(world: Arc<World>, until: u64) {
    let chance = world.chance.fork();
    while world.trace.now() < until {
        tokio::time::sleep(chance.millis(50, 900)).await;
        let running = world.running();
        let at = chance.pick(&running);
        match (chance.below(36), at) {
            (0..3, Some(at)) => {
                world.crash(at, some_crash(&chance));
                come_back(&world, at, chance.millis(50, 2500));
            }
            (3..5, Some(at)) => {
                let count = chance.below(25);
                world.trace.note(format_args!("h{at} loses its power after {count} writes"));
                world.crash_at_write(at, count);
            }
            (5, _) => {
                world.trace.note(format_args!("the power goes everywhere"));
                world.trace.count("crashes of all");
                for at in running {
                    world.crash(at, some_crash(&chance));
                    come_back(&world, at, chance.millis(10, 1500));
                }
            }
            (6..10, _) => {
                cut(&world, &chance);
                let (healed, time) = (world.clone(), chance.millis(200, 4000));
                tokio::spawn(async move {
                    tokio::time::sleep(time).await;
                    healed.trace.note(format_args!("the lines are mended"));
                    healed.net.heal();
                });
            }
            (10, Some(at)) => world.net.slow(at, chance.millis(20, 600)),
            (11, Some(at)) => world.slow_disk(at, chance.millis(1, 400)),
            (12, _) => world.net.lose(chance.below(200)),
            (13, _) => world.net.heal(),
            (24..26, _) => world.net.repeat(chance.below(300)),
            (14..16, _) => move_leader(&world, &chance).await,
            (16..18, Some(at)) => {
                if let Some(group) = world.group(at) {
                    world.trace.note(format_args!("h{at} is to write a snapshot"));
                    let _ = group.take_snapshot().await;
                }
            }
            (18, Some(at)) => {
                if let Some((node, state, gone)) = world.node(at) {
                    let revision = state.revision() - chance.below(20) as i64;
                    world.compaction.fetch_max(revision, Ordering::Relaxed);
                    let name = world.clone();
                    tokio::spawn(async move {
                        tokio::select! {
                            () = gone.cancelled() => {}
                            done = node.compact(revision, false) => {
                                if done.is_ok() {
                                    name.trace.count("compactions");
                                }
                                name.trace.note(format_args!("compaction to {revision}: {done:?}"));
                            }
                        }
                    });
                }
            }
            (19..21, Some(at)) => {
                let churned = world.clone();
                let chance = chance.fork();
                tokio::spawn(async move { change_members(churned, chance, at).await });
            }
            (21, Some(at)) => {
                world.crash(at, some_crash(&chance));
                let (damaged, chance) = (world.clone(), chance.fork());
                tokio::spawn(async move { damage(damaged, chance, at).await });
            }
            (26..28, Some(at)) => {
                let calls = [Call::Sync, Call::Sync, Call::Write, Call::Create, Call::Rename, Call::SyncDir];
                let call = chance.pick(&calls).unwrap_or(Call::Sync);
                let kind = if chance.one_in(2) { ErrorKind::StorageFull } else { ErrorKind::Other };
                let skip = chance.below(if call == Call::Sync || call == Call::Write { 20 } else { 3 });
                world.trace.note(format_args!("h{at} will fail a {call:?} after {skip}: {kind}"));
                world.fail_call(at, call, skip, kind);
            }
            (28, Some(at)) => {
                let skip = chance.below(3);
                world.trace.note(format_args!("h{at} will fail to sync a snapshot after {skip}"));
                let folder = world.fail_snapshot(at, skip);
                if let Some(folder) = folder.filter(|_| chance.one_in(2)) {
                    let (world, loss) = (world.clone(), some_crash(&chance));
                    tokio::spawn(async move { crash_with(world, at, folder, loss).await });
                }
            }
            (29..31, Some(at)) => world.damage_snapshot(at, &chance),
            (31, Some(at)) => {
                // One of two that has lost both has what the other needs to lead, and needs what only a leader can give: people must
                // decide there, as with etcd, whose group of two does not go on without one either.
                let of_two = world.group(at).is_none_or(|group| group.view().borrow().voters().count() <= 2);
                world.crash(at, some_crash(&chance));
                if chance.one_in(2) && !of_two {
                    world.damage_snapshot(at, &chance);
                }
                if !(of_two && world.has_damaged_snapshot(at)) {
                    world.lose_store(at);
                }
                come_back(&world, at, chance.millis(50, 2500));
            }
            (32, Some(at)) => {
                world.trace.note(format_args!("h{at} will fail to flush its store"));
                world.fail_store(at);
            }
            (33..35, Some(at)) => {
                let (world, chance) = (world.clone(), chance.fork());
                tokio::spawn(async move { vote_and_lose_power(world, chance, at).await });
            }
            _ => {
                for at in world.stopped() {
                    come_back(&world, at, chance.millis(1, 200));
                }
            }
        }
    }
}

fn some_crash(chance: &Chance) -> Crash {
    match chance.below(4) {
        0 => Crash::Process,
        1 => Crash::Power(PowerLoss::All),
        2 => Crash::Power(PowerLoss::Suffix),
        _ => Crash::Power(PowerLoss::Random),
    }
}

/// Two sides that do not reach each other ask this host for its vote, one after the other. As soon as one leads with it, this host
/// loses its power, with what its slow disk has not written yet, and comes back to the other side alone, whose leader was started
/// again so that it stands once more: they must not both have the vote of one term.
async fn vote_and_lose_power(world: Arc<World>, chance: Chance, at: usize) {
    const LOOKS: usize = 4000;
    let (Some(leader), Some(group)) = (leader(&world), world.group(at)) else { return };
    let term = group.view().borrow().term;
    let others: Vec<usize> = world.running().into_iter().filter(|other| ![at, leader].contains(other)).collect();
    let (ones, rest) = others.split_at(others.len().div_ceil(2));
    let others = [&[leader], rest].concat();
    if leader == at || ones.is_empty() {
        return;
    }
    world.trace.note(format_args!("h{at} is between {ones:?} and {others:?}, in term {term}"));
    world.net.cut(ones, &others, false);
    world.net.cut(&[at], &others, false);
    world.slow_disk(at, Duration::from_millis(400));
    world.crash(leader, some_crash(&chance));
    come_back(&world, leader, chance.millis(1, 30));
    for _ in 0..LOOKS {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let leads = |at: &usize| world.group(*at).is_some_and(|group| group.view().borrow().role == Role::Leader);
        if ones.iter().any(leads) {
            world.trace.count("voters that lose their power");
            world.crash(at, Crash::Power(PowerLoss::All));
            world.slow_disk(at, Duration::from_millis(2));
            come_back(&world, at, chance.millis(1, 30));
            world.net.heal();
            world.net.cut(ones, &others, false);
            world.net.cut(ones, &[at], false);
            break;
        }
    }
    tokio::time::sleep(chance.millis(1000, 4000)).await;
    world.trace.note(format_args!("the lines are mended"));
    world.net.heal();
}

/// A sync of a snapshot fails because the power goes.
async fn crash_with(world: Arc<World>, at: usize, folder: PathBuf, crash: Crash) {
    const LOOKS: usize = 1000;
    for _ in 0..LOOKS {
        tokio::time::sleep(Duration::from_millis(2)).await;
        if files::failed(&folder) {
            world.crash(at, crash);
            return;
        }
    }
}

fn come_back(world: &Arc<World>, at: usize, after: Duration) {
    let world = world.clone();
    tokio::spawn(async move {
        tokio::time::sleep(after).await;
        start(&world, at).await;
    });
}

/// Starts a stopped host, which must be possible.
pub async fn start(world: &Arc<World>, at: usize) {
    if world.stopped().contains(&at)
        && let Err(why) = world.start(at).await
        && why != NOT_NOW
    {
        match why.contains(REMOVED) {
            true => world.retire(at),
            false => world.fault(format!("it does not start: {why}")),
        }
    }
}

fn cut(world: &Arc<World>, chance: &Chance) {
    let mut hosts = world.running();
    for at in (1..hosts.len()).rev() {
        hosts.swap(at, chance.below(at as u64 + 1) as usize);
    }
    let one_way = chance.one_in(4);
    let (ones, others) = match chance.below(3) {
        // One line alone.
        0 if hosts.len() >= 2 => (&hosts[..1], &hosts[1..2]),
        // One host.
        1 if !hosts.is_empty() => hosts.split_at(1),
        _ => hosts.split_at(hosts.len() / 2),
    };
    world.trace.note(format_args!("{ones:?} and {others:?} are cut off, one way: {one_way}"));
    world.net.cut(ones, others, one_way);
    world.trace.count("cuts");
}

fn leader(world: &World) -> Option<usize> {
    world.running().into_iter().find(|at| {
        world.group(*at).is_some_and(|group| {
            let view = group.view().borrow().clone();
            view.role == Role::Leader && view.leader.is_some()
        })
    })
}

async fn move_leader(world: &Arc<World>, chance: &Chance) {
    let Some(from) = leader(world) else { return };
    let Some(to) = chance.pick(&world.running()) else { return };
    let Some(id) = world.hosts.lock().get(&to).map(|host| host.id) else { return };
    let Some((node, _, gone)) = world.node(from) else { return };
    let world = world.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = gone.cancelled() => {}
            moved = node.move_leader(id) => {
                world.trace.note(format_args!("h{from} hands over to h{to}: {moved:?}"));
                if moved.is_ok() && from != to {
                    world.trace.count("moved leaders");
                }
            }
        }
    });
}

/// Adds a learner, starts it, and gives it its vote; adds a voter; removes a member; or moves one to another address.
async fn change_members(world: Arc<World>, chance: Chance, at: usize) {
    let Some((node, _, gone)) = world.node(at) else { return };
    let work = async {
        if chance.one_in(4) {
            let Ok(members) = node.member_list(false).await else { return };
            let Some(member) = chance.pick(&members) else { return };
            let Some(slot) = member.peer_urls.first().map(|url| host_of(url)) else { return };
            let Some(port) = world.another_port(slot) else { return };
            let moved = node.member_update(member.id, vec![url_of(slot, port)]).await.map(|members| members.len());
            world.trace.note(format_args!("h{slot} moves to {port}: {moved:?}"));
            if moved.is_ok() {
                world.trace.count("moved members");
                tokio::time::sleep(chance.millis(1, 1000)).await;
                world.net.listen_from(slot, port);
            }
            return;
        }
        if chance.one_in(2) {
            let Ok(members) = node.member_list(false).await else { return };
            let voters = members.iter().filter(|member| !member.is_learner).count();
            let Some(member) = chance.pick(&members) else { return };
            if voters <= 2 && !member.is_learner {
                return;
            }
            let gone = node.member_remove(member.id).await.map(|members| members.len());
            world.trace.note(format_args!("{} is removed: {gone:?}", member.id));
            if gone.is_ok() {
                world.trace.count("removed members");
            }
            return;
        }
        let slot = world.hosts.lock().keys().max().map_or(0, |at| at + 1);
        if slot >= HOSTS_MAX {
            return;
        }
        // The place is taken, whatever comes of it: two members never have one URL.
        world.furnish(slot, MemberId(0), false);
        if let Some(host) = world.hosts.lock().get_mut(&slot) {
            host.removed = true;
        }
        let is_learner = !chance.one_in(3);
        let added = node.member_add(vec![url_of(slot, FIRST_PORT)], is_learner).await;
        world.trace.note(format_args!("h{slot} is added: {:?}", added.as_ref().map(|(member, _)| member.id)));
        let Ok((member, _)) = added else { return };
        settle(&world, slot, member.id).await;
        if !is_learner {
            return;
        }
        for _ in 0..20 {
            tokio::time::sleep(chance.millis(100, 600)).await;
            let promoted = node.member_promote(member.id).await;
            world.trace.note(format_args!("h{slot} gets its vote: {:?}", promoted.as_ref().map(Vec::len)));
            if promoted.is_ok() {
                world.trace.count("promotions");
                return;
            }
        }
    };
    tokio::select! {
        () = gone.cancelled() => {}
        () = work => {}
    }
}

/// Gives an added member its host.
async fn settle(world: &Arc<World>, slot: usize, id: MemberId) {
    {
        let mut hosts = world.hosts.lock();
        let Some(host) = hosts.get_mut(&slot).filter(|host| host.id.0 == 0) else { return };
        (host.id, host.removed) = (id, false);
    }
    start(world, slot).await;
}

/// Flips a bit in the log of a stopped host. It may be where nothing is; else the start must name it.
async fn damage(world: Arc<World>, chance: Chance, at: usize) {
    tokio::time::sleep(chance.millis(10, 300)).await;
    if !world.stopped().contains(&at) {
        return;
    }
    let Some((whole, file)) = world.damage(at, &chance) else { return };
    if let Err(why) = world.start(at).await
        && why != NOT_NOW
    {
        world.trace.note(format_args!("refused: {why}"));
        match why.contains(&*file.to_string_lossy()) {
            true => world.trace.count("refused logs"),
            false => world.fault(format!("{} is damaged, and h{at} is refused for this: {why}", file.display())),
        }
        world.repair(at, whole);
        start(&world, at).await;
    }
}

/// What the group has come to in the end.
pub struct Agreed {
    pub revision: i64,
    /// Hosts of those that vote, each of which answers.
    pub voters: Vec<usize>,
}

/// All is mended, and everybody comes back, until all agree.
pub async fn converge(world: &Arc<World>) -> Result<Agreed, String> {
    const PATIENCE: Duration = Duration::from_secs(120);
    // Somebody may have heard only of the first address of another.
    world.hosts.lock().keys().for_each(|at| world.net.listen_from(*at, FIRST_PORT));
    let mut moved = false;
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        world.net.heal();
        for at in world.stopped() {
            world.slow_disk(at, Duration::from_millis(2));
            // One may need another that comes after it.
            come_back(world, at, Duration::ZERO);
        }
        let missing = match agreed(world).await {
            Ok(agreed) if moved => return Ok(agreed),
            Ok(_) => {
                moved = true;
                world.only_as_listed();
                "some were moved".to_owned()
            }
            Err(missing) => missing,
        };
        if tokio::time::Instant::now() > until {
            return Err(format!("not well again within {PATIENCE:?}: {missing}"));
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

async fn agreed(world: &Arc<World>) -> Result<Agreed, String> {
    let leader = leader(world).ok_or("there is no leader")?;
    let (node, state, _) = world.node(leader).ok_or("the leader is gone")?;
    let members = node.member_list(true).await.map_err(|e| format!("the members are not listed: {e}"))?;
    // Whose adding nobody heard of.
    for member in &members {
        let slot = member.peer_urls.first().map_or(usize::MAX, |url| host_of(url));
        settle(world, slot, member.id).await;
    }
    let revision = state.revision();
    let hash = state.pin().hash().map_err(|e| e.to_string())?;
    let applied = state.applied();
    let mut voters = Vec::new();
    for member in &members {
        let at = world.host_with(member.id).ok_or_else(|| format!("{} has no host", member.id))?;
        let (other, state, _) = world.node(at).ok_or_else(|| format!("h{at} does not run"))?;
        if !member.is_learner {
            voters.push(at);
            let read = tokio::time::timeout(Duration::from_secs(3), other.member_list(true)).await;
            read.map_err(|_| format!("h{at} does not answer"))?.map_err(|e| format!("h{at}: {e}"))?;
        }
        if state.applied() != applied {
            return Err(format!("h{at} is at {:?}, the leader at {applied:?}", state.applied()));
        }
        let other = state.pin().hash().map_err(|e| e.to_string())?;
        if other != hash {
            world.fault(format!("h{at} holds {other:x} at {applied:?}, the leader {hash:x}"));
        }
    }
    // And those that were removed have heard of it.
    let strangers = world.running().into_iter().filter(|at| {
        let id = world.hosts.lock().get(at).map(|host| host.id);
        !members.iter().any(|member| Some(member.id) == id)
    });
    match strangers.collect::<Vec<_>>()[..] {
        [] => Ok(Agreed { revision, voters }),
        ref still => Err(format!("{still:?} were removed and run")),
    }
}
