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
//! A failure prints the line that replays it. `ACKSTREAM_SIM_SEEDS` sets how many seeds are run. `checks/simulate 24h` lives through
//! simulated time without an end in between.

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
    let seeds = 0..100;

    let once: Vec<_> = seeds.clone().map(|seed| simulate(seed, false).digest).collect();
    let twice: Vec<_> = seeds.map(|seed| simulate(seed, false).digest).collect();

    assert_eq!(once, twice);
    assert_eq!(once.iter().collect::<BTreeSet<_>>().len(), once.len());
}

/// A consumer's stream breaks or ends at least so often in an hour: 15,000 times in a day.
const DISCONNECTS_AN_HOUR: u64 = 625;

#[test]
fn hour_after_hour_the_core_does_what_the_model_says() {
    let (hours, seed) = (number("ACKSTREAM_SIM_HOURS").unwrap_or(4), number("ACKSTREAM_SIM_SEED").unwrap_or(0));
    let step = Rc::new(Cell::new(0));
    let lived = Cell::new(0);
    let live = || {
        let mut world = World::everyday(seed, Rc::clone(&step));
        for hour in 1..=hours {
            world.live_an_hour();
            lived.set(hour);
            if hour.is_multiple_of(hours.div_ceil(20)) {
                eprintln!("{hour} of {hours} simulated hours, {} steps", step.get());
            }
        }
        world.end().statistics
    };
    let statistics = catch_unwind(AssertUnwindSafe(live)).unwrap_or_else(|panic| {
        panic!(
            "seed {seed}, hour {}, step {}: {}\nreplay it with:\nchecks/simulate {hours}h {seed}",
            lived.get() + 1,
            step.get(),
            message(panic.as_ref())
        )
    });
    println!("seed {seed}, {hours} simulated hours, in each of them:\n{}", statistics.an_hour(hours));
    let disconnects = statistics.get("left broken") + statistics.get("left clean");
    assert!(disconnects >= DISCONNECTS_AN_HOUR * hours, "only {disconnects} disconnects");
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
