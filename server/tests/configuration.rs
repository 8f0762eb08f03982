//! The configuration: its layers, and everything that can be wrong with it, told at once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use ackstream::config::{Config, Defaults, Flag, KEYS, Layers};
use ackstream_core::{Backoff, Policy};

/// A file with this text.
fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("test.toml");
    std::fs::write(&path, text).expect("a file");
    (folder, path)
}

fn load(text: &str, environment: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Result<Config, Vec<String>> {
    let (_folder, path) = file(text);
    let environment = environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let flags = flags.iter().map(|(key, value)| Flag {
        key,
        name: format!("flag --{}", key.replace('_', "-")),
        value: (*value).to_owned(),
    });
    let hide = |text: String| text.replace(&path.display().to_string(), "test.toml");
    Config::load(&Layers::read(Some(path.clone()), environment, flags, Defaults::Server))
        .map_err(|problems| problems.iter().map(|problem| hide(problem.to_string())).collect())
}

fn problems(text: &str, environment: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Vec<String> {
    load(text, environment, flags).expect_err("something is wrong")
}

#[test]
fn nobody_has_to_say_anything() {
    let config = load("", &[], &[]).unwrap();
    assert_eq!(config.listen.to_string(), "[::1]:50051");
    assert_eq!(config.metrics_listen.unwrap().to_string(), "[::1]:9464");
    let backoff = Backoff { minimum: Duration::from_secs(1), maximum: Duration::from_mins(5) };
    let (ack_deadline, max_retries) = (Duration::from_secs(30), None);
    let policy = Policy { ack_deadline, max_retries, backoff, ..Policy::default() };
    assert_eq!(config.settings.policy, policy);
    assert_eq!(config.drain_timeout, Duration::from_secs(8));
}

#[test]
fn the_demo_has_a_topic_whose_story_is_told_in_seconds() {
    let of = |text: &str| {
        let (_folder, path) = file(text);
        Config::load(&Layers::read(Some(path), [], [], Defaults::Demo)).unwrap().settings
    };

    assert_eq!(of("").policy, Policy::default());
    let topics = of("[topics.demo.subscriptions.demo]\ndead_letter_topic = \"discard\"").topics();
    assert_eq!(topics[0].subscriptions[0].policy.ack_deadline, Duration::from_secs(30), "a configured one is as any");
}

#[test]
fn retries_are_ten_where_dead_letters_have_a_topic_and_else_unlimited() {
    let topics = load(&format!("{ORDERS}[topics.more.subscriptions.more]\ndead_letter_topic = \"dead\""), &[], &[]);
    let topics = topics.unwrap().settings.topics();
    let retries = |topic: usize, subscription: usize| topics[topic].subscriptions[subscription].policy.max_retries;
    assert_eq!((retries(0, 0), retries(1, 0)), (None, Some(10)));
}

#[test]
fn where_no_retry_is_allowed_no_interruption_is() {
    let interruptions = |text: &str| load(text, &[], &[]).unwrap().settings.policy.max_interruptions;
    assert_eq!(interruptions("max_retries = 0"), Some(0));
    assert_eq!(interruptions("max_retries = 1"), Some(3));
    assert_eq!(interruptions("max_retries = 0\nmax_interruptions = \"unlimited\""), None);
}

#[test]
fn flags_go_before_the_environment_before_the_file_before_defaults() {
    let text = "ack_deadline = \"3s\"\nmax_retries = 7\nmin_backoff = \"1s\"\nmax_backoff = \"5s\"";
    let environment = [("ACKSTREAM_ACK_DEADLINE", "4s"), ("ACKSTREAM_MIN_BACKOFF", "2s")];
    let config = load(text, &environment, &[("ack_deadline", "5s")]).unwrap();
    let policy = &config.settings.policy;
    assert_eq!(policy.ack_deadline, Duration::from_secs(5));
    assert_eq!(policy.backoff, Backoff { minimum: Duration::from_secs(2), maximum: Duration::from_secs(5) });
    assert_eq!(policy.max_retries, Some(7));
    let sources: Vec<_> = config.effective.iter().map(|one| (one.key, one.source.as_str())).collect();
    assert!(sources.contains(&("ack_deadline", "flag --ack-deadline")));
    assert!(sources.contains(&("min_backoff", "environment variable ACKSTREAM_MIN_BACKOFF")));
    assert!(sources.contains(&("max_backlog_bytes", "default")));
    assert!(sources.iter().any(|(key, source)| *key == "max_retries" && source.starts_with("file ")));
}

#[test]
fn all_problems_are_told_at_once_each_with_its_key_and_source() {
    let found = problems(
        "ack_deadlin = \"2s\"\nlog_format = \"xml\"\nmax_streams = 0\n[demo]\nintervall = \"1s\"",
        &[("ACKSTREAM_MAX_RETRIES", "1001"), ("ACKSTREAM_DRAIN", "8s")],
        &[("listen", "localhost"), ("ack_deadline", "2 parsecs")],
    );
    let expected = [
        "ack_deadlin (file test.toml): there is no such key; the nearest is ack_deadline",
        "ack_deadline = \"2 parsecs\" (flag --ack-deadline): must be a length of time with its unit, such as \"2s\" or \"100ms\"",
        "demo.intervall (file test.toml): there is no such key; the nearest is demo.interval",
        "drain (environment variable ACKSTREAM_DRAIN): there is no such key; the nearest is drain_timeout",
        "listen = \"localhost\" (flag --listen): must be ADDRESS:PORT such as \"[::1]:50051\" or \"127.0.0.1:50051\", or \":50051\" \
         for all addresses",
        "log_format = \"xml\" (file test.toml): must be \"text\" or \"json\"",
        "max_retries = 1001 (environment variable ACKSTREAM_MAX_RETRIES): must be at most 1000, or \"unlimited\"",
        "max_streams = 0 (file test.toml): must be at least 1",
    ];
    let mut sorted = found.clone();
    sorted.sort();
    assert_eq!(sorted, expected);
}

#[test]
fn a_file_that_is_missing_is_told_with_everything_else() {
    let flag = Flag { key: "ack_deadline", name: "flag --ack-deadline".into(), value: "x".into() };
    let layers = Layers::read(Some("/nowhere/at/all.toml".into()), [], [flag], Defaults::Server);
    let found: Vec<_> = Config::load(&layers).unwrap_err().iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 2);
    assert!(found[0].starts_with("/nowhere/at/all.toml (flag --config): cannot be read: "), "{}", found[0]);
}

#[test]
fn a_file_that_is_no_toml_is_named() {
    let found = problems("\nack_deadline = = 2s", &[], &[]);
    assert!(found[0].starts_with("test.toml (flag --config): is not TOML: line 2: "), "{}", found[0]);
}

#[test]
fn values_that_are_no_single_value_are_named() {
    let found = problems("ack_deadline = [1, 2]\nlisten = { port = 5 }\ndemo = 3", &[], &[]);
    assert!(found.contains(&"ack_deadline = [1, 2] (file test.toml): must be a single value".to_owned()));
    assert!(found.contains(&"listen.port (file test.toml): there is no such key; the nearest is listen".to_owned()));
    assert!(found.contains(&"demo (file test.toml): there is no such key; the nearest is demo.count".to_owned()));
}

#[test]
fn bounds_that_concern_two_keys_are_checked() {
    let found = problems("max_backlog_bytes = \"1KiB\"\nmin_backoff = \"6m\"", &[], &[]);
    assert_eq!(
        found,
        [
            "min_backoff = \"6m\" (file test.toml): must be at most max_backoff",
            "max_backlog_bytes = \"1KiB\" (file test.toml): must be at least max_message_bytes, or the largest message never fits",
        ]
    );
}

#[test]
fn every_bound_is_kept() {
    let cases = [
        ("ack_deadline", "9ms"),
        ("ack_deadline", "61m"),
        ("max_retries", "-1"),
        ("max_backoff", "25h"),
        ("max_backlog_messages", "0"),
        ("max_message_bytes", "17MiB"),
        ("max_backlog_bytes", "99999999999999999999TiB"),
        ("max_message_bytes", "0"),
        ("max_outstanding_messages", "0"),
        ("max_outstanding_bytes", "0"),
        ("max_streams", "1.5"),
        ("drain_timeout", "2h"),
        ("log_level", "loud"),
        ("log_lines_per_second", "many"),
        ("log_summary_interval", "99ms"),
        ("demo.count", "-3"),
        ("demo.interval", "0s"),
        ("demo.keep_serving", "yes"),
        ("max_connections", "0"),
        ("max_connections_per_address", "0"),
        ("max_streams_per_connection", "0"),
        ("handshake_timeout", "9ms"),
        ("handshake_timeout", "61s"),
        ("tcp_user_timeout", "999ms"),
        ("tcp_user_timeout", "61m"),
        ("keepalive_interval", "999ms"),
        ("keepalive_interval", "61m"),
        ("keepalive_timeout", "9ms"),
        ("keepalive_timeout", "61m"),
        ("consumer_stuck_after", "999ms"),
        ("consumer_stuck_after", "61m"),
        ("max_connection_age", "999ms"),
        ("max_connection_age", "366days"),
        ("max_connection_age_grace", "61m"),
        ("max_header_bytes", "1023B"),
        ("max_header_bytes", "1025KiB"),
        ("max_frame_bytes", "16383B"),
        ("max_frame_bytes", "1025KiB"),
        ("send_buffer_bytes", "16383B"),
        ("send_buffer_bytes", "65MiB"),
        ("reload_interval", "99ms"),
        ("reload_interval", "25h"),
    ];
    for (key, value) in cases {
        let found = problems("", &[], &[(key, value)]);
        assert!(found.len() == 1 && found[0].starts_with(&format!("{key} = ")), "{key} = {value}: {found:?}");
    }
}

#[test]
fn an_unlimited_retry_budget_can_be_asked_for() {
    assert_eq!(load("max_retries = \"unlimited\"", &[], &[]).unwrap().settings.policy.max_retries, None);
}

#[test]
fn what_belongs_to_others_is_not_ours() {
    let others = [
        ("ACKSTREAM_CLIENT_TARGET", "x"),
        ("ACKSTREAM_SERVICE_HOST", "10.0.0.1"),
        ("ACKSTREAM_PORT", "tcp://10.0.0.1:50051"),
        ("ACKSTREAM_PORT_50051_TCP_ADDR", "10.0.0.1"),
        ("ACKSTREAM_BIN", "/bin/ackstream"),
        ("PATH", "/bin"),
    ];
    load("", &others, &[]).unwrap();
    assert_eq!(problems("", &[("ACKSTREAM_PORTS", "1")], &[]).len(), 1);
}

#[test]
fn no_key_begins_like_what_belongs_to_others() {
    for key in KEYS {
        assert!(!["client_", "service_", "port"].iter().any(|other| key.name.starts_with(other)), "{}", key.name);
    }
}

#[test]
fn the_environment_can_name_the_file() {
    let (_folder, path) = file("max_retries = 9");
    let environment = [(OsString::from("ACKSTREAM_CONFIG"), path.into_os_string())];
    let config = Config::load(&Layers::read(None, environment, [], Defaults::Server)).unwrap();
    assert_eq!(config.settings.policy.max_retries, Some(9));
}

#[test]
fn what_config_prints_is_a_file_that_gives_the_same_again() {
    let flags = [("ack_deadline", "5s"), ("max_retries", "unlimited"), ("demo.count", "7"), ("listen", ":9")];
    let printed = load("", &[], &flags).unwrap().to_string();
    let again = load(&printed, &[], &[]).unwrap();
    let values = |config: &Config| config.effective.iter().map(|one| one.value.clone()).collect::<Vec<_>>();
    assert_eq!(values(&again), values(&load("", &[], &flags).unwrap()));
    assert_eq!(again.plan.count.unwrap().get(), 7);
}

#[test]
fn the_readme_has_every_key_with_its_default() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    for key in KEYS {
        let row = format!("| `{}` | {} | {} |", key.name, key.default, key.about);
        assert!(readme.contains(&row), "README.md lacks: {row}");
    }
}

