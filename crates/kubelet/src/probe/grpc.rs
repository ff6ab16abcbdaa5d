//! The gRPC health check (grpc.health.v1.Health/Check).

use std::time::Duration;

use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;

use super::{Outcome, http};

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;

/// Asks a server for the health of one of its services.
pub async fn check(host: &str, port: u16, service: String, limit: Duration) -> Outcome {
    let address = http::authority(host, port);
    match tokio::time::timeout(limit, ask(&address, service)).await {
        Err(_) => {
            Outcome::Failure(format!("timeout: failed to connect service \"{address}\" within {limit:?}"))
        }
        Ok(outcome) => outcome,
    }
}

async fn ask(address: &str, service: String) -> Outcome {
    let endpoint = Endpoint::from_shared(format!("http://{address}"));
    let endpoint = match endpoint.and_then(|endpoint| endpoint.user_agent("kube-probe/1.37")) {
        Ok(endpoint) => endpoint,
        Err(error) => return Outcome::Error(error.to_string()),
    };
    let channel = match endpoint.connect().await {
        Ok(channel) => channel,
        Err(error) => {
            return Outcome::Failure(format!("error: failed to connect service at \"{address}\": {error}"));
        }
    };
    let mut client = Grpc::new(channel);
    if let Err(error) = client.ready().await {
        return Outcome::Failure(format!("error: failed to connect service at \"{address}\": {error}"));
    }
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    match client.unary(tonic::Request::new(HealthCheckRequest { service }), path, codec).await {
        Ok(answer) if answer.get_ref().status == SERVING => Outcome::Success,
        Ok(answer) => {
            let status = match answer.get_ref().status {
                0 => "UNKNOWN",
                2 => "NOT_SERVING",
                _ => "SERVICE_UNKNOWN",
            };
            Outcome::Failure(format!("service unhealthy (responded with \"{status}\")"))
        }
        Err(status) if status.code() == tonic::Code::Unimplemented => Outcome::Failure(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
            status.message()
        )),
        Err(status) => Outcome::Failure(format!("error: health rpc probe failed: {}", status.message())),
    }
}
