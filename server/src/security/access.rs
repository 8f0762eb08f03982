//! What each client may do. Who is not named may do nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What a client wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Publish to a topic.
    Publish,
    /// Consume from a subscription.
    Consume,
}

/// Topics or subscriptions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Names {
    /// All that there are.
    All,
    /// These.
    These(BTreeSet<String>),
}

/// What one client may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// The topics that it may publish to.
    pub publish: Names,
    /// The subscriptions that it may consume from.
    pub consume: Names,
}

/// The rights of all clients, by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access(BTreeMap<String, Rights>);

impl Default for Names {
    fn default() -> Self {
        Self::These(BTreeSet::new())
    }
}

impl Names {
    fn has(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::These(names) => names.contains(name),
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Publish => "publish to topic",
            Self::Consume => "consume from subscription",
        })
    }
}

impl FromIterator<(String, Rights)> for Access {
    fn from_iter<T: IntoIterator<Item = (String, Rights)>>(rights: T) -> Self {
        Self(rights.into_iter().collect())
    }
}

impl Access {
    /// Whether this client may do that with the topic or subscription of this name.
    pub fn allows(&self, client: &str, verb: Verb, name: &str) -> bool {
        self.0.get(client).is_some_and(|rights| match verb {
            Verb::Publish => rights.publish.has(name),
            Verb::Consume => rights.consume.has(name),
        })
    }

    /// Whether no client is named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a client of this name may do anything.
    pub fn names(&self, client: &str) -> bool {
        self.0.contains_key(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access() -> Access {
        let these = |names: &[&str]| Names::These(names.iter().map(|&name| name.to_owned()).collect());
        [
            ("shop".to_owned(), Rights { publish: these(&["orders"]), consume: Names::default() }),
            ("billing".to_owned(), Rights { publish: Names::default(), consume: these(&["invoices"]) }),
            ("ops".to_owned(), Rights { publish: Names::All, consume: Names::All }),
        ]
        .into_iter()
        .collect()
    }

    #[test]
    fn a_client_may_do_what_it_was_given_and_nothing_else() {
        let access = access();
        let may: Vec<_> = ["shop", "billing", "ops", "", "nobody", "SHOP"]
            .into_iter()
            .map(|client| {
                [
                    (Verb::Publish, "orders"),
                    (Verb::Publish, "invoices"),
                    (Verb::Consume, "orders"),
                    (Verb::Consume, "invoices"),
                ]
                .map(|(verb, name)| access.allows(client, verb, name))
            })
            .collect();
        assert_eq!(
            may,
            [[true, false, false, false], [false, false, false, true], [true; 4], [false; 4], [false; 4], [false; 4]]
        );
    }
}