#[test]
fn what_kubernetes_sets_for_services_of_ours_is_ignored_by_its_form() {
    for name in ["", "_METRICS", "_HEADLESS", "_MAX_RETRIES"] {
        let variables = ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_GRPC", "PORT", "PORT_50051_TCP"]
            .into_iter()
            .chain(["PORT_50051_TCP_PROTO", "PORT_50051_TCP_PORT", "PORT_50051_UDP_ADDR"])
            .map(|what| format!("ACKSTREAM{name}_{what}"));
        let variables: Vec<_> = variables.collect();
        let environment: Vec<_> = variables.iter().map(|name| (name.as_str(), "tcp://10.0.0.1:1")).collect();
        assert!(load("", &environment, &[]).is_ok(), "{name}");
    }
    for variable in ["ACKSTREAM_PORT_50051", "ACKSTREAM_PORT_X_TCP", "ACKSTREAM_SERVICE", "ACKSTREAM_PORT_1_TCP_ADDR_X"]
    {
        assert!(load("", &[(variable, "1")], &[]).is_err(), "{variable}");
    }
}

#[test]
fn metrics_can_be_turned_off() {
    assert_eq!(load("", &[], &[("metrics_listen", "off")]).unwrap().metrics_listen, None);
    let found = problems("metrics_listen = \"on\"", &[], &[]);
    assert!(found[0].starts_with("metrics_listen = \"on\" (file test.toml): must be ADDRESS:PORT"), "{}", found[0]);
    assert!(found[0].ends_with(", or \"off\""), "{}", found[0]);
}

