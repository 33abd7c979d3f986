//! The order in which turns come, as tables; and that no slot is ever lost.

use std::sync::Arc;

use run::{Command, Limits, Principal, Quota, Scope};

use super::*;

fn principal(name: &str, quota: Quota) -> Arc<Principal> {
    let name = PrincipalName::parse(name).unwrap();
    Arc::new(Principal { name, scopes: [Scope::Run].into(), quota })
}

fn spec(who: &Arc<Principal>, priority: i32) -> RunSpec {
    let command = Command::parse(Some("p".into()), Vec::new()).unwrap();
    RunSpec { principal: Arc::clone(who), priority, ..RunSpec::new("x", command) }
}

fn large(who: &Arc<Principal>, cpus: f64) -> RunSpec {
    let limits = Limits { cpus, ..Limits::default() };
    RunSpec { limits, ..spec(who, 0) }
}

fn admission(slots: usize, capacity: usize) -> Arc<Admission> {
    Admission::new(slots, capacity, Budget::default())
}

/// The names in the order in which one slot goes round among those who wait.
fn order(fair: &mut Fair, mut held: Vec<Turn>) -> Vec<String> {
    let mut names = Vec::new();
    while !held.is_empty() {
        fair.release(&held.remove(0));
        while let Some(turn) = fair.next() {
            names.push(turn.place.who.to_string());
            held.push(turn);
        }
    }
    names
}

fn fair(slots: usize, cpus: f64) -> Fair {
    Fair::new(Claim::all(slots, &Budget { cpus, ..Budget::default() }), &[])
}

fn one(cpus: f64) -> Claim {
    Claim::of(&Limits { cpus, ..Limits::default() }, &Budget::default())
}

#[test]
fn ten_thousand_runs_of_one_delay_anothers_first_by_one_turn() {
    let (alice, bob, carl) = (
        principal("alice", Quota::default()),
        principal("bob", Quota::default()),
        principal("carl", Quota::default()),
    );
    for slots in [1, 4] {
        let mut fair = fair(slots, 1000.0);
        let now = Instant::now();
        for _ in 0..10_000 {
            fair.enter(&alice, 1000, one(1.0), now);
        }
        let held: Vec<_> = std::iter::from_fn(|| fair.next()).collect();
        assert_eq!(held.len(), slots);
        let bobs = fair.enter(&bob, -1000, one(1.0), now);
        fair.enter(&bob, 0, one(1.0), now);
        let carls = fair.enter(&carl, 0, one(1.0), now);
        assert!(fair.position(&bobs).unwrap() <= 6 && fair.position(&carls).unwrap() <= 3);
        let names = order(&mut fair, held);
        let first = |name: &str| names.iter().position(|served| served == name).unwrap();
        assert!(first("bob") < 2 && first("carl") < 2, "{:?}", &names[..6]);
        assert_eq!(names.len(), 10_003 - slots);
    }
}

#[test]
fn principals_take_turns_and_within_one_priority_counts() {
    let (alice, bob) = (principal("alice", Quota::default()), principal("bob", Quota::default()));
    let mut fair = fair(1, 1000.0);
    let now = Instant::now();
    let first = fair.enter(&alice, 0, one(1.0), now);
    let mut held = fair.next().unwrap();
    assert_eq!((held.place.key, fair.position(&first)), (first.key, None));
    for (who, priority) in [(&alice, 0), (&alice, 5), (&bob, 0), (&alice, 5), (&bob, 9), (&alice, -1)] {
        fair.enter(who, priority, one(1.0), now);
    }
    // Turns, and then what is left.
    let mut served = Vec::new();
    for _ in 0..6 {
        fair.release(&held);
        held = fair.next().unwrap();
        served.push(held.place.clone());
    }
    let names: Vec<_> = served.iter().map(|place| place.who.as_str()).collect();
    assert_eq!(names, ["bob", "alice", "bob", "alice", "alice", "alice"]);
    let of = |name: &str| -> Vec<_> {
        served.iter().filter(|place| place.who.as_str() == name).map(|place| place.key.0.0).collect()
    };
    assert_eq!((of("alice"), of("bob")), (vec![5, 5, 0, -1], vec![9, 0]));
}

