//! The command `health`: asks a server for its health over gRPC, so that a container needs neither a shell nor another program.

use std::fmt;
use std::time::Duration;

use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::address::Listen;
use crate::client::{AuthorizedChannel, Credentials, Target, Tls, Trust, explain_call};
use crate::security::SecuritySettings;

/// What to ask, and whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The server; `None` = where the configuration in force has a server listen.
    pub target: Option<Target>,
    /// The full name of a service; empty = the server.
    pub service: String,
    /// How long the answer may take.
    pub timeout: Duration,
    /// How to present oneself.
    pub credentials: Credentials,
}

impl Question {
    /// The same; where the server of this configuration is asked, it speaks TLS as that says, and is not asked who it is.
    #[must_use]
    pub fn of_own_server(mut self, security: &SecuritySettings) -> Self {
        let is_own = self.target.is_none() && self.credentials == Credentials::default();
        if is_own && security.files.tls.is_some() {
            self.credentials.tls = Some(Tls { trust: Trust::Anyone, identity: None });
        }
        self
    }
}

/// Why the answer is no.
#[derive(Debug)]
pub enum Unhealthy {
    /// There is nobody to ask: the server picks its port.
    NoTarget(Listen),
    /// Nobody answered in time.
    Timeout(Duration),
    /// The server cannot be reached.
    Unreachable(String),
    /// It has no such service.
    NoService(String),
    /// It gave an error.
    Failed(String),
    /// It is not serving.
    NotServing,
}

impl fmt::Display for Unhealthy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTarget(listen) => {
                write!(f, "the server picks its port (listen = {listen}): say --target HOST:PORT")
            }
            Self::Timeout(timeout) => {
                write!(f, "no answer within {} (--timeout)", humantime::format_duration(*timeout))
            }
            Self::Unreachable(why) => write!(f, "the server cannot be reached: {why}"),
            Self::NoService(name) => write!(f, "the server has no service {name:?}"),
            Self::Failed(why) => write!(f, "the server does not tell its health: {why}"),
            Self::NotServing => f.write_str("NOT_SERVING"),
        }
    }
}

impl std::error::Error for Unhealthy {}

/// Asks `question`, by default the server that would listen on `listen`. `Ok` = SERVING.
///
/// # Errors
///
/// Why not.
pub async fn ask(question: &Question, listen: Listen) -> Result<(), Unhealthy> {
    let targets = match &question.target {
        Some(target) => vec![target.to_string()],
        None => listen.reached_at().iter().map(ToString::to_string).collect(),
    };
    let answer = async {
        let mut client =
            HealthClient::new(connect(&targets, &question.credentials).await?.ok_or(Unhealthy::NoTarget(listen))?);
        let request = HealthCheckRequest { service: question.service.clone() };
        match client.check(request).await {
            Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => Ok(()),
            Ok(_) => Err(Unhealthy::NotServing),
            Err(status) if status.code() == Code::NotFound => Err(Unhealthy::NoService(question.service.clone())),
            Err(status) => Err(Unhealthy::Failed(explain_call(status, &question.credentials).message().to_owned())),
        }
    };
    tokio::time::timeout(question.timeout, answer).await.unwrap_or(Err(Unhealthy::Timeout(question.timeout)))
}

/// A connection to the first of `targets` that takes one; `None` where there are no targets.
async fn connect(targets: &[String], credentials: &Credentials) -> Result<Option<AuthorizedChannel>, Unhealthy> {
    let mut refused = None;
    for target in targets {
        let presented = credentials.present().map_err(|problem| Unhealthy::Unreachable(problem.to_string()))?;
        match presented.connect(target, |endpoint| endpoint).await {
            Ok(channel) => return Ok(Some(channel)),
            Err(status) => refused = Some(format!("{target}: {}", status.message())),
        }
    }
    refused.map_or(Ok(None), |why| Err(Unhealthy::Unreachable(why)))
}
