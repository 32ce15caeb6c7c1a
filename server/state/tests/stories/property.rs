//! Random commands, held against the naive model: every answer, every range, all of history.

use crate::member::{Entry, Member};
use crate::model::{Model, Random};
use ferretcd_state::{Applied, Effect, SnapshotKind};
use ferretcd_types::{Command, Error};

#[test]
fn the_state_agrees_with_the_model() {
    for seed in 1..=16 {
        let mut random = Random(seed);
        let mut model = Model::new();
        let mut member = Member::new();
        for step in 0..200 {
            let command = random.command(model.revision());
            let at = || format!("seed {seed}, step {step}, {command:?}");
            let before = model.events.len();
            let expected = model.apply(&command);
            let Applied { outcome, effects } = member.enter(Entry::Command(command.clone()));
            assert_eq!(outcome, expected, "{}", at());
            let events = effects.iter().find_map(|effect| match effect {
                Effect::Events { events, .. } => Some(&events[..]),
                _ => None,
            });
            assert_eq!(events.unwrap_or_default(), &model.events[before..], "{}", at());
            if let Command::Compact(_) = command
                && random.below(2) == 0
            {
                member.state.wait_compacted(model.compacted).unwrap();
            }
            for _ in 0..3 {
                let range = random.range(model.revision());
                assert_eq!(member.state.range(&range), model.range(&range), "{}, {range:?}", at());
            }
            assert_eq!(member.state.revision(), model.revision());
            if random.below(40) == 0 {
                member = match random.below(3) {
                    0 => member.after_power_cut(),
                    1 => member.after_flush_and_power_cut(),
                    _ => {
                        let mut fresh = Member::new();
                        fresh.install(&member.snapshot(SnapshotKind::Raft)).unwrap();
                        fresh.log = member.log;
                        fresh
                    }
                };
            }
            if random.below(10) == 0 {
                compare_whole(&member, &model, &at());
            }
        }
        compare_whole(&member, &model, &format!("seed {seed}, the end"));
    }
}

fn compare_whole(member: &Member, model: &Model, at: &str) {
    let state = &member.state;
    let first = model.compacted.max(0);
    for from in first..=model.revision() + 1 {
        let batch = state.events(from, 7, 300).unwrap();
        let expected = model.events.iter().filter(|event| (from..batch.next).contains(&event.revision.main));
        assert!(batch.events.iter().eq(expected), "{at}: events from {from} to {}", batch.next);
        assert!(batch.next > from || from > model.revision(), "{at}: no progress from {from}");
        for event in &batch.events {
            assert_eq!(state.value_before(event).unwrap(), model.value_before(event), "{at}: before {event:?}");
        }
    }
    if model.compacted > 0 {
        assert_eq!(state.events(model.compacted - 1, 7, 300), Err(Error::Compacted), "{at}");
    }
    for revision in model.compacted.max(1)..=model.revision() {
        assert_eq!(state.hash_kv(revision).unwrap().hash, model.hash(revision), "{at}: hash at {revision}");
    }
    assert!(state.leases().iter().map(|(id, _)| *id).eq(model.leases.iter().copied()), "{at}");
    for id in &model.leases {
        assert_eq!(state.lease(*id).unwrap().keys, model.lease_keys(*id), "{at}: lease {id:?}");
    }
}
