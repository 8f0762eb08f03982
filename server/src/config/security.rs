//! TLS, tokens and `[access.CLIENT]`: the files of a server's security, and what each client may do.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::value::{Dict, Value};

use super::values::{self, Values};
use crate::security::{Access, Files, NamedFile, Names, Rights, SecuritySettings, TlsFiles, TokenFile};
use crate::server::TopicSettings;

/// The table that clients stand in.
pub(super) const ACCESS: &str = "access";
/// The keys of a client's table.
const RIGHTS: [&str; 2] = ["publish", "consume"];
/// Stands for every topic, or every subscription.
const ALL: &str = "*";

/// Everything about it.
pub(super) fn security(values: &mut Values<'_>, topics: &[TopicSettings]) -> SecuritySettings {
    let mut file = |key| {
        let path: Option<PathBuf> = values.get(key, values::path_or_off);
        path.map(|path| NamedFile { key, path, source: values.source_of(key) })
    };
    let (cert, key, client_ca) = (file("tls_cert"), file("tls_key"), file("tls_client_ca"));
    let tokens = file("tokens").map(TokenFile);
    let (has_client_ca, has_tokens) = (client_ca.is_some(), tokens.is_some());
    let tls = match (cert, key) {
        (Some(cert), Some(key)) => Some(TlsFiles { cert, key, client_ca }),
        (Some(_), None) => {
            values.wrong_key("tls_cert", "needs its private key: set tls_key");
            None
        }
        (None, Some(_)) => {
            values.wrong_key("tls_key", "needs its certificate: set tls_cert");
            None
        }
        (None, None) => {
            if has_client_ca {
                values.wrong_key("tls_client_ca", "needs TLS: set tls_cert and tls_key");
            }
            None
        }
    };
    let access = access(values, topics, has_tokens || has_client_ca);
    let (least, most) = (Duration::from_millis(100), Duration::from_hours(24));
    let reload_interval = values.between("reload_interval", least, most);
    SecuritySettings { files: Files { tls, tokens }, access, reload_interval }
}

fn access(values: &mut Values<'_>, topics: &[TopicSettings], asks_who_calls: bool) -> Access {
    let Some(clients) = values.table(ACCESS) else { return Access::default() };
    let topic_names: BTreeSet<_> = topics.iter().map(|topic| topic.name.as_str()).collect();
    let subscriptions = topics.iter().flat_map(|topic| &topic.subscriptions);
    let subscription_names: BTreeSet<_> = subscriptions.map(|subscription| subscription.name.as_str()).collect();
    if !asks_who_calls {
        let must = "nobody could prove to be one of these clients: set tokens or tls_client_ca";
        values.wrong(ACCESS, &clients.clone().into(), must);
    }
    let rights = clients.iter().map(|(client, value)| {
        let path = path_of(client);
        let own = value.as_dict();
        if client == ALL {
            values.wrong(&path, value, "nobody is called so, and it does not stand for everyone: name each client");
        }
        if own.is_none() {
            values.wrong(&path, value, "must be a table: write [access.CLIENT]");
        }
        for (key, value) in own.into_iter().flatten().filter(|(key, _)| !RIGHTS.contains(&key.as_str())) {
            let nearest = values::nearest(key, RIGHTS);
            values.wrong(&format!("{path}.{key}"), value, &format!("there is no such key; the nearest is {nearest}"));
        }
        let mut names = |key, what, known: &BTreeSet<&str>| {
            own.and_then(|own| own.get(key))
                .map_or_else(Names::default, |value| names(values, &format!("{path}.{key}"), value, what, known))
        };
        let publish = names("publish", "topic", &topic_names);
        let consume = names("consume", "subscription", &subscription_names);
        (client.clone(), Rights { publish, consume })
    });
    rights.collect()
}

/// A list of names, or one alone; "*" is all.
fn names(values: &mut Values<'_>, path: &str, value: &Value, what: &str, known: &BTreeSet<&str>) -> Names {
    let list = if let Value::Array(_, list) = value { list.clone() } else { vec![value.clone()] };
    let mut these = BTreeSet::new();
    for value in &list {
        let Some(name) = values.read(path, value, |text| Ok(text.to_owned())) else { continue };
        if name == ALL {
            return Names::All;
        }
        if known.contains(name.as_str()) {
            these.insert(name);
        } else {
            let nearest = values::nearest(&name, known.iter().copied().chain([ALL]));
            values.wrong(path, value, &format!("there is no such {what}; the nearest is {nearest}"));
        }
    }
    Names::These(these)
}

/// Whether a value may be a secret, put where the name of its file or the table of a client belongs: then it is not shown.
pub(super) fn may_be_secret(path: &str, value: &Value) -> bool {
    let is_text = matches!(value, Value::String(..) | Value::Array(..));
    let is_right = || RIGHTS.iter().any(|right| path.ends_with(&format!(".{right}")));
    match path {
        "tokens" | "tls_key" => value.as_str().is_none_or(|text| !text.is_empty() && !Path::new(text).exists()),
        _ => is_text && path.split('.').next() == Some(ACCESS) && !is_right(),
    }
}

fn path_of(client: &str) -> String {
    format!("{ACCESS}.{}", values::quoted(client))
}

/// Every right with its table, key and source.
pub(super) fn effective(values: &Values<'_>) -> Vec<super::Effective> {
    let mut all = Vec::new();
    for (client, value) in values.table(ACCESS).unwrap_or_default() {
        let own: Dict = value.into_dict().unwrap_or_default();
        for key in RIGHTS {
            let Some(value) = own.get(key) else { continue };
            let (table, source) = (path_of(&client), values.source(value));
            all.push(super::Effective { table, key, value: values::show(value), source });
        }
    }
    all
}
