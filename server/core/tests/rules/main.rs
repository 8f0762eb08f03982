//! The rules of delivery: each is one test, whose name is the rule as a sentence. Times are milliseconds after the start.

mod acks;
mod alone;
mod dead_letters;
mod deadlines;
mod endings;
mod fan_out;
mod flow_control;
mod history;
mod interruptions;
mod nacks;
mod policy;
mod releases;
mod sessions;
mod unresponsive;
mod wakes;
mod words;
mod workbench;