#[test]
fn who_asks_for_much_takes_that_much_and_waits_for_it_without_starving() {
    let (alice, bob) = (principal("alice", Quota::default()), principal("bob", Quota::default()));
    let mut fair = fair(100, 4.0);
    let now = Instant::now();
    for _ in 0..5 {
        fair.enter(&bob, 0, one(1.0), now);
    }
    let mut held: Vec<_> = std::iter::from_fn(|| fair.next()).collect();
    assert_eq!(held.len(), 4, "four processors are four runs of one, however many slots there are");
    let big = fair.enter(&alice, 0, one(4.0), now);
    for _ in 0..100 {
        fair.enter(&bob, 0, one(1.0), now);
    }
    let mut turns = 0;
    loop {
        fair.release(&held.remove(0));
        held.extend(std::iter::from_fn(|| fair.next()));
        if fair.position(&big).is_none() {
            break;
        }
        turns += 1;
        assert!(turns < 30, "the large run starves");
    }
    assert!(turns >= 16, "small ones may go past it for a while");
    assert_eq!(held.len(), 1, "it has the whole host");
}

#[tokio::test]
async fn slots_go_by_priority_and_then_by_arrival() {
    let alice = principal("alice", Quota::default());
    let admission = admission(1, 10);
    let held = admission.enter(&spec(&alice, 0)).unwrap().slot().await;
    let mut low = admission.enter(&spec(&alice, -1)).unwrap();
    let mut first = admission.enter(&spec(&alice, 5)).unwrap();
    let mut second = admission.enter(&spec(&alice, 5)).unwrap();
    assert_eq!(admission.occupancy().queued, 3);
    assert_eq!(
        [&first, &second, &low].map(|ticket| admission.position(ticket.place())),
        [Some(1), Some(2), Some(3)]
    );
    drop(held);
    let slot = first.slot().await;
    assert!(second.granted.try_recv().is_err());
    drop(slot);
    drop(second.slot().await);
    drop(low.slot().await);
    drop((first, second, low));
    assert_eq!((admission.occupancy().busy, admission.occupancy().queued), (0, 0));
}

#[tokio::test]
async fn a_full_queue_is_full_for_those_who_filled_it_only() {
    let alice = principal("alice", Quota::default());
    let bob = principal("bob", Quota::default());
    let modest = principal("modest", Quota { queued: Some(0), ..Quota::default() });
    let admission = admission(1, 1);
    let slot = admission.enter(&spec(&alice, 0)).unwrap().slot().await;
    let waiting = admission.enter(&spec(&alice, 0)).unwrap();
    let second = Duration::from_secs(1);
    assert_eq!(
        admission.enter(&spec(&alice, 9)).unwrap_err(),
        Refused::Full { retry_after: second, own: false }
    );
    assert_eq!(
        admission.enter(&spec(&modest, 0)).unwrap_err(),
        Refused::Full { retry_after: second, own: true }
    );
    let mut bobs = admission.enter(&spec(&bob, 0)).unwrap();
    assert_eq!(admission.waiting_by().len(), 2);
    drop(waiting);
    drop(slot);
    drop(bobs.slot().await);
    drop(bobs);
    assert_eq!((admission.occupancy().busy, admission.occupancy().queued), (0, 0));
}

#[tokio::test]
async fn quotas_hold_for_a_principal_and_nobody_else() {
    let one = principal("one", Quota { concurrency: Some(1), ..Quota::default() });
    let slow = principal("slow", Quota { runs_per_minute: Some(6), ..Quota::default() });
    let other = principal("other-one", Quota::default());
    let admission = admission(3, 10);
    let first = admission.enter(&spec(&one, 0)).unwrap().slot().await;
    let mut second = admission.enter(&spec(&one, 0)).unwrap();
    drop(admission.enter(&spec(&other, 0)).unwrap().slot().await);
    assert!(second.granted.try_recv().is_err(), "two at once where one may");
    drop(first);
    drop(second.slot().await);

    drop(admission.enter(&spec(&slow, 0)).unwrap().slot().await);
    let Err(Refused::Rate { retry_after }) = admission.enter(&spec(&slow, 0)) else { panic!("too fast") };
    assert!(
        retry_after > Duration::from_secs(9) && retry_after <= Duration::from_secs(10),
        "{retry_after:?}"
    );
    assert!(admission.enter(&spec(&other, 0)).is_ok());
}

