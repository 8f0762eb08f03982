//! A configuration file and environment variables: whatever they say, they are understood, and printed so that the print means the
//! same, or refused with reasons.

#![no_main]

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::LazyLock;

use ackstream::config::{Config, Defaults, Layers, Problem};
use libfuzzer_sys::fuzz_target;

static FILE: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("ackstream-fuzz-{}.toml", std::process::id())));

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    // What follows a line of its own is variables, each NAME=VALUE.
    let (file, variables) = text.split_once("\n---\n").unwrap_or((text, ""));
    let environment = variables.lines().filter_map(|line| line.split_once('='));
    let environment = environment
        .map(|(name, value)| (OsString::from(format!("ACKSTREAM_{name}")), OsString::from(value)))
        .filter(|(name, _)| name != "ACKSTREAM_CONFIG"); // it names another file
    match load(file, environment) {
        Ok(config) => {
            let printed = config.to_string();
            let again =
                load(&printed, []).unwrap_or_else(|problems| panic!("{problems:?} in what was printed:\n{printed}"));
            assert_eq!(values(&again), values(&config), "{printed}");
            assert_eq!(again.security.access, config.security.access, "{printed}");
        }
        Err(problems) => {
            assert!(!problems.is_empty());
            problems.iter().for_each(|problem| assert!(!problem.what.is_empty() && !problem.must.is_empty()));
        }
    }
});

fn load(file: &str, environment: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Config, Vec<Problem>> {
    std::fs::write(&*FILE, file).expect("there is a folder for temporary files");
    Config::load(&Layers::read(Some(FILE.clone()), environment, [], Defaults::Server))
}

fn values(config: &Config) -> Vec<(String, &'static str, String)> {
    config.effective.iter().map(|one| (one.table.clone(), one.key, one.value.clone())).collect()
}