// ---- topics and subscriptions

/// Orders with two subscriptions, one of which sends its dead letters to a topic of their own.
const ORDERS: &str = r#"
ack_deadline = "3s"
[topics.orders.subscriptions.billing]
ack_deadline = "30s"
max_retries = "unlimited"
dead_letter_topic = "dead"
[topics.orders.subscriptions.audit]
dead_letter_topic = "discard"
[topics.dead.subscriptions.dead]
dead_letter_topic = "discard"
"#;

/// The problems of ORDERS with `more` at its end.
fn problems_of_orders(more: &str) -> Vec<String> {
    problems(&format!("{ORDERS}{more}"), &[], &[])
}

#[test]
fn without_any_topic_there_is_demo_with_its_subscription_demo() {
    let topics = load("max_retries = 7", &[], &[]).unwrap().settings.topics();
    assert_eq!(topics.len(), 1);
    assert_eq!((topics[0].name.as_str(), topics[0].subscriptions[0].name.as_str()), ("demo", "demo"));
    assert_eq!(topics[0].subscriptions[0].policy.max_retries, Some(7));
}

#[test]
fn a_subscription_has_the_policy_of_the_top_level_but_for_what_its_table_says() {
    let topics = load(ORDERS, &[], &[]).unwrap().settings.topics();
    let names: Vec<_> = topics.iter().map(|topic| topic.name.as_str()).collect();
    assert_eq!(names, ["dead", "orders"]);
    let [audit, billing] = &topics[1].subscriptions[..] else { panic!("two subscriptions") };
    assert_eq!((billing.policy.ack_deadline, billing.policy.max_retries), (Duration::from_secs(30), None));
    assert_eq!((audit.policy.ack_deadline, audit.policy.max_retries), (Duration::from_secs(3), None));
    assert_eq!((billing.dead_letter_topic.as_deref(), &audit.dead_letter_topic), (Some("dead"), &None));
}

