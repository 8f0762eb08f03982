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
    for value in ["http://x:99999", "http://x:", "http://x:0", "http://[::1]:-1"] {
        assert!(problem(value).contains("must "), "{value}");
    }
    for value in ["http://user:secret@x:4317", "user:secret@x:4317", "http://us er:secret@x", "grpc://secret@x"] {
        let secret = problem(value);
        assert!(secret.contains("must not have a user or a password") && !secret.contains("secret@"), "{secret}");
    }
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
        ("ALWAYS_ON", "", 1.0, false),
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

/// What the environment is said to ask for in vain; the defaults stand in.
fn named(variables: &[(&str, &str)]) -> Vec<String> {
    let (settings, ignored) = traced(variables);
    assert_eq!(settings, traced(&[]).0, "the defaults stand in for {variables:?}");
    ignored
}

#[test]
fn what_is_kept_or_asks_for_what_is_anyway_so_is_not_named() {
    for variable in [
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "none"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Basic%20YTpi, x-scope = 1 ,"),
        ("OTEL_EXPORTER_OTLP_INSECURE", "false"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "GRPC"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10000"),
        ("OTEL_EXPORTER_OTLP_TRACES_INSECURE", "True"),
        ("OTEL_LOGS_EXPORTER", "none"),
        ("OTEL_METRICS_EXPORTER", "none"),
        ("OTEL_PROPAGATORS", "tracecontext"),
        ("OTEL_PROPAGATORS", "tracecontext,baggage"),
        ("OTEL_PYTHON_LOG_LEVEL", "info"),
        ("OTEL_SDK_DISABLED", "false"),
        ("OTEL_TRACES_EXPORTER", "otlp"),
        ("OTEL_TRACES_SAMPLER", ""),
        ("OTEL_TRACES_SAMPLER_ARG", "0.5"),
    ] {
        assert_eq!(named(&[variable]), [""; 0]);
    }
    assert!(traced(&[("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")]).0.compressed);
    assert_eq!(read(&[("OTEL_SDK_DISABLED", "true"), ("OTEL_PROPAGATORS", "b3")]).ignored, [""; 0]);
}

#[test]
fn what_is_not_kept_is_named_with_its_value() {
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_INSECURE", "perhaps"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "-1"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "1.5"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "snappy"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_LOGS_EXPORTER", "otlp"),
        ("OTEL_METRICS_EXPORTER", "prometheus"),
        ("OTEL_PROPAGATORS", "b3"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=1,b"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=%FF"),
        ("OTEL_SDK_DISABLED", "maybe"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_TRACES_SAMPLER", "parentbased_xray"),
        ("OTEL_TRACES_SAMPLER_ARG", "2"),
        ("OTEL_TRACES_SAMPLER_ARG", "-1"),
        ("OTEL_TRACES_SAMPLER_ARG", "NaN"),
        ("OTEL_TRACES_SAMPLER_ARG", "half"),
    ] {
        assert_eq!(named(&[(name, value)]), [format!("{name}={value:?}")]);
    }
}

#[test]
fn what_this_server_does_not_have_is_named_in_order() {
    let variables = [
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/a"),
        ("OTEL_BSP_SCHEDULE_DELAY", "1"),
        ("OTEL_ATTRIBUTE_COUNT_LIMIT", "1"),
        ("OTEL_LOGS_EXPORTER", "otlp"),
    ];
    let expected = [
        "OTEL_ATTRIBUTE_COUNT_LIMIT",
        "OTEL_BSP_SCHEDULE_DELAY",
        "OTEL_EXPORTER_OTLP_CERTIFICATE",
        "OTEL_LOGS_EXPORTER=\"otlp\"",
    ];
    assert_eq!(named(&variables), expected);
}

#[test]
fn headers_that_are_none_are_named_and_not_shown() {
    for value in ["secret", "a=1,secret", "=secret", "a=", "se cret=1", "a=%0Asecret", "a=s\u{e9}cret", "secret-bin=1"]
    {
        for name in ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"] {
            assert_eq!(named(&[(name, value)]), [format!("{name} (some of it is no header)")], "{value}");
        }
    }
}

#[test]
fn what_cannot_be_read_for_traces_leaves_room_for_what_is_said_of_all() {
    let (settings, ignored) = traced(&[
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "6"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
    ]);
    assert_eq!((settings.timeout, settings.compressed), (Duration::from_millis(6), true));
    assert_eq!(
        ignored,
        ["OTEL_EXPORTER_OTLP_TRACES_COMPRESSION=\"zstd\"", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT=\"soon\""]
    );
}

#[test]
fn no_export_may_take_longer_than_ten_minutes() {
    let (settings, ignored) = traced(&[("OTEL_EXPORTER_OTLP_TIMEOUT", "3600000")]);
    assert_eq!((settings.timeout, ignored), (Duration::from_mins(10), vec![]));
}

#[test]
fn an_endpoint_for_all_may_be_of_no_use_where_there_is_one_for_traces() {
    let (settings, ignored) =
        traced(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "https://x"), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://y:1")]);
    assert_eq!((settings.endpoint.as_str(), ignored), ("http://y:1/", vec![]));
}
