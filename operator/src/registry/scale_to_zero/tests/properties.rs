//! Whatever happens, in whatever order.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Event {
    Pass(u16),
    Initialize(u8),
    Left(u8),
    ServicePresence(ServicePresence),
    Replicas(i32),
    Idle(Idle),
    Link(bool),
    Subscribed(bool),
    Forbid(bool),
    Scaled(bool),
    Asked(Idle),
    Problem(Option<bool>),
    Elsewhere(bool),
}

fn answer(done: bool) -> Result<(), Obstacle> {
    if done { Ok(()) } else { Err(Obstacle { why: "forbidden".to_owned(), hopeless: true }) }
}

fn idle() -> impl Strategy<Value = Idle> {
    prop_oneof![
        Just(Idle::Unknown),
        Just(Idle::Busy),
        (0_u64..200).prop_map(|seconds| Idle::For(Duration::from_secs(seconds)))
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let place = prop_oneof![
        Just(ServicePresence::Empty),
        Just(ServicePresence::Parked),
        Just(ServicePresence::Taken)
    ];
    prop_oneof![
        4 => (1_u16..2000).prop_map(Event::Pass),
        4 => (0_u8..6).prop_map(Event::Initialize),
        1 => (0_u8..6).prop_map(Event::Left),
        3 => place.prop_map(Event::ServicePresence),
        2 => (0_i32..3).prop_map(Event::Replicas),
        2 => idle().prop_map(Event::Idle),
        1 => any::<bool>().prop_map(Event::Link),
        2 => any::<bool>().prop_map(Event::Subscribed),
        1 => any::<bool>().prop_map(Event::Forbid),
        1 => any::<bool>().prop_map(Event::Scaled),
        2 => idle().prop_map(Event::Asked),
        1 => any::<Option<bool>>().prop_map(Event::Problem),
        1 => any::<bool>().prop_map(Event::Elsewhere),
    ]
}

proptest! {
    /// Whatever happens: each message that is held ends once, nobody waits too long, and no instance is ended while
    /// the service does not show, cannot be heard, or somebody waits; and the broker keeps no filter of ours that we do not
    /// know of.
    #[test]
    fn each_message_ends_once_and_nothing_is_ended_too_early(events in proptest::collection::vec(event(), 1..120)) {
        let mut scene = Scene::new(1, ServicePresence::Empty);
        scene.obeys = false;
        let mut open = BTreeSet::new();
        // Whether the broker may have our filter, and whether it was ever asked to.
        let (mut heard, mut asked) = (false, false);
        scene.machine.resumed = true;
        for event in events {
            let mut out = Vec::new();
            let (machine, now) = (&mut scene.machine, scene.now);
            match event {
                Event::Pass(ms) => {
                    scene.now += Duration::from_millis(ms.into());
                    machine.step(scene.now, &mut out);
                }
                Event::Initialize(client) => {
                    scene.next_id += 1;
                    let held = PendingInitialize {
                        client: ClientId::new(&format!("c{client}")).unwrap(),
                        id: RequestId::number(scene.next_id),
                        payload: Bytes::from_static(b"{}"),
                        since: now,
                    };
                    open.insert(held.id.as_json().to_owned());
                    machine.initialize(held, true, now, &mut out);
                }
                Event::Left(client) => machine.client_left(&format!("c{client}"), &mut out),
                Event::ServicePresence(place) => { machine.observed.place = place; machine.step(now, &mut out); }
                Event::Replicas(replicas) => { machine.observed.replicas = replicas; machine.step(now, &mut out); }
                Event::Idle(idle) => { machine.observed.idle = idle; machine.step(now, &mut out); }
                Event::Link(true) => {
                    machine.observed.link = true;
                    machine.step(now, &mut out);
                }
                Event::Link(false) => {
                    machine.unlinked();
                    heard |= asked; // an Unsubscribe may have been lost with the connection
                }
                Event::Forbid(control) => {
                    let need = if control { Need::Control } else { Need::Place };
                    machine.forbid(need, "not authorized".to_owned(), now);
                }
                Event::Subscribed(granted) => machine.subscribed(granted, now, &mut out),
                Event::Scaled(done) => {
                    if let Some((replicas, _)) = machine.scaling {
                        machine.scaled(replicas, answer(done), now, &mut out);
                    }
                }
                Event::Asked(idle) => machine.asked(idle, now, &mut out),
                Event::Problem(problem) => {
                    machine.observed.problem = problem.map(obstacle);
                    machine.step(now, &mut out);
                }
                Event::Elsewhere(there) => {
                    machine.observed.elsewhere = there.then(|| under_its_own_id("weather-1")).into_iter().collect();
                    machine.step(now, &mut out);
                }
            }
            for action in out {
                match action {
                    Action::Subscribe => (heard, asked) = (true, true),
                    Action::Unsubscribe => heard = false,
                    Action::Drop(held) | Action::Forward(held) | Action::Refuse(held, _) => {
                        prop_assert!(open.remove(held.id.as_json()), "{held:?} ends twice");
                    }
                    Action::Scale { to: 0, .. } => {
                        prop_assert_eq!(scene.machine.observed.place, ServicePresence::Parked);
                        prop_assert_eq!(scene.machine.control, Control::On);
                        prop_assert!(scene.machine.waiting().is_empty());
                    }
                    _ => {}
                }
            }
            prop_assert_eq!(open.len(), scene.machine.waiting().len());
            prop_assert!(scene.machine.control != Control::Off || !heard, "the broker still has our filter");
        }
        // At last everybody has an answer.
        let mut out = Vec::new();
        scene.machine.step(scene.now + WAKE_TIMEOUT, &mut out);
        prop_assert!(scene.machine.waiting().is_empty());
    }
}