#[test]
fn the_environment_can_change_the_policy_of_a_subscription() {
    let environment = [("ACKSTREAM_TOPICS__ORDERS__SUBSCRIPTIONS__BILLING__ACK_DEADLINE", "40s")];
    let topics = load(ORDERS, &environment, &[]).unwrap().settings.topics();
    assert_eq!(topics[1].subscriptions[1].policy.ack_deadline, Duration::from_secs(40));
}

#[test]
fn a_subscription_must_say_what_becomes_of_what_it_gives_up() {
    assert_eq!(
        problems_of_orders("[topics.orders.subscriptions.third]\nmax_retries = 1"),
        [
            "topics.orders.subscriptions.third (file test.toml): must say what becomes of what it gives up: dead_letter_topic = \
          \"NAME\", or \"discard\""
        ]
    );
}

#[test]
fn a_dead_letter_topic_must_exist() {
    assert_eq!(
        problems_of_orders("[topics.orders.subscriptions.third]\ndead_letter_topic = \"daed\""),
        [
            "topics.orders.subscriptions.third.dead_letter_topic = \"daed\" (file test.toml): there is no such topic; the nearest is \
          dead, and \"discard\" is for none"
        ]
    );
}

#[test]
fn dead_letters_lead_in_no_circle() {
    let text = r#"
        [topics.a.subscriptions.a]
        dead_letter_topic = "b"
        [topics.b.subscriptions.b]
        dead_letter_topic = "c"
        [topics.c.subscriptions.c]
        dead_letter_topic = "a"
        [topics.into.subscriptions.into]
        dead_letter_topic = "a"
        [topics.own.subscriptions.own]
        dead_letter_topic = "own"
    "#;
    let circle = |at: &str, to: &str, way: &str| {
        format!(
            "topics.{at}.subscriptions.{at}.dead_letter_topic = \"{to}\" (file test.toml): leads back to where it came from: {way}"
        )
    };
    assert_eq!(
        problems(text, &[], &[]),
        [
            circle("a", "b", "a -> b -> c -> a"),
            circle("b", "c", "b -> c -> a -> b"),
            circle("c", "a", "c -> a -> b -> c"),
            circle("own", "own", "own -> own"),
        ]
    );
}

