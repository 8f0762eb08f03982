//! Where values come from.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use figment::providers::{Format as _, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::keys::{DEMO_DEFAULTS, KEYS};
use super::{Problem, values};

/// The file that is read when none is named; it may be missing.
const DEFAULT_FILE: &str = "ackstream.toml";
/// What every variable of ours begins with.
const PREFIX: &str = "ACKSTREAM_";
/// The variable that names the file.
const FILE_VARIABLE: &str = "ACKSTREAM_CONFIG";
/// Variables that belong to others begin so: the demo client's.
const OTHERS_BEGIN: &[&str] = &["ACKSTREAM_CLIENT_"];
/// Variables that belong to others: the path of this binary in other people's tests.
const OTHERS: &[&str] = &["ACKSTREAM_BIN"];
/// The source of a value that nobody has set.
pub(super) const DEFAULT: &str = "default";

/// A value from the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// The key.
    pub key: &'static str,
    /// How the argument was called, for example "--ack-deadline".
    pub name: String,
    /// Its value.
    pub value: String,
}

/// Whose values are in force where nobody says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defaults {
    /// A server's.
    Server,
    /// The demo's, for the topic that it has by itself.
    Demo,
}

/// All layers, read but not understood.
#[derive(Clone, Debug)]
pub struct Layers {
    pub(super) figment: Figment,
    pub(super) problems: Vec<Problem>,
}

impl Layers {
    /// Puts the layers over each other: defaults, the file, the environment, the flags. `file` is that of `--config`.
    pub fn read(
        file: Option<PathBuf>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        flags: impl IntoIterator<Item = Flag>,
        defaults: Defaults,
    ) -> Self {
        let mut problems = Vec::new();
        let mut named = file.map(|path| (path, "flag --config".to_owned()));
        let mut settings = Vec::new();
        for (variable, value) in environment {
            let Some(variable) = variable.to_str().filter(|name| is_ours(name)).map(str::to_owned) else { continue };
            let source = format!("environment variable {variable}");
            let Some(value) = value.to_str() else {
                problems.push(Problem { what: variable, source: "environment".into(), must: "must be UTF-8".into() });
                continue;
            };
            if variable == FILE_VARIABLE {
                named.get_or_insert_with(|| (value.into(), source));
                continue;
            }
            let key = variable[PREFIX.len()..].to_lowercase().replace("__", ".");
            settings.push(Setting { key, value: value.to_owned(), source });
        }
        settings.sort_by(|one, other| one.key.cmp(&other.key)); // the environment has no order
        for Flag { key, name, value } in flags {
            settings.push(Setting { key: key.to_owned(), value, source: name });
        }

        let mut figment = Figment::new();
        let demo = DEMO_DEFAULTS.iter().filter(|_| defaults == Defaults::Demo);
        for (key, value) in KEYS.iter().map(|key| (key.name, key.default)).chain(demo.copied()) {
            let (key, value, source) = (key.to_owned(), value.to_owned(), DEFAULT.to_owned());
            figment = figment.merge(Setting { key, value, source });
        }
        match read_file(named) {
            Ok(Some(toml)) => figment = figment.merge(toml),
            Ok(None) => {}
            Err(problem) => problems.push(problem),
        }
        for setting in settings {
            let is_in_a_table = ["topics.", "access."].iter().any(|table| setting.key.starts_with(table)); // looked at where it is read
            match values::unknown(&setting.key, &setting.source).filter(|_| !is_in_a_table) {
                Some(problem) => problems.push(problem),
                None => figment = figment.merge(setting),
            }
        }
        Self { figment, problems }
    }
}

fn is_ours(variable: &str) -> bool {
    variable.starts_with(PREFIX)
        && !OTHERS_BEGIN.iter().any(|other| variable.starts_with(other))
        && !OTHERS.contains(&variable)
        && !is_of_a_service(variable)
}

/// Whether Kubernetes sets this variable in each container for a Service that is named ackstream or ackstream-SOMETHING, as Docker's links
/// once did: `_SERVICE_HOST`, `_SERVICE_PORT` with or without the port's name, `_PORT`, `_PORT_9464_TCP`, and that with `_PROTO`, `_PORT` or
/// `_ADDR`. No key of ours has such a name; two underscores are the dot of a table.
fn is_of_a_service(variable: &str) -> bool {
    let is_of_a_port = |rest: &str| {
        let mut parts = rest.split('_');
        let number =
            parts.next().is_some_and(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
        let protocol = parts.next().is_some_and(|part| ["TCP", "UDP", "SCTP"].contains(&part));
        let what = parts.next().is_none_or(|part| ["PROTO", "PORT", "ADDR"].contains(&part));
        number && protocol && what && parts.next().is_none()
    };
    !variable.contains("__")
        && (variable.ends_with("_SERVICE_HOST")
            || variable.ends_with("_SERVICE_PORT")
            || variable.contains("_SERVICE_PORT_")
            || variable.ends_with("_PORT")
            || variable.match_indices("_PORT_").any(|(at, text)| is_of_a_port(&variable[at + text.len()..])))
}

/// The file, where there is one. Its text is read here, so that what is wrong with it is told with everything else.
fn read_file(named: Option<(PathBuf, String)>) -> Result<Option<File>, Problem> {
    let (path, source) = match named {
        Some(named) => named,
        None if Path::new(DEFAULT_FILE).exists() => (DEFAULT_FILE.into(), "working directory".to_owned()),
        None => return Ok(None),
    };
    let what = path.display().to_string();
    let problem = |must: String| Problem { what: what.clone(), source: source.clone(), must };
    let text = std::fs::read_to_string(&path).map_err(|error| problem(format!("cannot be read: {error}")))?;
    let values = Toml::from_str(&text).map_err(|error| {
        // Without the line itself, which may hold a secret.
        let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        problem(format!("is not TOML: line {line}: {}", error.message().replace('\n', ", ")))
    })?;
    Ok(Some(File { name: what, values: Profile::Default.collect(values) }))
}

/// A file that was read.
struct File {
    name: String,
    values: Map<Profile, Dict>,
}

impl Provider for File {
    fn metadata(&self) -> Metadata {
        Metadata::named(format!("file {}", self.name))
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(self.values.clone())
    }
}

/// One value from anywhere else. Each is a layer of its own, so that figment knows the source of each.
struct Setting {
    key: String,
    value: String,
    source: String,
}

impl Provider for Setting {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.source.clone())
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        let nested = self
            .key
            .rsplit('.')
            .fold(Value::from(self.value.clone()), |inner, part| Value::from(Dict::from([(part.to_owned(), inner)])));
        let dict = nested.into_dict().expect("a key has at least one part");
        Ok(Map::from([(Profile::Default, dict)]))
    }
}
