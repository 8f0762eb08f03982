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
    /// Reads the variables that begin with `OTEL_`. An empty one counts as not set.
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
        if variables.is("OTEL_SDK_DISABLED", &["true"], &["false"]) {
            return Ok(Self::default());
        }
        let off = variables.is("OTEL_TRACES_EXPORTER", &["none"], &["otlp"]);
        let endpoint = variables.first("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
        let timeout = variables.first("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT", milliseconds);
        for either in ["OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"] {
            variables.is(&format!("{either}PROTOCOL"), &["grpc"], &[]);
            variables.is(&format!("{either}COMPRESSION"), &["none"], &[]);
            variables.is(&format!("{either}INSECURE"), &["true"], &[]);
            variables.left.remove(&format!("{either}HEADERS")); // the exporter reads them
        }
        variables.is("OTEL_PROPAGATORS", &["tracecontext", "tracecontext,baggage"], &[]);
        variables.is("OTEL_METRICS_EXPORTER", &["none"], &[]);
        variables.is("OTEL_LOGS_EXPORTER", &["none"], &[]);
        let (sampler, resource) = (variables.sampler(), variables.resource());
        variables.ignored.extend(variables.left.keys().cloned());
        variables.ignored.sort();
        let ignored = variables.ignored;
        let endpoint = match endpoint {
            Some(Ok(endpoint)) if !off => endpoint,
            Some(Err(problem)) if !off => return Err(vec![problem]),
            Some(_) | None => return Ok(Self { traces: None, ignored }),
        };
        let timeout = timeout.unwrap_or(DEFAULT_TIMEOUT);
        Ok(Self { traces: Some(TraceSettings { endpoint, timeout, sampler, resource }), ignored })
    }
}

struct Variables {
    /// Those that nobody has looked at.
    left: BTreeMap<String, OsString>,
    ignored: Vec<String>,
}

impl Variables {
    /// The value of a variable that can be read.
    fn take(&mut self, name: &str) -> Option<String> {
        let value = self.left.remove(name)?;
        value.into_string().inspect_err(|_| self.ignored.push(format!("{name} (it is not UTF-8)"))).ok()
    }

    fn ignore(&mut self, name: &str, value: &str) {
        let value: String = value.chars().take(64).collect();
        self.ignored.push(format!("{name}={value:?}"));
    }

    /// Whether a variable has one of the values `yes`; one that is in neither list is not kept.
    fn is(&mut self, name: &str, yes: &[&str], no: &[&str]) -> bool {
        let Some(value) = self.take(name) else { return false };
        let among = |values: &[&str]| values.iter().any(|one| value.eq_ignore_ascii_case(one));
        if !among(yes) && !among(no) {
            self.ignore(name, &value);
        }
        among(yes)
    }

    /// The variable for traces or, where it is not set, the one for everything.
    fn first<T>(&mut self, traces: &str, all: &str, read: impl Fn(&mut Self, &str, &str) -> Option<T>) -> Option<T> {
        let (for_traces, for_all) = (self.take(traces), self.take(all));
        let (name, value) = for_traces.map(|value| (traces, value)).or(for_all.map(|value| (all, value)))?;
        read(self, name, &value)
    }

    fn sampler(&mut self) -> Sampler {
        const NAME: &str = "OTEL_TRACES_SAMPLER";
        const ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";
        let default = Sampler::new(1.0, true);
        let (named, argument) = (self.take(NAME), self.take(ARGUMENT));
        let named = named.unwrap_or_else(|| "parentbased_always_on".to_owned());
        let (parent_based, root) = match named.strip_prefix("parentbased_") {
            Some(root) => (true, root),
            None => (false, named.as_str()),
        };
        let ratio = match root {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => {
                let argument = argument.unwrap_or_else(|| "1.0".to_owned());
                match argument.parse() {
                    Ok(ratio) if (0.0..=1.0).contains(&ratio) => ratio,
                    _ => {
                        self.ignore(ARGUMENT, &argument);
                        1.0
                    }
                }
            }
            _ => {
                self.ignore(NAME, &named);
                return default;
            }
        };
        Sampler::new(ratio, parent_based)
    }

    /// `OTEL_RESOURCE_ATTRIBUTES`, as a whole or not at all, and `OTEL_SERVICE_NAME`, which goes before (resource specification).
    fn resource(&mut self) -> BTreeMap<String, String> {
        const NAME: &str = "OTEL_RESOURCE_ATTRIBUTES";
        let mut resource = BTreeMap::new();
        if let Some(text) = self.take(NAME) {
            let pair = |pair: &str| {
                let (name, value) = pair.split_once('=')?;
                let decoded = percent_decode_str(value.trim()).decode_utf8().ok()?;
                (!name.trim().is_empty()).then(|| (name.trim().to_owned(), decoded.into_owned()))
            };
            let pairs: Option<_> = text.split(',').filter(|text| !text.trim().is_empty()).map(pair).collect();
            resource = pairs.unwrap_or_else(|| {
                self.ignore(NAME, &text);
                BTreeMap::new()
            });
        }
        resource.extend(self.take("OTEL_SERVICE_NAME").map(|name| ("service.name".to_owned(), name)));
        resource
    }
}

#[expect(clippy::unnecessary_wraps, reason = "a reader that ignores nothing")]
fn endpoint(_: &mut Variables, name: &str, value: &str) -> Option<Result<String, Problem>> {
    let problem = |must: &str| Problem {
        what: format!("{name} = {value:?}"),
        source: format!("environment variable {name}"),
        must: must.to_owned(),
    };
    let uri: Result<Uri, _> = value.trim().parse();
    let authority = uri.as_ref().ok().and_then(Uri::authority);
    if authority.is_some_and(|authority| authority.as_str().contains('@')) {
        let must =
            "must not have a user or a password: they would be in the log; OTEL_EXPORTER_OTLP_HEADERS is for secrets";
        return Some(Err(Problem { what: name.to_owned(), ..problem(must) }));
    }
    // What follows the host is a port of at most 65535, or nothing.
    let after_host = authority.map_or("", |authority| &authority.as_str()[authority.host().len()..]);
    if !after_host.is_empty() && authority.and_then(http::uri::Authority::port_u16).is_none() {
        return Some(Err(problem("must have a port from 1 to 65535")));
    }
    let scheme = uri.as_ref().ok().and_then(Uri::scheme_str).map(str::to_ascii_lowercase);
    Some(match (uri, scheme.as_deref()) {
        (Ok(uri), Some("http")) if uri.host().is_some_and(|host| !host.is_empty()) => Ok(uri.to_string()),
        (Ok(_), Some("https")) => Err(problem("must begin with http://: traces are exported without TLS")),
        _ => Err(problem("must be the URL of an OTLP collector's gRPC port, such as \"http://localhost:4317\"")),
    })
}

fn milliseconds(variables: &mut Variables, name: &str, value: &str) -> Option<Duration> {
    let length = value.parse().ok().map(Duration::from_millis).filter(|length| !length.is_zero());
    if length.is_none() {
        variables.ignore(name, value);
    }
    length.map(|length| length.min(LONGEST_TIMEOUT))
}

#[cfg(test)]
#[path = "environment_tests.rs"]
mod tests;
