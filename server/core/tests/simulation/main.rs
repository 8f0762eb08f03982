//! A seeded simulation of subscriptions against a reference model.
//!
//! A seed decides the policies, the publishers, the consumers with their manners, and the clock. Each input goes to the core and to
//! a model that applies the rules of delivery slowly and obviously; after each, everything that can be seen of the core must be as
//! the model says: each event with its instant, each delivery, the counts and both laws, when the core must be called next,
//! and who is woken. At the end the faults stop, and everything must be settled.
//!
//! ```text
//!   plan ──▶ world ──▶ checked ──┬──▶ core  ──▶ recorder ──┬──▶ the same?
//!                                ╰──▶ model ──▶ ledger ────╯
//! ```
//!
//! A failure prints the line that replays it. `ACKSTREAM_SIM_SEEDS` sets how many seeds are run.

mod checked;
mod model;
mod plan;
mod statistics;
mod told;
mod world;

use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use statistics::Statistics;
use world::{Outcome, World};

/// About ten seconds on one slow core, without optimization.
const DEFAULT_SEEDS: u64 = 400;

#[test]
fn the_core_does_what_the_model_says_and_settles_everything_once_the_faults_stop() {
    let seeds = number("ACKSTREAM_SIM_SEEDS").unwrap_or(DEFAULT_SEEDS);
    let mut statistics = Statistics::default();

    for seed in 0..seeds {
        statistics.merge(&simulate(seed, false).statistics);
    }

    println!("{seeds} seeds: {statistics}");
    if seeds >= DEFAULT_SEEDS {
        assert_eq!(statistics.missing(), Vec::<&str>::new(), "the simulation has stopped to cause these");
    }
}

#[test]
fn the_same_seed_gives_the_same_history_and_another_seed_another() {
    let seeds = 0..40;

    let once: Vec<_> = seeds.clone().map(|seed| simulate(seed, false).digest).collect();
    let twice: Vec<_> = seeds.map(|seed| simulate(seed, false).digest).collect();

    assert_eq!(once, twice);
    assert_eq!(once.iter().collect::<BTreeSet<_>>().len(), once.len());
}

#[test]
fn replay() {
    if let Some(seed) = number("ACKSTREAM_SIM_SEED") {
        let Outcome { digest, statistics } = simulate(seed, true);
        println!("seed {seed}, digest {digest:016x}: {statistics}");
    }
}

fn simulate(seed: u64, talks: bool) -> Outcome {
    let step = Rc::new(Cell::new(0));
    catch_unwind(AssertUnwindSafe(|| World::new(seed, Rc::clone(&step), talks).run())).unwrap_or_else(|panic| {
        panic!(
            "seed {seed}, step {}: {}\nreplay it with:\nACKSTREAM_SIM_SEED={seed} cargo test -p ackstream-core --test simulation replay -- --nocapture",
            step.get(),
            message(panic.as_ref())
        )
    })
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {value}")))
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let formatted = panic.downcast_ref::<String>().map(String::as_str);
    formatted.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