#[tokio::test]
async fn pinned_runs_have_cores_of_their_own_and_give_them_back() {
    let alice = principal("alice", Quota::default());
    let budget = Budget { cores: vec![2, 5, 7], ..Budget::default() };
    let admission = Admission::new(3, 10, budget);
    let a = admission.enter(&large(&alice, 1.0)).unwrap().slot().await;
    let b = admission.enter(&large(&alice, 2.0)).unwrap().slot().await;
    assert_eq!((a.cores(), b.cores()), (&[2][..], &[5, 7][..]));
    let mut c = admission.enter(&large(&alice, 0.5)).unwrap();
    assert!(c.granted.try_recv().is_err(), "there is no core left");
    drop(b);
    assert_eq!(c.slot().await.cores(), [5]);
    let refused = admission.enter(&large(&alice, 4.0)).unwrap_err();
    let most = "3".to_owned();
    assert_eq!(refused, Refused::TooLarge(TooLarge { limit: "cpus", asked: "4".into(), most }));
}

#[tokio::test]
async fn a_batch_none_of_whose_runs_has_a_place_counts_as_one_that_waits() {
    let alice = principal("alice", Quota::default());
    let bob = principal("bob", Quota { queued: Some(0), ..Quota::default() });
    let (admission, limits) = (admission(1, 2), Limits::default());
    let full = |own| Err(Refused::Full { retry_after: Duration::from_secs(1), own });
    let mut first = Some(admission.sit(&alice, &limits).unwrap());
    assert_eq!(admission.sit(&bob, &limits).map(drop), full(true), "hers has the only slot as good as taken");
    let second = admission.sit(&alice, &limits).unwrap();
    assert_eq!(admission.sit(&alice, &limits).map(drop), full(false));
    assert_eq!(admission.waiting_by(), [(alice.name.clone(), 2)]);
    let held = admission.enter(&spec(&alice, 0)).unwrap().slot().await;
    assert_eq!(admission.enter(&spec(&alice, 0)).map(drop), full(false), "as many wait as may");
    // Its first run has a place for the seat, the next has to find one.
    let one = admission.enter_from(&spec(&alice, 0), &mut first).unwrap();
    assert!(first.is_none());
    assert_eq!((admission.occupancy().queued, admission.position(one.place())), (2, Some(1)));
    assert_eq!(admission.enter_from(&spec(&alice, 0), &mut first).map(drop), full(false));
    drop(second);
    let _other = admission.enter_from(&spec(&alice, 0), &mut first).unwrap();
    drop((one, held));
    assert_eq!(admission.occupancy().queued, 0);
}

#[tokio::test]
async fn a_batch_that_its_rate_holds_up_keeps_its_seat() {
    let slow = principal("slow", Quota { runs_per_minute: Some(6), ..Quota::default() });
    let admission = admission(4, 1);
    let mut seat = Some(admission.sit(&slow, &Limits::default()).unwrap());
    let _first = admission.enter_from(&spec(&slow, 0), &mut seat).unwrap();
    let mut seat = Some(admission.sit_again(&slow));
    let refused = admission.enter_from(&spec(&slow, 0), &mut seat).unwrap_err();
    assert!(matches!(refused, Refused::Rate { .. }), "{refused:?}");
    assert_eq!((seat.is_some(), admission.occupancy().queued), (true, 1));
}

#[tokio::test]
async fn a_batch_that_no_slot_helps_keeps_none_from_others() {
    let slow = principal("slow", Quota { runs_per_minute: Some(6), ..Quota::default() });
    let alice = principal("alice", Quota::default());
    let bob = principal("bob", Quota { queued: Some(0), ..Quota::default() });
    let (admission, limits) = (admission(1, 1), Limits::default());
    // One has used up its rate, another waits for room.
    drop(admission.enter(&spec(&slow, 0)).unwrap().slot().await);
    let mut seat = Some(admission.sit(&slow, &limits).unwrap());
    admission.enter_from(&spec(&slow, 0), &mut seat).unwrap_err();
    let mut ticket = admission.enter(&spec(&alice, 0)).unwrap();
    let slot = ticket.slot().await;
    let aside = ticket.step_aside(&alice, slot);
    assert_eq!(admission.occupancy().queued, 2);
    assert_eq!(admission.expected_wait(&bob, &limits), Some(Duration::ZERO));
    drop(admission.sit(&bob, &limits).unwrap());
    // One more of its own would wait with it.
    for who in [&slow, &alice] {
        let refused = admission.sit(who, &limits).map(drop);
        assert!(matches!(refused, Err(Refused::Full { own: false, .. })), "{refused:?}");
    }
    drop((seat, aside));
    assert_eq!(admission.occupancy().queued, 0);
    drop([&slow, &alice].map(|who| admission.sit(who, &limits).unwrap()));
}

