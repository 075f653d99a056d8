//! The checker finds every planted mistake and no others.

use super::*;
use crate::sim::Rng;

fn done(called: u64, answered: u64, call: Call, answer: Answer) -> Operation {
    Operation { called, call, answered: Some((answered, answer)) }
}

fn lost(called: u64, call: Call) -> Operation {
    Operation { called, call, answered: None }
}

const GET: Call = Call::Get;
const DONE: Answer = Answer::Done;

fn found(value: u64) -> Answer {
    Answer::Found(Some(value))
}

#[test]
fn concurrent_operations_may_have_either_order() {
    let write = done(1, 10, Call::Put(1), DONE);
    for seen in [Answer::Found(None), found(1)] {
        linearizable(&[write, done(2, 3, GET, seen)]).unwrap();
    }
    // But what one reader has seen, no later one may miss.
    let seen = [write, done(2, 3, GET, found(1)), done(4, 5, GET, Answer::Found(None))];
    linearizable(&seen).unwrap_err();
}

#[test]
fn a_stale_read_is_found() {
    let (one, two) = (done(1, 2, Call::Put(1), DONE), done(3, 4, Call::Put(2), DONE));
    linearizable(&[one, two, done(5, 6, GET, found(2))]).unwrap();
    linearizable(&[one, two, done(5, 6, GET, found(1))]).unwrap_err();
    linearizable(&[one, two, done(3, 6, GET, found(1))]).unwrap();
}

#[test]
fn a_lost_write_is_found() {
    let write = done(1, 2, Call::Put(1), DONE);
    linearizable(&[write, done(3, 4, GET, Answer::Found(None))]).unwrap_err();
    let deleted = done(2, 5, Call::Delete, DONE);
    linearizable(&[write, deleted, done(3, 4, GET, Answer::Found(None))]).unwrap();
}

#[test]
fn a_write_nobody_made_is_found() {
    linearizable(&[done(3, 4, GET, found(7))]).unwrap_err();
    linearizable(&[done(3, 4, GET, found(7)), lost(1, Call::Put(7))]).unwrap();
    linearizable(&[done(3, 4, GET, found(7)), lost(5, Call::Put(7))]).unwrap_err();
}

#[test]
fn a_write_of_unknown_outcome_happens_late_or_never_but_once() {
    let (unknown, other) = (lost(1, Call::Put(1)), done(2, 3, Call::Put(2), DONE));
    let early = done(4, 5, GET, found(2));
    linearizable(&[unknown, other, early]).unwrap();
    let late = done(6, 7, GET, found(1));
    linearizable(&[unknown, other, early, late]).unwrap();
    let back = done(8, 9, GET, found(2));
    linearizable(&[unknown, other, early, late, back]).unwrap_err();
}

#[test]
fn two_swaps_of_one_value_cannot_both_succeed() {
    let start = done(1, 2, Call::Put(1), DONE);
    let swap = |to, won| done(3, 10, Call::Swap(Some(1), to), Answer::Swapped(won));
    linearizable(&[start, swap(2, true), swap(3, false)]).unwrap();
    linearizable(&[start, swap(2, true), swap(3, true)]).unwrap_err();
    linearizable(&[start, swap(2, false), swap(3, false)]).unwrap_err();
    // Somebody whose answer was lost may have been faster.
    let third = lost(2, Call::Swap(Some(1), 4));
    linearizable(&[start, swap(2, false), swap(3, false), third]).unwrap();
}

/// Histories made by a real register, and the same with one answer changed.
#[test]
fn histories_of_a_register_pass_and_a_changed_answer_does_not() {
    let mut caught = 0;
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let mut history = register(&mut rng);
        linearizable(&history).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        let reads: Vec<usize> = (0..history.len())
            .filter(|at| matches!(history[*at].answered, Some((_, Answer::Found(_)))))
            .collect();
        let at = *rng.pick(&reads).unwrap();
        let answered = history[at].answered.unwrap().0;
        history[at].answered = Some((answered, found(rng.within(1_000..2_000))));
        caught += usize::from(linearizable(&history).is_err());
    }
    assert_eq!(caught, 300, "values that nobody wrote");
}

/// Sixty operations of up to six clients on a register; a tenth of the answers are lost.
fn register(rng: &mut Rng) -> Vec<Operation> {
    let mut free = [0u64; 6];
    let (mut value, mut now) = (None, 0);
    let mut history = vec![done(0, 1, GET, Answer::Found(None))];
    for new in 1..60 {
        let client = rng.place(free.len());
        // The moment of an operation lies between its call and its answer.
        now += rng.within(1..10);
        let called = (now - rng.within(0..now.min(20))).max(free[client]) * 100;
        let call = match rng.within(0..10) {
            0..5 => GET,
            5..8 => Call::Put(new),
            8 => Call::Delete,
            _ => Call::Swap(value.filter(|_| rng.chance(70)), new),
        };
        let (after, answer) = match call {
            Call::Get => (value, Answer::Found(value)),
            Call::Put(new) => (Some(new), DONE),
            Call::Delete => (None, DONE),
            Call::Swap(from, to) if from == value => (Some(to), Answer::Swapped(true)),
            Call::Swap(..) => (value, Answer::Swapped(false)),
        };
        let known = rng.chance(90);
        if known || rng.chance(50) {
            value = after;
        }
        let end = now + 1 + rng.within(0..20);
        free[client] = end;
        let answered = known.then_some((end * 100, answer));
        history.push(Operation { called: called.min(now * 100 - 1), call, answered });
        now += 1;
    }
    history
}

#[test]
fn revisions_that_go_back_in_time_are_found() {
    let stamp = |called, revision, wrote| Stamp { called, answered: called + 2, revision, wrote };
    let (write, read) = (stamp(1, 5, true), stamp(10, 5, false));
    in_time_order(&[write, read, stamp(20, 6, true)]).unwrap();
    in_time_order(&[write, stamp(2, 4, false)]).unwrap();
    in_time_order(&[write, stamp(10, 4, false)]).unwrap_err();
    in_time_order(&[write, stamp(10, 5, true)]).unwrap_err();
    in_time_order(&[write, stamp(2, 5, true)]).unwrap_err();
}

#[test]
fn a_watcher_must_hear_everything_once_and_in_order() {
    heard_all(&[1, 2, 3], &[1, 2, 3]).unwrap();
    for heard in [&[1, 3][..], &[1, 2], &[1, 2, 2, 3], &[2, 1, 3], &[1, 2, 3, 4]] {
        heard_all(&[1, 2, 3], heard).unwrap_err();
    }
}
