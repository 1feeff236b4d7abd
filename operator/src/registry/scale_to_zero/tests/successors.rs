//! Who takes the place over where there are several.

use super::*;

/// The instance that our presence names as the one to take it over.
fn successor(scene: &Scene) -> Option<&str> {
    scene.machine.successor().map(ServerId::as_str)
}

fn instances(names: &[&str]) -> Vec<ServerId> {
    names.iter().map(|name| ServerId::new(name).unwrap()).collect()
}

#[test]
fn one_instance_needs_no_word_and_of_several_the_oldest_is_named() {
    let mut scene = Scene::new(0, ServicePresence::Parked);
    scene.machine.observed.replicas = 1;
    scene.machine.observed.instances = instances(&["weather-9"]);
    scene.step();
    scene.expect(&["subscribe"]);
    assert_eq!(successor(&scene), None);
    scene.machine.observed.instances = instances(&["weather-1", "weather-9"]);
    scene.pass(Duration::from_secs(2));
    scene.expect(&["park"]);
    assert_eq!(successor(&scene), Some("weather-9"), "it may have seen that it may");
    scene.place(ServicePresence::Taken);
    scene.expect(&["unsubscribe"]);
}

#[test]
fn another_one_is_named_when_the_successor_goes_and_when_it_is_outrun() {
    let mut scene = Scene::new(0, ServicePresence::Parked);
    scene.machine.observed.replicas = 3;
    scene.machine.observed.instances = instances(&["weather-1", "weather-2", "weather-3"]);
    scene.step();
    scene.expect(&["subscribe", "park"]);
    scene.machine.observed.instances.remove(0);
    scene.pass(Duration::from_secs(1));
    scene.expect(&["park"]);
    assert_eq!(successor(&scene), Some("weather-2"));
    // It starts slowly, and another one is there: it is not asked at once, they might both come.
    scene.machine.observed.elsewhere = vec![under_its_own_id("weather-3")];
    scene.pass(NUDGE.checked_sub(Duration::from_secs(1)).unwrap());
    scene.expect(&[]);
    scene.pass(Duration::from_secs(2));
    scene.expect(&["park", "nudge weather-3"]);
    assert_eq!(successor(&scene), Some("weather-3"));
}

#[test]
fn a_successor_whose_name_was_lost_on_the_way_is_named_again() {
    let mut scene = Scene::new(0, ServicePresence::Parked);
    scene.machine.observed.replicas = 2;
    scene.machine.observed.instances = instances(&["weather-1", "weather-2"]);
    scene.step();
    scene.expect(&["subscribe", "park"]);
    // The connection ended before the broker had it.
    scene.machine.unlinked();
    scene.machine.observed.named = None;
    scene.machine.observed.link = true;
    scene.step();
    scene.expect(&["subscribe", "park"]);
    scene.pass(Duration::from_secs(1));
    scene.expect(&[]);
}

#[test]
fn whom_an_operator_before_us_named_keeps_nobody_out_who_is_left() {
    let named = |instance: &str, left: &[&str]| {
        let mut scene = Scene::new(0, ServicePresence::Parked);
        scene.expect(&["subscribe"]);
        scene.machine.observed.named = ServerId::new(instance).ok();
        scene.machine.observed.replicas = i32::try_from(left.len()).unwrap();
        scene.machine.observed.instances = instances(left);
        scene.pass(Duration::from_secs(1));
        scene
    };
    named("weather-1", &["weather-2"]).expect(&["park"]);
    named("weather-1", &[]).expect(&["park"]);
    named("weather-1", &["weather-1"]).expect(&[]);
}

#[test]
fn of_those_that_are_there_one_without_sessions_is_named() {
    let mut scene = Scene::new(0, ServicePresence::Parked);
    scene.machine.observed.replicas = 3;
    scene.machine.observed.instances = instances(&["weather-1", "weather-2", "weather-3"]);
    scene.step();
    let busy = Elsewhere { busy: true, ..under_its_own_id("weather-2") };
    scene.machine.observed.elsewhere = vec![busy, under_its_own_id("weather-3")];
    scene.pass(NUDGE + Duration::from_secs(1));
    scene.expect(&["subscribe", "park", "park", "nudge weather-3"]);
    assert_eq!(successor(&scene), Some("weather-3"));
}

#[test]
fn who_goes_back_to_sleep_names_nobody() {
    let mut scene = Scene::new(0, ServicePresence::Parked);
    scene.machine.observed.replicas = 2;
    scene.machine.observed.instances = instances(&["weather-1", "weather-2"]);
    scene.step();
    scene.pass(Duration::from_secs(1));
    scene.machine.observed.replicas = 0;
    scene.step();
    scene.expect(&["subscribe", "park", "park"]);
    assert_eq!(successor(&scene), None);
}
