//! The standard variables of OpenTelemetry, as far as a server that exports traces over gRPC can keep what they ask for. What cannot be
//! kept is named, never silently passed over; what makes tracing impossible is a configuration error.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

use http::Uri;
use percent_encoding::percent_decode_str;

use super::Sampler;
use crate::config::Problem;

/// What begins so is OpenTelemetry's.
const PREFIX: &str = "OTEL_";
/// What begins so is for another language, in an environment that several programs share.
const OTHERS: &str = "OTEL_PYTHON_";
/// What is said of traces goes before what is said of everything.
const EITHER: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"];
/// How long an export may take where nobody says otherwise (OTLP exporter specification).
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that an export may take, whatever the environment says.
const LONGEST_TIMEOUT: Duration = Duration::from_mins(10);

/// How to trace.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceSettings {
    /// The collector: `http://HOST:PORT`.
    pub endpoint: String,
    /// How long an export may take, its retries included.
    pub timeout: Duration,
    /// Whether exports are compressed, with gzip.
    pub compressed: bool,
    /// Which clean messages are traced.
    pub sampler: Sampler,
    /// What the environment says of the server, by name.
    pub resource: BTreeMap<String, String>,
}

/// What the environment asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Environment {
    /// How to trace; `None` = not at all.
    pub traces: Option<TraceSettings>,
    /// Each variable that is set and not kept, with its value where another value would have been.
    pub ignored: Vec<String>,
}

impl Environment {
    /// Reads the variables that begin with `OTEL_`. An empty one counts as not set, and so does one that is ignored.
    ///
    /// # Errors
    ///
    /// An endpoint to which nothing can be exported.
    pub fn read(environment: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Self, Vec<Problem>> {
        let ours = environment.into_iter().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        let mut variables = Variables {
            left: ours
                .filter(|(name, value)| name.starts_with(PREFIX) && !name.starts_with(OTHERS) && !value.is_empty())
                .collect(),
            ignored: Vec::new(),
        };
        if variables.read("OTEL_SDK_DISABLED", one_of(&[("true", true), ("false", false)])) == Some(true) {
            return Ok(Self::default());
        }
        let off = variables.read("OTEL_TRACES_EXPORTER", one_of(&[("none", true), ("otlp", false)])) == Some(true);
        let endpoint = variables.endpoint();
        let timeout = variables.either("TIMEOUT", milliseconds).unwrap_or(DEFAULT_TIMEOUT);
        let compressed = variables.either("COMPRESSION", one_of(&[("gzip", true), ("none", false)])).unwrap_or(false);
        variables.either("PROTOCOL", one_of(&[("grpc", ())]));
        variables.either("INSECURE", one_of(&[("true", ()), ("false", ())])); // the endpoint's scheme goes before it
        variables.headers();
        variables.read("OTEL_PROPAGATORS", one_of(&[("tracecontext", ()), ("tracecontext,baggage", ())]));
        variables.read("OTEL_METRICS_EXPORTER", one_of(&[("none", ())]));
        variables.read("OTEL_LOGS_EXPORTER", one_of(&[("none", ())]));
        let (sampler, resource) = (variables.sampler(), variables.resource());
        variables.ignored.extend(variables.left.keys().cloned());
        variables.ignored.sort();
        let ignored = variables.ignored;
        let endpoint = match endpoint {
            Some(Ok(endpoint)) if !off => endpoint,
            Some(Err(problem)) if !off => return Err(vec![problem]),
            Some(_) | None => return Ok(Self { traces: None, ignored }),
        };
        Ok(Self { traces: Some(TraceSettings { endpoint, timeout, compressed, sampler, resource }), ignored })
    }
}

struct Variables {
    /// Those that nobody has looked at.
    left: BTreeMap<String, OsString>,
    ignored: Vec<String>,
}

impl Variables {
    /// The value of a variable that is text.
    fn take(&mut self, name: &str) -> Option<String> {
        let value = self.left.remove(name)?;
        value.into_string().inspect_err(|_| self.ignored.push(format!("{name} (it is not UTF-8)"))).ok()
    }

    /// What a variable says; one that cannot be read is ignored.
    fn read<T>(&mut self, name: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let value = self.take(name)?;
        let said = read(&value);
        if said.is_none() {
            let shown: String = value.chars().take(64).collect();
            self.ignored.push(format!("{name}={shown:?}"));
        }
        said
    }

    /// What the variable for traces says or, where that says nothing, the one for everything.
    fn either<T>(&mut self, name: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let [traces, all] = EITHER.map(|prefix| self.read(&format!("{prefix}{name}"), &read));
        traces.or(all)
    }

    /// The endpoint, of which the one for everything may be of no use here where there is one for traces.
    fn endpoint(&mut self) -> Option<Result<String, Problem>> {
        let [traces, all] = EITHER.map(|prefix| {
            let name = format!("{prefix}ENDPOINT");
            self.take(&name).map(|value| (name, value))
        });
        traces.or(all).map(|(name, value)| endpoint(&name, &value))
    }