#[tokio::test]
async fn a_slot_that_is_given_back_unused_says_nothing_of_how_long_slots_are_held() {
    let alice = principal("alice", Quota::default());
    let admission = admission(1, 4);
    admission.lock().drain.ended(Duration::from_secs(8));
    let mut ticket = admission.enter(&spec(&alice, 0)).unwrap();
    let mut next = admission.enter(&spec(&alice, 0)).unwrap();
    let slot = ticket.slot().await;
    let seat = ticket.step_aside(&alice, slot);
    let slot = next.slot().await;
    // It has the place that it had before, ahead of those who came since.
    let mut later = admission.enter(&spec(&alice, 0)).unwrap();
    ticket.stand_again(&spec(&alice, 0));
    drop(seat);
    assert_eq!(admission.position(ticket.place()), Some(1));
    assert_eq!(admission.expected_wait(&alice, &Limits::default()), Some(Duration::from_secs(24)));
    drop(slot);
    drop(ticket.slot().await);
    drop(later.slot().await);
    assert_eq!(admission.occupancy().busy, 0);
}

#[tokio::test]
async fn a_slot_that_nobody_takes_is_not_lost() {
    let alice = principal("alice", Quota::default());
    let admission = admission(1, 4);
    let ticket = admission.enter(&spec(&alice, 0)).unwrap();
    let mut next = admission.enter(&spec(&alice, 0)).unwrap();
    drop(ticket);
    drop(next.slot().await);
    let left = admission.enter(&spec(&alice, 0)).unwrap();
    drop(left);
    assert_eq!(admission.occupancy().busy, 0);
    assert!(admission.lock().grants.is_empty());
}

#[tokio::test]
async fn the_wait_that_is_expected_is_what_lies_ahead() {
    let (alice, bob) = (principal("alice", Quota::default()), principal("bob", Quota::default()));
    let admission = admission(1, 10);
    assert_eq!(admission.expected_wait(&alice, &Limits::default()), Some(Duration::ZERO));
    let slot = admission.enter(&spec(&alice, 0)).unwrap().slot().await;
    assert_eq!(admission.expected_wait(&bob, &Limits::default()), None, "nothing has ended yet");
    admission.lock().drain.ended(Duration::from_secs(3));
    let _waiting: Vec<_> = (0..5).map(|_| admission.enter(&spec(&alice, 0)).unwrap()).collect();
    assert_eq!(admission.expected_wait(&alice, &Limits::default()), Some(Duration::from_secs(18)));
    assert_eq!(
        admission.expected_wait(&bob, &Limits::default()),
        Some(Duration::from_secs(6)),
        "his turn comes after one"
    );
    drop(slot);
}

#[tokio::test]
async fn a_quota_or_a_budget_that_is_used_up_is_waited_for_though_slots_are_free() {
    let one = principal("one", Quota { concurrency: Some(1), ..Quota::default() });
    let other = principal("bob", Quota::default());
    let admission = Admission::new(4, 10, Budget { cpus: 2.0, ..Budget::default() });
    let limits = |cpus| Limits { cpus, ..Limits::default() };
    let _held = admission.enter(&spec(&one, 0)).unwrap().slot().await;
    admission.lock().drain.ended(Duration::from_secs(3));
    let three = Some(Duration::from_secs(3));
    assert_eq!(admission.expected_wait(&one, &limits(1.0)), three, "its quota");
    assert_eq!(admission.expected_wait(&other, &limits(1.0)), Some(Duration::ZERO));
    assert_eq!(admission.expected_wait(&other, &limits(1.5)), three, "the budget");
}
