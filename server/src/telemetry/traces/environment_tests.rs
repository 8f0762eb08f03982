use std::time::Duration;

use super::{Environment, Sampler, TraceSettings};

const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4317");

fn read(variables: &[(&str, &str)]) -> Environment {
    Environment::read(variables.iter().map(|(name, value)| (name.into(), value.into()))).expect("nothing is wrong")
}

/// With an endpoint.
fn traced(variables: &[(&str, &str)]) -> (TraceSettings, Vec<String>) {
    let Environment { traces, ignored } = read(&[&[ENDPOINT], variables].concat());
    (traces.expect("an endpoint is set"), ignored)
}

fn problem(value: &str) -> String {
    let problems = Environment::read([(ENDPOINT.0.into(), value.into())]).expect_err("something is wrong");
    assert_eq!(problems.len(), 1);
    problems[0].to_string()
}

#[test]
fn without_an_endpoint_nothing_is_traced() {
    assert_eq!(read(&[]), Environment::default());
    assert_eq!(read(&[("OTEL_TRACES_SAMPLER", "always_on"), (ENDPOINT.0, "")]).traces, None);
}

#[test]
fn an_endpoint_is_enough() {
    let (settings, ignored) = traced(&[]);
    assert_eq!(settings.endpoint, "http://localhost:4317/");
    assert_eq!(settings.timeout, Duration::from_secs(10));
    assert_eq!(settings.sampler, Sampler::new(1.0, true));
    assert!(settings.resource.is_empty() && ignored.is_empty());
}

#[test]
fn what_is_said_of_traces_goes_before_what_is_said_of_all() {
    let (settings, ignored) = traced(&[
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://[::1]:1"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "5"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "6"),
    ]);
    assert_eq!((settings.endpoint.as_str(), settings.timeout), ("http://[::1]:1/", Duration::from_millis(5)));
    assert_eq!(ignored, [""; 0]);
}

#[test]
fn an_endpoint_that_is_none_is_a_configuration_error() {
    let must = "must be the URL of an OTLP collector's gRPC port, such as \"http://localhost:4317\"";
    for value in ["localhost:4317", "localhost", "http://", "http:// x", "grpc://x", "/a", "http://[::1"] {
        let expected = format!("{} = {value:?} (environment variable {}): {must}", ENDPOINT.0, ENDPOINT.0);
        assert_eq!(problem(value), expected);
    }
    assert!(problem("https://x:4317").ends_with("must begin with http://: traces are exported without TLS"));
    for value in ["http://x:99999", "http://x:", "http://[::1]:-1"] {
        assert!(problem(value).contains("must "), "{value}");
    }
    let secret = problem("http://user:secret@x:4317");
    assert!(secret.contains("must not have a user or a password") && !secret.contains("secret@"), "{secret}");
}

#[test]
fn tracing_can_be_switched_off_whatever_else_is_set() {
    for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_TRACES_EXPORTER", "none")] {
        assert_eq!(read(&[ENDPOINT, off]).traces, None);
        assert_eq!(read(&[(ENDPOINT.0, "no URL"), off]).traces, None);
    }
}

#[test]
fn the_standard_samplers_are_kept() {
    let cases = [
        ("always_on", "", 1.0, false),
        ("always_off", "", 0.0, false),
        ("traceidratio", "0.25", 0.25, false),
        ("parentbased_always_on", "", 1.0, true),
        ("parentbased_always_off", "", 0.0, true),
        ("parentbased_traceidratio", "0.5", 0.5, true),
        ("parentbased_traceidratio", "", 1.0, true),
    ];
    for (name, argument, ratio, parent_based) in cases {
        let (settings, ignored) = traced(&[("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", argument)]);
        assert_eq!(settings.sampler, Sampler::new(ratio, parent_based), "{name}");
        assert_eq!(ignored, [""; 0]);
    }
}

#[test]
fn the_resource_is_what_the_environment_says() {
    let (settings, ignored) =
        traced(&[("OTEL_RESOURCE_ATTRIBUTES", "service.name=a, deployment=b%2Cc ,"), ("OTEL_SERVICE_NAME", "mine")]);
    let resource: Vec<_> = settings.resource.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(resource, [("deployment", "b,c"), ("service.name", "mine")]);
    assert_eq!(ignored, [""; 0]);
}

#[test]
fn what_is_not_kept_is_named_once_in_order() {
    let (settings, ignored) = traced(&[
        ("OTEL_TRACES_SAMPLER", "xray"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=1,b"),
        ("OTEL_SDK_DISABLED", "maybe"),
        ("OTEL_BSP_SCHEDULE_DELAY", "1"),
        ("OTEL_PYTHON_LOG_LEVEL", "info"),
        ("OTEL_METRICS_EXPORTER", "none"),
        ("OTEL_PROPAGATORS", "b3"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=b"),
    ]);
    let expected = [
        "OTEL_BSP_SCHEDULE_DELAY",
        "OTEL_EXPORTER_OTLP_COMPRESSION=\"gzip\"",
        "OTEL_EXPORTER_OTLP_PROTOCOL=\"http/protobuf\"",
        "OTEL_EXPORTER_OTLP_TIMEOUT=\"soon\"",
        "OTEL_PROPAGATORS=\"b3\"",
        "OTEL_RESOURCE_ATTRIBUTES=\"a=1,b\"",
        "OTEL_SDK_DISABLED=\"maybe\"",
        "OTEL_TRACES_SAMPLER=\"xray\"",
    ];
    assert_eq!(ignored, expected);
    assert_eq!(settings.sampler, Sampler::new(1.0, true), "the default stands in");
    for argument in ["2", "-1", "NaN", "half"] {
        let variables = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", argument)];
        assert_eq!(traced(&variables).1, [format!("OTEL_TRACES_SAMPLER_ARG={argument:?}")]);
    }
}