    /// The exporter reads them, and leaves out what is no header. They may be secret, so they are not shown.
    fn headers(&mut self) {
        for prefix in EITHER {
            let name = format!("{prefix}HEADERS");
            let text = self.take(&name).unwrap_or_default();
            if !text.split(',').filter(|pair| !pair.trim().is_empty()).all(is_header) {
                self.ignored.push(format!("{name} (some of it is no header)"));
            }
        }
    }

    fn sampler(&mut self) -> Sampler {
        let share = self.read("OTEL_TRACES_SAMPLER_ARG", ratio).unwrap_or(1.0);
        let sampler = self.read("OTEL_TRACES_SAMPLER", |named| {
            let named = named.to_ascii_lowercase();
            let (parent_based, root) = match named.strip_prefix("parentbased_") {
                Some(root) => (true, root),
                None => (false, named.as_str()),
            };
            let ratio = match root {
                "always_on" => 1.0,
                "always_off" => 0.0,
                "traceidratio" => share,
                _ => return None,
            };
            Some(Sampler::new(ratio, parent_based))
        });
        sampler.unwrap_or_else(|| Sampler::new(1.0, true))
    }

    /// `OTEL_RESOURCE_ATTRIBUTES`, as a whole or not at all, and `OTEL_SERVICE_NAME`, which goes before (resource specification).
    fn resource(&mut self) -> BTreeMap<String, String> {
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=')?;
            let decoded = percent_decode_str(value.trim()).decode_utf8().ok()?;
            (!name.trim().is_empty()).then(|| (name.trim().to_owned(), decoded.into_owned()))
        };
        let pairs = |text: &str| text.split(',').filter(|text| !text.trim().is_empty()).map(pair).collect();
        let mut resource: BTreeMap<_, _> = self.read("OTEL_RESOURCE_ATTRIBUTES", pairs).unwrap_or_default();
        resource.extend(self.take("OTEL_SERVICE_NAME").map(|name| ("service.name".to_owned(), name)));
        resource
    }
}

/// Reads one of a few words, in capitals or not (configuration specification).
fn one_of<T: Copy>(words: &[(&str, T)]) -> impl Fn(&str) -> Option<T> {
    |value| words.iter().find(|(word, _)| value.eq_ignore_ascii_case(word)).map(|(_, meaning)| *meaning)
}

fn endpoint(name: &str, value: &str) -> Result<String, Problem> {
    let problem = |must: &str| Problem {
        what: format!("{name} = {value:?}"),
        source: format!("environment variable {name}"),
        must: must.to_owned(),
    };
    if value.contains('@') {
        let must =
            "must not have a user or a password: they would be in the log; OTEL_EXPORTER_OTLP_HEADERS is for secrets";
        return Err(Problem { what: name.to_owned(), ..problem(must) });
    }
    let uri: Result<Uri, _> = value.trim().parse();
    let authority = uri.as_ref().ok().and_then(Uri::authority);
    // What follows the host is a port, or nothing.
    let after_host = authority.map_or("", |authority| &authority.as_str()[authority.host().len()..]);
    let port = authority.and_then(http::uri::Authority::port_u16).filter(|port| *port != 0);
    if !after_host.is_empty() && port.is_none() {
        return Err(problem("must have a port from 1 to 65535"));
    }
    let scheme = uri.as_ref().ok().and_then(Uri::scheme_str).map(str::to_ascii_lowercase);
    match (uri, scheme.as_deref()) {
        (Ok(uri), Some("http")) if uri.host().is_some_and(|host| !host.is_empty()) => Ok(uri.to_string()),
        (Ok(_), Some("https")) => Err(problem("must begin with http://: traces are exported without TLS")),
        _ => Err(problem("must be the URL of an OTLP collector's gRPC port, such as \"http://localhost:4317\"")),
    }
}

fn milliseconds(value: &str) -> Option<Duration> {
    let length = value.parse().ok().map(Duration::from_millis).filter(|length| !length.is_zero())?;
    Some(length.min(LONGEST_TIMEOUT))
}

fn ratio(value: &str) -> Option<f64> {
    value.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio))
}

/// Whether gRPC can send it as text (gRPC over HTTP/2, "Custom-Metadata").
fn is_header(pair: &str) -> bool {
    let Some((name, value)) = pair.split_once('=') else { return false };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let name = name.trim();
    let value: Vec<u8> = percent_decode_str(value.trim()).collect();
    !name.is_empty()
        && name.bytes().all(is_name)
        && !name.to_ascii_lowercase().ends_with("-bin")
        && !value.is_empty()
        && value.iter().all(|byte| (b' '..=b'~').contains(byte))
}

#[cfg(test)]
#[path = "environment_tests.rs"]
mod tests;