#[test]
fn a_topic_has_a_subscription() {
    assert_eq!(
        problems_of_orders("[topics.empty]\n[topics.bare.subscriptions]"),
        [
            "topics.bare: has no subscription: add [topics.bare.subscriptions.NAME]",
            "topics.empty: has no subscription: add [topics.empty.subscriptions.NAME]",
        ]
        .map(|problem| problem.replacen(':', " (file test.toml):", 1))
    );
}

#[test]
fn names_of_subscriptions_are_unique_on_a_server() {
    assert_eq!(
        problems_of_orders("[topics.third.subscriptions.audit]\ndead_letter_topic = \"discard\""),
        [
            "topics.third.subscriptions.audit (file test.toml): topic orders has a subscription of this name, and names are unique on a server"
        ]
    );
}

#[test]
fn every_value_of_a_subscription_is_kept_within_its_bounds() {
    let found = problems_of_orders(
        "[topics.third.subscriptions.third]\nack_deadline = \"1ms\"\nmax_retries = 2000\nmin_backoff = \"6m\"\n\
         max_backlog_messages = 0\nmax_backlog_bytes = \"1KiB\"\ndead_letter_topic = \"discard\"\nretries = 1",
    );
    let third = |rest: &str| format!("topics.third.subscriptions.third{rest}");
    assert_eq!(
        found,
        [
            third(".retries = 1 (file test.toml): there is no such key; the nearest is max_retries"),
            third(".ack_deadline = \"1ms\" (file test.toml): must be between 10ms and 1h"),
            third(".max_retries = 2000 (file test.toml): must be at most 1000, or \"unlimited\""),
            third(".min_backoff = \"6m\" (file test.toml): must be at most max_backoff"),
            third(".max_backlog_messages = 0 (file test.toml): must be at least 1"),
            third(
                " (file test.toml): max_backlog_bytes must be at least max_message_bytes and 8KiB, or the largest dead letter never fits"
            ),
        ]
    );
}

