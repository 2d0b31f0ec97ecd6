//! Nothing but joining answers who is no node: every call of every service, as the protocol files
//! have them.

mod support;

use std::fs;

use mesh_control::audit::Event;
use support::Control;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

/// Paths of all calls that are defined.
fn calls() -> Vec<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../mesh-api/proto");
    let mut calls = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        let (mut package, mut service) = ("", "");
        for line in text.lines() {
            let mut words = line.split([' ', ';', '(']).filter(|word| !word.is_empty());
            match (words.next(), words.next()) {
                (Some("package"), Some(name)) => package = name,
                (Some("service"), Some(name)) => service = name,
                (Some("rpc"), Some(name)) => calls.push(format!("/{package}.{service}/{name}")),
                _ => {}
            }
        }
    }
    calls
}

/// Calls with an empty message, as any client can.
async fn call(channel: &Channel, path: &str, bearer: Option<&str>) -> Status {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let path: PathAndQuery = path.parse().unwrap();
    let mut request = Request::new(());
    if let Some(token) = bearer {
        let value = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    let answer = client.unary(request, path, ProstCodec::<(), ()>::default());
    answer.await.expect_err("no answer for anybody")
}

#[tokio::test]
async fn no_call_answers_who_is_no_node() {
    let control = Control::start().await;
    let calls = calls();
    assert!(calls.len() >= 5, "{calls:?}");
    let join = "/nodemesh.node.v1.NodeService/Join";
    assert!(calls.iter().any(|path| path == join), "{calls:?}");
    let workload = control.pki.leaf(support::CART, |_| ());
    let mut refused = 0;
    for path in &calls {
        let anonymous = control.connect(None).await.unwrap();
        let status = call(&anonymous, path, None).await;
        let forged = call(&anonymous, path, Some("nodemesh-node-x")).await;
        let svid = control.connect(Some(&workload)).await.unwrap();
        let of_a_workload = call(&svid, path, None).await;
        if path == join {
            // An empty request names no node.
            assert_eq!(status.code(), Code::InvalidArgument, "{path}: {status}");
            continue;
        }
        assert_eq!(status.code(), Code::Unauthenticated, "{path}: {status}");
        assert_eq!(forged.code(), Code::Unauthenticated, "{path}: {forged}");
        let code = of_a_workload.code();
        assert_eq!(code, Code::PermissionDenied, "{path}: {of_a_workload}");
        refused += 3;
    }
    assert_eq!(control.audit.count(Event::CallerRefused), refused);
    // What is not there: reflection, health, anything else.
    let anonymous = control.connect(None).await.unwrap();
    for path in [
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.health.v1.Health/Check",
        "/metrics",
    ] {
        let status = call(&anonymous, path, None).await;
        assert_eq!(status.code(), Code::Unimplemented, "{path}: {status}");
    }
}
