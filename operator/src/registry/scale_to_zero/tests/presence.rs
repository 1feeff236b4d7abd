//! What the presence says, and what is made of it before the broker has answered.

use super::*;

#[test]
fn what_the_service_says_of_itself_now_is_published_while_it_sleeps() {
    let mut scene = Scene::new(0, ServicePresence::Parked);
    scene.expect(&["subscribe"]);
    scene.machine.observed.outdated = true;
    scene.step();
    scene.expect(&["park"]);
    // What a refused service would say is not to be had.
    scene.machine.observed.outdated = true;
    scene.machine.observed.unaccepted = true;
    scene.pass(AGAIN);
    scene.expect(&[]);
    // An instance that is on its way says it itself, and is not to be overtaken.
    scene.machine.observed.unaccepted = false;
    scene.obeys = false;
    scene.machine.observed.outdated = false;
    scene.initialize("client-1");
    scene.expect(&["keep client-1", "scale 1"]);
    scene.machine.observed.outdated = true;
    scene.pass(AGAIN);
    scene.expect(&[]);
}

#[test]
fn it_is_about_to_sleep_until_the_broker_has_said_that_it_is_heard_who_wakes_it() {
    let mut scene = Scene::new(1, ServicePresence::Empty);
    let is_about_to = |scene: &Scene| (scene.machine.is_about_to_sleep(), scene.machine.sleeps());
    assert_eq!(is_about_to(&scene), (false, false), "it has an instance");
    scene.obeys = false;
    scene.machine.observed.replicas = 0;
    scene.step();
    scene.expect(&["subscribe"]);
    assert_eq!(is_about_to(&scene), (false, false), "its presence does not stand there");
    scene.place(ServicePresence::Parked);
    assert_eq!(is_about_to(&scene), (true, false));
    scene.with(|machine, now, out| machine.subscribed(true, now, out));
    assert_eq!(is_about_to(&scene), (false, true));
    scene.machine.unlinked();
    assert_eq!(is_about_to(&scene), (true, false), "the next connection asks anew");
    scene.machine.observed.sleep = None;
    assert_eq!(is_about_to(&scene), (false, false), "it never sleeps");
    scene.machine.observed.sleep = Some(Sleep { idle: IDLE, wake_timeout: WAKE_TIMEOUT });
    scene.machine.observed.replicas = 1;
    assert_eq!(is_about_to(&scene), (false, false), "it wakes");
}

#[test]
fn what_may_not_be_cleared_keeps_nobody_from_sleep() {
    let mut scene = Scene::new(1, ServicePresence::Parked);
    scene.obeys = false;
    scene.machine.observed.elsewhere = vec![under_its_own_id("weather-1")];
    scene.pass(ELSEWHERE + AGAIN);
    assert!(scene.log.contains(&"clear".to_owned()), "{:?}", scene.log);
    scene.machine.forbid(Need::Place, "allow it".to_owned(), scene.now);
    assert_eq!(scene.machine.forbidden(), None);
    scene.machine.observed.replicas = 0;
    scene.machine.forbid(Need::Place, "allow it".to_owned(), scene.now);
    assert_eq!(scene.machine.forbidden(), Some("allow it"), "it is to sleep");
}