#[test]
fn the_largest_dead_letter_fits_the_backlog_that_it_goes_to() {
    assert_eq!(
        problems_of_orders(
            "[topics.dead.subscriptions.second]\nmax_backlog_bytes = \"1MiB\"\ndead_letter_topic = \"discard\""
        ),
        [
            "topics.dead.subscriptions.second (file test.toml): max_backlog_bytes must be at least max_message_bytes and 8KiB, or the largest dead \
          letter never fits"
        ]
    );
}

#[test]
fn what_is_wrong_at_the_top_level_is_told_once() {
    assert_eq!(
        problems(&ORDERS.replace("3s", "3 parsecs"), &[], &[]),
        [
            "ack_deadline = \"3 parsecs\" (file test.toml): must be a length of time with its unit, such as \"2s\" or \"100ms\""
        ]
    );
    assert_eq!(
        problems(&ORDERS.replace("3s", "3h"), &[], &[]),
        ["ack_deadline = \"3h\" (file test.toml): must be between 10ms and 1h"]
    );
}

#[test]
fn names_that_nobody_could_use_are_refused() {
    let found = problems(
        "[topics.\"a b\".subscriptions._x]\ndead_letter_topic = \"discard\"\n[topics.discard.subscriptions.d]\ndead_letter_topic = \
         \"discard\"",
        &[],
        &[],
    );
    let must = "a name has 1 to 255 letters, digits, '-', '_' and '.', and begins with a letter or digit";
    assert_eq!(
        found,
        [
            format!("topics.\"a b\" (file test.toml): {must}"),
            format!("topics.\"a b\".subscriptions._x (file test.toml): {must}"),
            "topics.discard (file test.toml): no topic has this name: as a dead_letter_topic it stands for none"
                .to_owned(),
        ]
    );
}

#[test]
fn tables_where_values_are_expected_and_the_other_way_round_are_named() {
    let found = problems("[topics]\na = 1\n[topics.b]\nsubscriptions = 2\n[topics.c.subscriptions]\nd = 3", &[], &[]);
    assert_eq!(
        found,
        [
            "topics.a = 1 (file test.toml): must be a table: write [topics.T.subscriptions.S]",
            "topics.b.subscriptions = 2 (file test.toml): there is no such key; the nearest is subscriptions",
            "topics.b (file test.toml): has no subscription: add [topics.b.subscriptions.NAME]",
            "topics.c.subscriptions.d = 3 (file test.toml): must be a table: write [topics.T.subscriptions.S]",
            "topics.c (file test.toml): has no subscription: add [topics.c.subscriptions.NAME]",
        ]
    );
    assert_eq!(
        problems("topics = 5", &[], &[]),
        ["topics = 5 (file test.toml): must be a table: write [topics.T.subscriptions.S]"]
    );
}

#[test]
fn what_config_prints_of_topics_gives_the_same_again() {
    let dotted = format!("{ORDERS}[topics.\"a.b\".subscriptions.\"c.d\"]\ndead_letter_topic = \"dead\"");
    for text in ["", ORDERS, &dotted] {
        let config = load(text, &[], &[]).unwrap();
        let again = load(&config.to_string(), &[], &[]).unwrap();
        assert_eq!(again.settings.topics(), config.settings.topics(), "{config}");
    }
}

