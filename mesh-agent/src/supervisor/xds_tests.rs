use super::*;
use mesh_api::workload::{TunnelProtocol, Workload, address};

const CART: &str = "Kubernetes//v1/Pod/shop/cart";

fn empty() -> XdsState {
    XdsState::new("cluster.local".parse().unwrap())
}

fn resource(name: &str, version: &str, address: &Address) -> Resource {
    Resource {
        version: version.to_owned(),
        name: name.to_owned(),
        resource: Some(prost_types::Any {
            type_url: ADDRESS_TYPE_URL.to_owned(),
            value: address.encode_to_vec(),
        }),
        aliases: Vec::new(),
    }
}

fn workload(name: &str, version: &str, ip: [u8; 4]) -> Resource {
    let pod = name.rsplit('/').next().unwrap().to_owned();
    let workload = Workload {
        uid: name.to_owned(),
        name: pod,
        namespace: "shop".to_owned(),
        service_account: "cart".to_owned(),
        addresses: vec![ip.to_vec()],
        tunnel_protocol: TunnelProtocol::Hbone as i32,
        ..Workload::default()
    };
    let r#type = Some(address::Type::Workload(workload));
    resource(name, version, &Address { r#type })
}

fn response(nonce: &str, resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: ADDRESS_TYPE_URL.to_owned(),
        nonce: nonce.to_owned(),
        resources,
        removed_resources: removed.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

fn model(state: &mut XdsState, mesh: &mut Mesh, response: DeltaDiscoveryResponse) -> Applied {
    let applied = state.apply(response);
    for change in applied.changes.iter().cloned() {
        change.apply(mesh);
    }
    applied
}

#[test]
fn a_good_response_is_acked_and_told_of_on_the_next_stream() {
    let (mut state, mut mesh) = (empty(), Mesh::default());
    let applied = model(
        &mut state,
        &mut mesh,
        response("n1", vec![workload(CART, "7", [10, 0, 0, 2])], &[]),
    );
    assert_eq!(applied.request.response_nonce, "n1");
    assert_eq!(applied.request.error_detail, None);
    assert!(applied.request.resource_names_subscribe.is_empty());
    assert!(mesh.workload(CART).is_some());
    let hello = state.subscribe("node-a");
    assert_eq!(hello.initial_resource_versions[CART], "7");
    assert_eq!(hello.resource_names_subscribe, ["*"]);
}

#[test]
fn what_is_malformed_is_refused_with_why_and_harms_nothing_else() {
    let (mut state, mut mesh) = (empty(), Mesh::default());
    model(
        &mut state,
        &mut mesh,
        response("n1", vec![workload(CART, "1", [10, 0, 0, 2])], &[]),
    );
    let mut broken = workload(CART, "2", [10, 0, 0, 3]);
    broken.resource.as_mut().unwrap().value = vec![0xff];
    let other = "Kubernetes//v1/Pod/shop/pay";
    let misnamed = Resource {
        name: "Kubernetes//v1/Pod/shop/else".to_owned(),
        ..workload(other, "1", [10, 0, 0, 9])
    };
    let good = workload(other, "1", [10, 0, 0, 4]);
    let applied = model(
        &mut state,
        &mut mesh,
        response("n2", vec![broken, misnamed, good], &[]),
    );
    let nack = applied.request.error_detail.unwrap();
    assert_eq!(applied.request.response_nonce, "n2");
    assert!(
        nack.message.contains(CART) && nack.message.contains("its own name is"),
        "{nack:?}"
    );
    assert_eq!(applied.faults.len(), 2);
    // The last good version is kept, in the model and for the next stream.
    assert!(mesh.workload_at("10.0.0.2".parse().unwrap()).is_some());
    assert!(mesh.workload_at("10.0.0.4".parse().unwrap()).is_some());
    assert_eq!(state.subscribe("a").initial_resource_versions[CART], "1");
}

#[test]
fn an_unknown_type_is_refused_as_a_whole() {
    let (mut state, mut mesh) = (empty(), Mesh::default());
    let mut strange = response("n1", vec![workload(CART, "1", [10, 0, 0, 2])], &[]);
    strange.type_url = "type.googleapis.com/envoy.Unknown".to_owned();
    let applied = model(&mut state, &mut mesh, strange);
    assert!(
        applied
            .request
            .error_detail
            .unwrap()
            .message
            .contains("envoy.Unknown")
    );
    assert_eq!(mesh.workloads().count(), 0);
}

#[test]
fn an_address_that_moves_ends_up_with_its_new_owner() {
    let (mut state, mut mesh) = (empty(), Mesh::default());
    model(
        &mut state,
        &mut mesh,
        response("n1", vec![workload(CART, "1", [10, 0, 0, 2])], &[]),
    );
    let heir = "Kubernetes//v1/Pod/shop/heir";
    let moved = response(
        "n2",
        vec![workload(heir, "1", [10, 0, 0, 2])],
        &[CART, "never-held"],
    );
    let applied = model(&mut state, &mut mesh, moved);
    assert!(applied.faults.is_empty());
    assert_eq!(
        &*mesh.workload_at("10.0.0.2".parse().unwrap()).unwrap().uid,
        heir
    );
    assert!(mesh.workload(CART).is_none());
}

#[test]
fn a_snapshot_restores_the_whole_state() {
    let (mut state, mut mesh) = (empty(), Mesh::default());
    model(
        &mut state,
        &mut mesh,
        response("n1", vec![workload(CART, "1", [10, 0, 0, 2])], &[]),
    );
    let (mut restored, mut copy) = (empty(), Mesh::default());
    let applied = model(&mut restored, &mut copy, state.snapshot());
    assert!(applied.faults.is_empty());
    assert_eq!(restored.subscribe("a"), state.subscribe("a"));
    assert_eq!(copy.workload(CART), mesh.workload(CART));
}
