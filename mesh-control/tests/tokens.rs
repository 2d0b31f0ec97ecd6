//! Nodes without a certificate: calls that bear a token.

mod support;

use mesh_api::ads::DeltaDiscoveryRequest;
use mesh_api::ads::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_api::ca::IstioCertificateRequest;
use mesh_api::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh_control::audit::Event;
use mesh_control::refusal::Refusal;
use mesh_control::server::{Limits, Rate};
use mesh_control::tokens::Use;
use prost_types::value::Kind;
use support::{CART, Control, WEB, assert_refused, request};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// Asks as a client without a certificate does.
async fn ask(channel: &Channel, authorization: &str, identity: &str) -> Result<String, Status> {
    let value = prost_types::Value {
        kind: Some(Kind::StringValue(identity.to_owned())),
    };
    let mut asked = Request::new(IstioCertificateRequest {
        csr: request(|_| ()).0,
        validity_duration: 0,
        metadata: Some(prost_types::Struct {
            fields: [("ImpersonatedIdentity".to_owned(), value)].into(),
        }),
    });
    let authorization = authorization.parse().unwrap();
    asked.metadata_mut().insert("authorization", authorization);
    let mut client = IstioCertificateServiceClient::new(channel.clone());
    let answer = client.create_certificate(asked).await?.into_inner();
    Ok(answer.cert_chain.concat())
}

#[tokio::test]
async fn a_node_token_speaks_for_its_node_call_after_call() {
    let control = Control::start().await;
    let end_s = mesh_control::now_s() + 3600;
    let token = control.tokens.create_for(Use::Calls, "node-a", end_s);
    let bearer = format!("Bearer {}", token.unwrap());
    let channel = control.connect(None).await.unwrap();
    for _ in 0..3 {
        let chain = ask(&channel, &bearer, CART).await.unwrap();
        assert!(chain.starts_with("-----BEGIN CERTIFICATE-----"));
    }
    let refused = ask(&channel, &bearer, WEB).await;
    assert_refused(refused, Code::PermissionDenied, "no pod of");
    let mut discovery = AggregatedDiscoveryServiceClient::new(channel);
    let asked = tokio_stream::iter([DeltaDiscoveryRequest {
        type_url: mesh_api::ADDRESS_TYPE_URL.to_owned(),
        ..Default::default()
    }]);
    let mut asked = Request::new(asked);
    let authorization = bearer.parse().unwrap();
    asked.metadata_mut().insert("authorization", authorization);
    let answer = discovery.delta_aggregated_resources(asked).await.unwrap();
    let first = answer.into_inner().message().await.unwrap().unwrap();
    assert!(!first.resources.is_empty());
}

#[tokio::test]
async fn tokens_that_speak_for_nobody_are_refused_each_for_its_reason() {
    let control = Control::start().await;
    let channel = control.connect(None).await.unwrap();
    let now_s = mesh_control::now_s();
    let make = |purpose, end_s| control.tokens.create_for(purpose, "node-a", end_s).unwrap();
    let join = make(Use::Join, now_s + 3600);
    let unknown = format!("nodemesh-node-{}", "0".repeat(64));
    for (authorization, part, refusal) in [
        (
            format!("Bearer {}", make(Use::Calls, now_s - 1)),
            "expired",
            Refusal::TokenExpired,
        ),
        (
            format!("Bearer {unknown}"),
            "unknown",
            Refusal::TokenUnknown,
        ),
        (
            "Bearer nodemesh-node-../../etc".to_owned(),
            "node token",
            Refusal::TokenMalformed,
        ),
        (
            format!("Bearer {join}"),
            "not a token that calls are made with",
            Refusal::TokenMalformed,
        ),
        (
            "Bearer eyJhbGciOiJub25lIn0.e30.".to_owned(),
            "not a token that calls are made with",
            Refusal::TokenMalformed,
        ),
        (
            "Basic bm9kZTpub2Rl".to_owned(),
            "client certificate",
            Refusal::NoCredential,
        ),
        (
            format!("Bearer {}", "x".repeat(9_000)),
            "client certificate",
            Refusal::NoCredential,
        ),
    ] {
        let before = control.audit.refused(refusal);
        let refused = ask(&channel, &authorization, CART).await;
        assert_refused(refused, Code::Unauthenticated, part);
        assert_eq!(
            control.audit.refused(refusal),
            before + 1,
            "{authorization}"
        );
    }
    assert_eq!(control.audit.count(Event::WorkloadSigned), 0);
    // The join token was not spent by it; nor does a node token join.
    control.join(&join, "node-a").await.unwrap();
    let refused = control
        .join(&make(Use::Calls, now_s + 3600), "node-a")
        .await;
    assert_refused(refused, Code::Unauthenticated, "not a join token");
}

#[tokio::test]
async fn an_address_that_shows_tokens_too_often_is_refused() {
    let seldom = Rate {
        per_second: 1,
        burst: 2,
    };
    let control = Control::limited(Limits {
        bearer: seldom,
        ..Limits::default()
    });
    let control = control.await;
    let channel = control.connect(None).await.unwrap();
    let guess = format!("Bearer nodemesh-node-{}", "0".repeat(64));
    let refused = loop {
        let answer = ask(&channel, &guess, CART).await;
        match &answer {
            Err(status) if status.code() == Code::Unauthenticated => {}
            _ => break answer,
        }
        assert!(control.audit.refused(Refusal::TokenUnknown) < 1_000);
    };
    assert_refused(refused, Code::ResourceExhausted, "requests a second");
    assert!(control.audit.refused(Refusal::RateCaller) > 0);
    // A node that shows its certificate is not held up.
    control.node("node-a").await;
}