#[test]
fn who_may_do_what_is_read_from_lists_and_names_and_printed_again() {
    use ackstream::security::Verb::{Consume, Publish};
    let text = r#"
tokens = "tokens"
[topics.orders.subscriptions.invoices]
dead_letter_topic = "discard"
[access.shop]
publish = ["orders"]
[access."spiffe://x/y"]
consume = "invoices"
[access.ops]
publish = "*"
consume = ["*"]
"#;
    let config = load(text, &[], &[]).unwrap();
    let may = |client: &str| {
        [(Publish, "orders"), (Consume, "invoices")]
            .map(|(verb, name)| config.security.access.allows(client, verb, name))
    };
    assert_eq!(
        ["shop", "spiffe://x/y", "ops", "", "x"].map(may),
        [[true, false], [false, true], [true, true], [false, false], [false, false]]
    );
    let printed = config.to_string();
    for line in [
        "[access.shop]",
        "publish = [\"orders\"]",
        "[access.\"spiffe://x/y\"]",
        "consume = \"invoices\"",
        "consume = [\"*\"]",
    ] {
        assert!(printed.contains(line), "{printed}");
    }
    let again = load(&printed, &[], &[]).unwrap();
    assert_eq!(again.security.access, config.security.access);
}

#[test]
fn what_is_wrong_with_rights_and_files_of_security_is_told() {
    let topics = "[topics.orders.subscriptions.invoices]\ndead_letter_topic = \"discard\"\n";
    let of = |text: &str| problems(&format!("{text}\n{topics}"), &[], &[]);
    for (text, expected) in [
        ("tls_cert = \"a\"", "tls_cert = \"a\" (file test.toml): needs its private key: set tls_key"),
        ("tls_key = \"a\"", "tls_key (file test.toml): needs its certificate: set tls_cert"),
        ("tls_client_ca = \"a\"", "tls_client_ca = \"a\" (file test.toml): needs TLS: set tls_cert and tls_key"),
        ("tokens = \"\"", "tokens = \"\" (file test.toml): must be the path of a file, or \"off\""),
        ("reload_interval = \"1ms\"", "reload_interval = \"1ms\" (file test.toml): must be between 100ms and 1day"),
        ("access = 1", "access = 1 (file test.toml): must be a table: write [access.CLIENT]"),
        (
            "[access.shop]\npublish = \"orders\"",
            "access (file test.toml): nobody could prove to be one of these clients: set tokens or tls_client_ca",
        ),
        (
            "tokens = \"t\"\n[access]\nshop = 3",
            "access.shop = 3 (file test.toml): must be a table: write [access.CLIENT]",
        ),
        (
            "tokens = \"t\"\n[access.shop]\npublishes = \"orders\"",
            "access.shop.publishes (file test.toml): there is no such key; the nearest is publish",
        ),
        (
            "tokens = \"t\"\n[access.shop]\npublish = [\"orders\", \"order\"]",
            "access.shop.publish = \"order\" (file test.toml): there is no such topic; the nearest is orders",
        ),
        (
            "tokens = \"t\"\n[access.shop]\nconsume = \"orders\"",
            "access.shop.consume = \"orders\" (file test.toml): there is no such subscription; the nearest is invoices",
        ),
        (
            "tokens = \"t\"\n[access.shop]\nconsume = [[\"x\"]]",
            "access.shop.consume = [\"x\"] (file test.toml): must be a single value",
        ),
    ] {
        assert_eq!(of(text), [expected], "{text}");
    }
}

#[test]
fn a_secret_in_the_wrong_place_is_not_shown() {
    const SECRET: &str = "s3cr3t-0123456789";
    for text in [
        format!("tokens = [\"{SECRET}\"]"),
        format!("tokens = \"shop {SECRET}"),
        format!("tls_key = \"{SECRET}\""),
        format!("tls_key = [\"{SECRET}\"]"),
        format!("token = \"{SECRET}\""),
        format!("access = \"{SECRET}\""),
        format!("access.shop = \"{SECRET}\""),
        format!("[access.shop]\ntoken = \"{SECRET}\""),
        format!("[access]\nshop = {{ token = \"{SECRET}\" "),
    ] {
        let found = problems(&text, &[], &[]);
        assert!(!found.is_empty(), "{text}");
        assert!(found.iter().all(|problem| !problem.contains(SECRET)), "{found:?}");
    }
}

#[test]
fn a_key_without_a_name_is_told_too() {
    let found = problems("\"\" = 1", &[("ACKSTREAM_", "x")], &[]);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().all(|problem| problem.starts_with("a key without a name (")), "{found:?}");
}
