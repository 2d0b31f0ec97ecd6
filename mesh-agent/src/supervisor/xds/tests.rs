use super::*;
use mesh_api::policy::{self, Policy};
use mesh_api::workload::{Address, TunnelProtocol, Workload, address};
use mesh_api::{ADDRESS_TYPE_URL, POLICY_TYPE_URL};
use mesh_core::model::Mesh;
use mesh_core::policy::{Action, Direction, Target};
use prost::Message;

const CART: &str = "Kubernetes//v1/Pod/shop/cart";
const ALLOW: &str = "authorization/shop/allow";

fn empty() -> XdsState {
    XdsState::new("cluster.local".parse().unwrap())
}

fn resource(name: &str, version: &str, type_url: &str, value: Vec<u8>) -> Resource {
    Resource {
        version: version.to_owned(),
        name: name.to_owned(),
        resource: Some(prost_types::Any {
            type_url: type_url.to_owned(),
            value,
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
    let value = Address { r#type }.encode_to_vec();
    resource(name, version, ADDRESS_TYPE_URL, value)
}

fn authorization(
    version: &str,
    key: &str,
    change: impl FnOnce(&mut policy::AuthorizationPolicy),
) -> Resource {
    let kind = Some(policy::target::Kind::Namespace(true));
    let mut policy = policy::AuthorizationPolicy {
        key: key.to_owned(),
        target: Some(policy::Target { kind }),
        direction: policy::Direction::Inbound.into(),
        action: policy::Action::Allow.into(),
        rules: vec![policy::Rule::default()],
    };
    change(&mut policy);
    let kind = Some(policy::policy::Kind::Authorization(policy));
    let value = Policy { kind }.encode_to_vec();
    let name = format!("authorization/{key}");
    resource(&name, version, POLICY_TYPE_URL, value)
}

fn response(nonce: &str, resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: ADDRESS_TYPE_URL.to_owned(),
        system_version_info: format!("v-{nonce}"),
        nonce: nonce.to_owned(),
        resources,
        removed_resources: removed.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

fn policies(nonce: &str, resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: POLICY_TYPE_URL.to_owned(),
        ..response(nonce, resources, removed)
    }
}

fn more(response: DeltaDiscoveryResponse) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        more: true,
        ..response
    }
}

fn model(state: &mut XdsState, mesh: &mut Mesh, response: DeltaDiscoveryResponse) -> Applied {
    let applied = state.apply(response);
    for change in applied.commit.iter().flat_map(|c| &c.changes).cloned() {
        change.apply(mesh);
    }
    applied
}

/// A state on a stream that both types have answered on.
fn begun() -> (XdsState, Mesh) {
    let (mut state, mut mesh) = (empty(), Mesh::default());
    let cart = vec![workload(CART, "1", [10, 0, 0, 2])];
    model(&mut state, &mut mesh, response("n0", cart, &[]));
    let allow = vec![authorization("1", "shop/allow", |_| {})];
    let applied = model(&mut state, &mut mesh, policies("n1", allow, &[]));
    assert!(applied.commit.is_some() && applied.faults.is_empty());
    (state, mesh)
}

fn keys(mesh: &Mesh) -> Vec<&str> {
    mesh.authorizations().map(|policy| &*policy.key).collect()
}

#[test]
fn both_types_are_subscribed_with_the_versions_held() {
    let (mut state, mesh) = begun();
    assert!(mesh.workload(CART).is_some());
    assert_eq!(keys(&mesh), ["shop/allow"]);
    let [addresses, policies] = state.subscribe("node-a").try_into().unwrap();
    for (request, url, name) in [
        (addresses, ADDRESS_TYPE_URL, CART),
        (policies, POLICY_TYPE_URL, ALLOW),
    ] {
        assert_eq!(request.type_url, url);
        assert_eq!(request.resource_names_subscribe, [OWN_NAME]);
        let held: Vec<_> = request.initial_resource_versions.into_iter().collect();
        assert_eq!(held, [(name.to_owned(), "1".to_owned())]);
    }
}

#[test]
fn nothing_takes_effect_before_both_types_have_answered() {
    let mut state = empty();
    let cart = vec![workload(CART, "1", [10, 0, 0, 2])];
    let applied = state.apply(response("n0", cart, &[]));
    assert_eq!(applied.request.response_nonce, "n0");
    assert_eq!((applied.request.error_detail, applied.commit), (None, None));
    assert!(state.snapshot().resources.is_empty());
    let commit = state.apply(policies("n1", Vec::new(), &[])).commit.unwrap();
    assert_eq!((commit.version.as_str(), commit.changes.len()), ("v-n1", 1));
    // On the next stream it is the same: a change that came meanwhile may span both.
    state.subscribe("a");
    assert_eq!(state.apply(policies("n0", Vec::new(), &[])).commit, None);
    assert!(
        state
            .apply(response("n1", Vec::new(), &[]))
            .commit
            .is_some()
    );
}

#[test]
fn responses_of_one_change_take_effect_with_the_last_of_them() {
    let (mut state, mut mesh) = begun();
    let pay = "Kubernetes//v1/Pod/shop/pay";
    let first = response("n2", vec![workload(pay, "1", [10, 0, 0, 3])], &[]);
    let second = policies("n3", vec![authorization("1", "shop/pay", |_| {})], &[]);
    let applied = model(&mut state, &mut mesh, more(first));
    assert_eq!(
        (applied.request.response_nonce.as_str(), applied.commit),
        ("n2", None)
    );
    let applied = model(&mut state, &mut mesh, more(second));
    assert_eq!(
        (applied.request.type_url.as_str(), applied.commit),
        (POLICY_TYPE_URL, None)
    );
    assert!(mesh.workload(pay).is_none() && keys(&mesh) == ["shop/allow"]);
    let applied = model(&mut state, &mut mesh, policies("n4", Vec::new(), &[ALLOW]));
    assert_eq!(applied.commit.unwrap().version, "v-n4");
    assert!(mesh.workload(pay).is_some());
    assert_eq!(keys(&mesh), ["shop/pay"]);
}

#[test]
fn half_a_change_is_forgotten_with_its_stream_and_kept_nowhere() {
    let (mut state, _) = begun();
    let before = state.snapshot();
    let half = response("n2", vec![workload(CART, "2", [10, 0, 0, 9])], &[]);
    state.apply(more(half));
    assert_eq!(state.snapshot(), before);
    // Control is told of what is in effect, so it sends the rest again.
    let requests = state.subscribe("a");
    assert_eq!(requests[0].initial_resource_versions[CART], "1");
    state.apply(response("n0", Vec::new(), &[]));
    let commit = state.apply(policies("n1", Vec::new(), &[])).commit.unwrap();
    assert!(commit.changes.is_empty());
}

#[test]
fn what_is_malformed_is_refused_with_why_and_harms_nothing_else() {
    let (mut state, mut mesh) = begun();
    let mut broken = workload(CART, "2", [10, 0, 0, 3]);
    broken.resource.as_mut().unwrap().value = vec![0xff];
    let other = "Kubernetes//v1/Pod/shop/pay";
    let misnamed = Resource {
        name: "Kubernetes//v1/Pod/shop/else".to_owned(),
        ..workload(other, "1", [10, 0, 0, 9])
    };
    let good = workload(other, "1", [10, 0, 0, 4]);
    let resources = vec![broken, misnamed, good];
    let applied = model(&mut state, &mut mesh, response("n2", resources, &[]));
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
    let held = &state.subscribe("a")[0].initial_resource_versions;
    assert_eq!(held[CART], "1");
}

#[test]
fn an_unknown_type_is_refused_as_a_whole() {
    let (mut state, mut mesh) = begun();
    let mut strange = response("n2", vec![workload("u", "1", [10, 0, 0, 3])], &[]);
    strange.type_url = "type.googleapis.com/envoy.Unknown".to_owned();
    let applied = model(&mut state, &mut mesh, strange);
    let nack = applied.request.error_detail.unwrap();
    assert!(nack.message.contains("envoy.Unknown"));
    assert_eq!(mesh.workloads().count(), 1);
    let misplaced = authorization("1", "shop/deny", |_| {});
    let applied = model(&mut state, &mut mesh, response("n3", vec![misplaced], &[]));
    assert!(applied.faults[0].contains(POLICY_TYPE_URL), "{applied:?}");
}

#[test]
fn an_address_that_moves_ends_up_with_its_new_owner() {
    let (mut state, mut mesh) = begun();
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
fn a_policy_whose_new_version_cannot_be_read_stays_as_it_was() {
    let (mut state, mut mesh) = begun();
    let before = mesh.authorizations().next().unwrap().clone();
    let newer = authorization("2", "shop/allow", |policy| policy.action = 9);
    let applied = model(&mut state, &mut mesh, policies("n2", vec![newer], &[]));
    assert!(
        applied
            .request
            .error_detail
            .unwrap()
            .message
            .contains(ALLOW)
    );
    assert_eq!(*mesh.authorizations().next().unwrap(), before);
    assert_eq!(state.unreadable(), [ALLOW]);
    assert_eq!(
        state.subscribe("a")[1].initial_resource_versions[ALLOW],
        "1"
    );
    // One that can be read settles it.
    state.apply(response("n0", Vec::new(), &[]));
    let good = authorization("3", "shop/allow", |_| {});
    model(&mut state, &mut mesh, policies("n1", vec![good], &[]));
    assert!(state.unreadable().is_empty());
}

#[test]
fn a_denial_that_cannot_be_read_denies_all_that_it_could_until_it_can_be() {
    let (mut state, mut mesh) = begun();
    let unread = |version: &str| {
        authorization(version, "shop/deny", |policy| {
            policy.action = policy::Action::Deny.into();
            policy.rules[0].ports = vec![policy::PortTerm {
                port: 1,
                protocol: 9,
            }];
        })
    };
    let applied = model(
        &mut state,
        &mut mesh,
        policies("n2", vec![unread("1")], &[]),
    );
    assert_eq!(applied.faults.len(), 1);
    let stand_in = mesh
        .authorizations()
        .find(|p| p.action == Action::Deny)
        .unwrap();
    assert_eq!(&*stand_in.key, "shop/deny#unreadable-inbound");
    assert_eq!(
        (&stand_in.target, stand_in.direction),
        (&Target::Namespace, Direction::Inbound)
    );
    assert!(stand_in.rules[0].peers.is_empty() && stand_in.rules[0].ports.is_empty());
    assert_eq!(mesh.authorizations().count(), 2);
    // Over a restart too, and control is asked for it again.
    let domain = "cluster.local".parse().unwrap();
    let (mut restored, commit, faults) = XdsState::restore(domain, state.snapshot()).unwrap();
    assert_eq!((commit.changes.len() >= 3, faults.len()), (true, 1));
    // Named without a version: control tells of it whatever has become of it, its end too.
    let held = &restored.subscribe("a")[1].initial_resource_versions;
    assert_eq!(held["authorization/shop/deny"], "");
    assert_eq!(held.len(), 2);
    let good = authorization("2", "shop/deny", |_| {});
    model(&mut state, &mut mesh, policies("n3", vec![good], &[]));
    assert_eq!(keys(&mesh), ["shop/allow", "shop/deny"]);
    // Removed without ever having been read.
    let never = "authorization/shop/never";
    let mut unreadable = unread("1");
    never.clone_into(&mut unreadable.name);
    model(&mut state, &mut mesh, policies("n4", vec![unreadable], &[]));
    assert_eq!(mesh.authorizations().count(), 3);
    model(&mut state, &mut mesh, policies("n5", Vec::new(), &[never]));
    assert_eq!(keys(&mesh), ["shop/allow", "shop/deny"]);
    assert!(state.unreadable().is_empty());
}

#[test]
fn what_stands_in_is_as_wide_as_what_cannot_be_read() {
    let (mut state, mut mesh) = begun();
    let unknown_target = authorization("1", "nodemesh-system/target", |policy| {
        (policy.target, policy.action, policy.direction) = (None, 2, 9);
    });
    let allow = authorization("1", "shop/other", |policy| policy.target = None);
    let scope = resource(
        "authentication/shop/scope",
        "1",
        POLICY_TYPE_URL,
        vec![0xff],
    );
    let resources = vec![unknown_target, allow, scope];
    let applied = model(&mut state, &mut mesh, policies("n2", resources, &[]));
    assert_eq!((applied.faults.len(), state.unreadable().len()), (3, 3));
    let denials: Vec<_> = mesh
        .authorizations()
        .filter(|p| p.action == Action::Deny)
        .collect();
    assert!(denials.iter().all(|p| p.target == Target::Mesh));
    let directions: Vec<Direction> = denials.iter().map(|p| p.direction).collect();
    assert_eq!(directions, [Direction::Inbound, Direction::Outbound]);
    // An ALLOW that can't be read allows nothing: nothing has to stand in for it.
    assert_eq!(mesh.authorizations().count(), 3);
    let scope = mesh.authentications().next().unwrap();
    assert_eq!(
        scope.mode,
        Some(mesh_core::policy::AuthenticationMode::Strict)
    );
}

#[test]
fn what_stands_in_for_a_policy_stays_whatever_becomes_of_another_of_its_key() {
    let name = |kind: &str| format!("{kind}/shop/same");
    let unread = |kind| resource(&name(kind), "1", POLICY_TYPE_URL, vec![0xff]);
    let [authorization, authentication, unknown] = ["authorization", "authentication", "later"];
    for kinds in [
        [authorization, authentication, unknown],
        [unknown, authentication, authorization],
    ] {
        let (mut state, mut mesh) = begun();
        let resources = kinds.map(unread).into();
        model(&mut state, &mut mesh, policies("n2", resources, &[]));
        let standing = |mesh: &Mesh| {
            (
                mesh.authorizations().count(),
                mesh.authentications().count(),
            )
        };
        assert_eq!(standing(&mesh), (3, 1), "{kinds:?}");
        let gone = [name(authentication), name(unknown)];
        let gone = gone.each_ref().map(String::as_str);
        model(&mut state, &mut mesh, policies("n3", Vec::new(), &gone));
        assert_eq!(standing(&mesh), (3, 0), "{kinds:?}");
    }
}

#[test]
fn a_snapshot_restores_both_types_and_the_version() {
    let (mut state, mesh) = begun();
    let domain = || "cluster.local".parse().unwrap();
    let (mut restored, commit, faults) = XdsState::restore(domain(), state.snapshot()).unwrap();
    assert!(faults.is_empty());
    assert_eq!(commit.version, "v-n1");
    let mut copy = Mesh::default();
    for change in commit.changes {
        change.apply(&mut copy);
    }
    assert_eq!(restored.subscribe("a"), state.subscribe("a"));
    assert_eq!(copy.workload(CART), mesh.workload(CART));
    assert!(copy.authorizations().eq(mesh.authorizations()));
    // What has no policies in it is not taken for a mesh that has none.
    let old = response("", vec![workload(CART, "1", [10, 0, 0, 2])], &[]);
    assert!(XdsState::restore(domain(), old).is_err());
}

fn ip(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

fn with_alias(resource: Resource, last: u8) -> Resource {
    Resource {
        aliases: vec![name_of(&ip(last))],
        ..resource
    }
}

#[test]
fn an_address_is_answered_with_the_change_that_speaks_of_it() {
    let (mut state, _) = begun();
    let request = state.ask(&[ip(2), ip(3), ip(4)], &[]).unwrap();
    assert_eq!(request.type_url, ADDRESS_TYPE_URL);
    let names = ["/10.0.0.2", "/10.0.0.3", "/10.0.0.4"];
    assert_eq!(request.resource_names_subscribe, names);
    assert_eq!(state.ask(&[ip(2)], &[]), None);
    // A change that has nothing to do with them says nothing of them.
    let commit = state.apply(response("n2", Vec::new(), &["u"])).commit;
    assert!(commit.unwrap().answered.is_empty());
    let cart = with_alias(workload(CART, "1", [10, 0, 0, 2]), 2);
    let half = more(response("n3", vec![cart], &["/10.0.0.3"]));
    assert_eq!(state.apply(half).commit, None);
    assert!(state.snapshot().removed_resources.is_empty());
    let commit = state.apply(response("n4", Vec::new(), &[])).commit.unwrap();
    assert_eq!(commit.answered, [ip(2), ip(3)]);
    assert_eq!(state.snapshot().removed_resources, names[..2]);
    // Told again, and of one that was not asked about.
    let again = response("n5", Vec::new(), &["/10.0.0.3", "/10.0.0.9"]);
    assert!(state.apply(again).commit.unwrap().answered.is_empty());
}

#[test]
fn what_is_asked_no_more_is_forgotten_and_may_be_asked_again() {
    let (mut state, _) = begun();
    state.ask(&[ip(3)], &[]);
    state.apply(response("n2", Vec::new(), &["/10.0.0.3"]));
    let request = state.ask(&[], &[ip(3), ip(9)]).unwrap();
    assert_eq!(request.resource_names_unsubscribe, ["/10.0.0.3"]);
    assert!(request.resource_names_subscribe.is_empty());
    assert!(state.snapshot().removed_resources.is_empty());
    assert!(state.ask(&[ip(3)], &[]).is_some());
    let answer = response("n3", Vec::new(), &["/10.0.0.3"]);
    assert_eq!(state.apply(answer).commit.unwrap().answered, [ip(3)]);
}

#[test]
fn the_first_answer_of_a_stream_is_to_all_that_was_asked_before() {
    let (mut state, _) = begun();
    state.ask(&[ip(2), ip(3)], &[]);
    state.apply(response("n2", Vec::new(), &["/10.0.0.3"]));
    let names = [OWN_NAME, "/10.0.0.2", "/10.0.0.3"];
    assert_eq!(state.subscribe("a")[0].resource_names_subscribe, names);
    // What is held is not sent again, so nothing is said of it by name.
    assert_eq!(state.apply(response("n0", Vec::new(), &[])).commit, None);
    let commit = state.apply(policies("n1", Vec::new(), &[])).commit.unwrap();
    assert_eq!(commit.answered, [ip(2)]);
}

#[test]
fn what_control_has_said_of_addresses_outlives_a_restart() {
    let (mut state, _) = begun();
    state.ask(&[ip(3), ip(4)], &[]);
    state.apply(response("n2", Vec::new(), &["/10.0.0.3"]));
    let domain = "cluster.local".parse().unwrap();
    let (mut restored, commit, _) = XdsState::restore(domain, state.snapshot()).unwrap();
    assert_eq!(commit.answered, [ip(3)]);
    assert_eq!(restored.snapshot(), state.snapshot());
    let names = [OWN_NAME, "/10.0.0.3"];
    assert_eq!(restored.subscribe("a")[0].resource_names_subscribe, names);
}
