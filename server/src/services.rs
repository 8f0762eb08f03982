//! Every gRPC service of the server and its methods, as the descriptors tell them: what reflection shows, whose health can be asked
//! for, and whose calls are counted.

use std::pin::Pin;

use futures_core::Stream;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tokio_stream::StreamExt as _;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_health::server::{HealthReporter, HealthService};

use crate::proto::FILE_DESCRIPTOR_SET;

/// The descriptors of all services, reflection's own included.
const DESCRIPTORS: [&[u8]; 4] = [
    FILE_DESCRIPTOR_SET,
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
];
/// The largest request to health or reflection, in bytes: they ask for a name. Health is told to anyone, so that anyone can send them.
const MAX_REQUEST_BYTES: usize = 4 << 10;
/// Why the descriptors can be read.
const MADE_BY_BUILD: &str = "the descriptors were made by the build";

/// One method of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Method {
    /// The service's full name, such as "ackstream.v1.MessageStream".
    pub service: String,
    /// The method's name in it.
    pub name: String,
    /// Whether the client sends a stream.
    pub client_streams: bool,
    /// Whether the server sends a stream.
    pub server_streams: bool,
}

impl Method {
    /// Whether it has one request and one response.
    pub const fn is_unary(&self) -> bool {
        !self.client_streams && !self.server_streams
    }

    /// The path of its requests.
    pub fn path(&self) -> String {
        format!("/{}/{}", self.service, self.name)
    }
}

/// All methods of all services.
pub fn methods() -> Vec<Method> {
    let mut methods = Vec::new();
    for descriptors in DESCRIPTORS {
        for file in FileDescriptorSet::decode(descriptors).expect(MADE_BY_BUILD).file {
            for service in &file.service {
                methods.extend(service.method.iter().map(|method| Method {
                    service: format!("{}.{}", file.package(), service.name()),
                    name: method.name().to_owned(),
                    client_streams: method.client_streaming(),
                    server_streams: method.server_streaming(),
                }));
            }
        }
    }
    methods
}

/// The full names of all services, each once.
pub fn names() -> Vec<String> {
    let mut names: Vec<_> = methods().into_iter().map(|method| method.service).collect();
    names.dedup();
    names
}

/// Reflection of all services, as of v1 and v1alpha.
pub fn reflection() -> Routes {
    let builder = || {
        let empty = tonic_reflection::server::Builder::configure().include_reflection_service(false);
        DESCRIPTORS.into_iter().fold(empty, tonic_reflection::server::Builder::register_encoded_file_descriptor_set)
    };
    let (v1, v1alpha) = (builder().build_v1(), builder().build_v1alpha());
    Routes::new(v1.expect(MADE_BY_BUILD).max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(v1alpha.expect(MADE_BY_BUILD).max_decoding_message_size(MAX_REQUEST_BYTES))
}

/// Health, and who tells it what that is.
pub fn health() -> (HealthReporter, HealthServer<impl Health>) {
    let reporter = HealthReporter::new();
    let known = HealthService::from_health_reporter(reporter.clone());
    (reporter, HealthServer::new(WatchesUnknown(known)).max_decoding_message_size(MAX_REQUEST_BYTES))
}

/// Health as grpc.health.v1 has it: who watches a service that is not there gets `SERVICE_UNKNOWN` on a stream that stays open. (The
/// service of tonic-health refuses such a watch with `NOT_FOUND`.)
struct WatchesUnknown<H>(H);

#[tonic::async_trait]
impl<H: Health> Health for WatchesUnknown<H> {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        self.0.check(request).await
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        match self.0.watch(request).await {
            Ok(watch) => Ok(watch.map(|told| Box::pin(told) as Self::WatchStream)),
            Err(status) if status.code() == Code::NotFound => {
                // Services do not come later. The stream lasts as long as one that watches the whole server.
                let whole = self.0.watch(Request::new(HealthCheckRequest::default())).await?;
                let unknown = HealthCheckResponse { status: ServingStatus::ServiceUnknown.into() };
                let first = tokio_stream::once(Ok(unknown));
                Ok(whole.map(|told| Box::pin(first.chain(told.filter(Result::is_err))) as Self::WatchStream))
            }
            Err(status) => Err(status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_is_told_with_its_methods() {
        let names = names();
        for name in [
            "ackstream.v1.MessageStream",
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        ] {
            assert!(names.contains(&name.to_owned()), "{name} is not in {names:?}");
        }
        let unary: Vec<_> = methods().into_iter().filter(Method::is_unary).map(|method| method.name).collect();
        assert_eq!(unary, ["Check"]);
    }
}
