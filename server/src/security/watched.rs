//! Files that are read anew while the server runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};

use crate::config::Problem;

/// The contents of files, in a fixed order.
pub(super) type Contents = Vec<Vec<u8>>;

/// Files of which something is made.
pub(super) trait Material {
    /// What is made of them.
    type Made;

    /// What it is called in the log.
    const NAME: &str;

    /// Reads them.
    ///
    /// # Errors
    ///
    /// Everything that cannot be read.
    fn read(&self) -> Result<Contents, Vec<Problem>>;

    /// Makes it.
    ///
    /// # Errors
    ///
    /// What is wrong with the contents.
    fn make(&self, contents: &Contents) -> Result<Self::Made, Problem>;
}

/// What is made of files as they are now.
#[derive(Debug)]
pub(super) struct Watched<F: Material> {
    files: F,
    /// What was read first.
    contents: Contents,
    current: watch::Sender<Arc<F::Made>>,
}

impl<F: Material> Watched<F> {
    /// Reads the files for the first time.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with them.
    pub(super) fn load(files: F) -> Result<Self, Vec<Problem>> {
        let contents = files.read()?;
        let made = files.make(&contents).map_err(|problem| vec![problem])?;
        Ok(Self { files, contents, current: watch::Sender::new(Arc::new(made)) })
    }

    /// What is in force.
    pub(super) fn current(&self) -> Arc<F::Made> {
        Arc::clone(&self.current.borrow())
    }

    /// What is in force, and what will be.
    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<F::Made>> {
        self.current.subscribe()
    }

    /// Reads the files anew, so often. What has changed is in force once two looks in a row have found the same, so that a file is
    /// in force half-written only where its writer pauses; what is wrong is told once, and changes nothing. Never ends.
    pub(super) async fn keep_current(&self, every: Duration) {
        let mut in_force = self.contents.clone();
        let (mut seen, mut told) = (None, None);
        loop {
            tokio::time::sleep(every).await;
            let found = self.files.read();
            if found.as_ref() == Ok(&in_force) {
                (seen, told) = (None, None);
                continue;
            }
            let found = Some(found);
            let is_whole = seen == found;
            seen = found;
            if !is_whole || told == seen {
                continue;
            }
            told.clone_from(&seen);
            let made = match seen.clone().expect("it was found") {
                Ok(contents) => {
                    self.files.make(&contents).map(|made| (contents, made)).map_err(|problem| vec![problem])
                }
                Err(problems) => Err(problems),
            };
            match made {
                Ok((contents, made)) => {
                    info!("{} have changed: the new ones are in force", F::NAME);
                    in_force = contents;
                    self.current.send_replace(Arc::new(made));
                }
                Err(problems) => {
                    for problem in problems {
                        warn!("{problem}; what was read before stays in force");
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A file in memory, and a number in it.
    #[derive(Debug, Default)]
    struct Number(Arc<Mutex<String>>);

    impl Material for Number {
        type Made = u32;
        const NAME: &str = "Numbers";

        fn read(&self) -> Result<Contents, Vec<Problem>> {
            Ok(vec![self.0.lock().unwrap().clone().into_bytes()])
        }

        fn make(&self, contents: &Contents) -> Result<u32, Problem> {
            let text = std::str::from_utf8(&contents[0]).unwrap();
            let problem =
                |_| Problem { what: text.to_owned(), source: String::new(), must: "must be a number".to_owned() };
            text.parse().map_err(problem)
        }
    }

    /// What is in force after the file said this for so many seconds, one look in each.
    async fn after(texts: &[(&str, u64)]) -> Vec<u32> {
        let text = Arc::new(Mutex::new("1".to_owned()));
        let watched = Watched::load(Number(Arc::clone(&text))).unwrap();
        let mut found = Vec::new();
        let script = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            for (next, seconds) in texts {
                (*next).clone_into(&mut text.lock().unwrap());
                tokio::time::sleep(Duration::from_secs(*seconds)).await;
                found.push(*watched.current());
            }
        };
        tokio::select! {
            () = script => {}
            () = watched.keep_current(Duration::from_secs(1)) => {}
        }
        found
    }

    #[tokio::test(start_paused = true)]
    async fn what_two_looks_have_found_is_in_force() {
        assert_eq!(after(&[("2", 2), ("3", 1), ("3", 1)]).await, [2, 2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_only_one_look_has_found_is_never_in_force() {
        assert_eq!(after(&[("2", 1), ("3", 1), ("1", 1), ("2", 1), ("1", 3)]).await, [1; 5]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_wrong_changes_nothing_until_it_is_mended() {
        assert_eq!(after(&[("x", 5), ("4", 2), ("", 3), ("4", 3), ("5", 2)]).await, [1, 4, 4, 4, 5]);
    }
}
