//! Policy as it changes: what is open and no longer allowed is cut, what is still allowed
//! goes on, and a mistake changes nothing.

use std::thread;
use std::time::{Duration, Instant};

use mesh_lab::call::Open;
use mesh_lab::{Lab, Plan, PodSpec, ServiceSpec, manifest, wait};

use super::expect::{self, At, Caller, Checks, Refused, both, refused, serve};

/// A flow that a change refuses is cut this soon after control took the change.
const CUT_WITHIN: Duration = Duration::from_secs(1);

const NO_RULE_OUT: Refused<'_> = Refused {
    at: At::Source,
    reason: "policy_no_rule",
    policy: "",
};
const NO_RULE_IN: Refused<'_> = Refused {
    at: At::Destination,
    ..NO_RULE_OUT
};

fn allow(direction: &str, rules: &str) -> String {
    let key = format!("shop/{}", direction.to_lowercase());
    let spec = format!("{{direction: {direction}, action: Allow, rules: [{rules}]}}");
    manifest::authorization(&key, &spec)
}

fn plan() -> Plan {
    Plan::nodes(2)
        .enrolled("shop")
        .without_default_policy()
        .pod(PodSpec::new("shop", "client"))
        .pod(PodSpec::new("shop", "gold").label("tier", "gold"))
        .pod(PodSpec::new("shop", "web").node(1))
        .service(ServiceSpec::new("shop", "web").port(80, "7000"))
}

fn wait_served(lab: &Lab, from: &str, served: bool) {
    let to = both(lab.pod("shop/web"), 7000);
    expect::wait_served(lab, Caller::Member(lab.pod(from)), &to, served);
}

#[test]
fn without_any_policy_nothing_passes_and_what_is_missing_is_named() {
    let lab = Lab::with_mesh(plan()).unwrap();
    let web = lab.pod("shop/web");
    let _server = serve(web, &[7000]);
    let client = Caller::Member(lab.pod("shop/client"));
    let mut checks = Checks::default();
    for to in both(web, 7000) {
        checks.add("nothing allowed", refused(&lab, client, to, &NO_RULE_OUT));
    }
    lab.write_manifest("out", &allow("Outbound", "{}")).unwrap();
    let decided = wait::until_true("the destination to decide", wait::PATIENCE, || {
        wait_served(&lab, "shop/client", false);
        Ok(lab.agent(1).refused(lab.node(1), web, "policy_no_rule")? > 0)
    });
    decided.unwrap_or_else(|error| panic!("{error:#}\n{}", lab.log_tails()));
    for to in both(web, 7000) {
        checks.add("outbound allowed", refused(&lab, client, to, &NO_RULE_IN));
    }
    // What `why` says is missing is all that is missing.
    let why = lab
        .control()
        .why("shop/client", &both(web, 7000)[0].to_string())
        .unwrap();
    let (_, missing) = why.split_once("this would allow it:\n").unwrap();
    lab.write_manifest("missing", missing).unwrap();
    wait_served(&lab, "shop/client", true);
    checks.assert(&lab);
}

/// What a flow saw of a change: how long after the file was renamed into place, and after
/// control had taken it.
fn timed_cut(lab: &Lab, what: &str, mut open: Open, change: impl FnOnce()) {
    let log = lab.control().daemon.log();
    let taken = || {
        let text = std::fs::read_to_string(log).unwrap();
        text.matches("manifests taken").count()
    };
    let before = taken();
    let cut = thread::spawn(move || open.wait_reset());
    change();
    let changed = Instant::now();
    wait::until_true("control to take the change", wait::PATIENCE, || {
        Ok(taken() > before)
    })
    .unwrap();
    let taken = Instant::now();
    let cut = cut.join().unwrap();
    let cut = cut.unwrap_or_else(|error| panic!("{what}: {error:#}\n{}", lab.log_tails()));
    let after_taken = cut.saturating_duration_since(taken);
    println!(
        "{what}: cut {:?} after the change, {after_taken:?} after control took it",
        cut - changed
    );
    assert!(after_taken < CUT_WITHIN, "{what}: {after_taken:?}");
}

#[test]
fn open_connections_follow_policy_within_a_second() {
    let plan = plan()
        .manifest("out", &allow("Outbound", "{}"))
        .manifest("in", &allow("Inbound", "{}"));
    let lab = Lab::with_mesh(plan).unwrap();
    let _server = serve(lab.pod("shop/web"), &[7000]);
    let to = both(lab.pod("shop/web"), 7000);
    let open = |lab: &Lab, key: &str, index: usize| {
        let called = Open::dial(&lab.pod(key).netns, to[index]);
        called.unwrap_or_else(|called| panic!("{key}: {called}\n{}", lab.log_tails()))
    };
    let only_gold = allow("Inbound", "{peers: [{labels: {tier: gold}}]}");

    // Inbound: what is allowed by another rule now goes on.
    let (cut, mut kept) = (open(&lab, "shop/client", 0), open(&lab, "shop/gold", 1));
    let mark = lab.agent(1).mark();
    timed_cut(&lab, "inbound rule gone", cut, || {
        lab.write_manifest("in", &only_gold).unwrap();
    });
    kept.ping().unwrap();
    let fields = [
        ("reason", "policy_no_rule"),
        ("outcome", "cut"),
        ("direction", "inbound"),
    ];
    lab.agent(1)
        .wait_refusal(mark, lab.pod("shop/web"), &fields)
        .unwrap();
    wait_served(&lab, "shop/client", false);

    // What the peer is, no longer holds.
    let mark = lab.agent(1).mark();
    let gold = lab.pod("shop/gold");
    timed_cut(&lab, "peer's label gone", kept, || {
        lab.relabel_pod(gold, &[("tier", "lead")]).unwrap();
    });
    lab.agent(1)
        .wait_refusal(mark, lab.pod("shop/web"), &fields)
        .unwrap();

    // Allowed again; a denial at the source.
    lab.write_manifest("in", &allow("Inbound", "{}")).unwrap();
    wait_served(&lab, "shop/client", true);
    wait_served(&lab, "shop/gold", true);
    let (cut, mut kept) = (open(&lab, "shop/client", 1), open(&lab, "shop/gold", 0));
    let deny = "{target: {labels: {app: client}}, direction: Outbound, action: Deny, \
                rules: [{ports: [7000]}]}";
    let mark = lab.agent(0).mark();
    timed_cut(&lab, "outbound denial", cut, || {
        lab.write_manifest("deny", &manifest::authorization("shop/deny", deny))
            .unwrap();
    });
    kept.ping().unwrap();
    let fields = [
        ("reason", "policy_denied"),
        ("outcome", "cut"),
        ("policy", "shop/deny"),
    ];
    lab.agent(0)
        .wait_refusal(mark, lab.pod("shop/client"), &fields)
        .unwrap();

    // A change that has nothing to do with it.
    lab.remove_manifest("deny").unwrap();
    wait_served(&lab, "shop/client", true);
    kept.ping().unwrap();
}

#[test]
fn a_mistake_keeps_the_last_good_state_and_says_where() {
    let plan = plan()
        .manifest("out", &allow("Outbound", "{}"))
        .manifest("in", &allow("Inbound", "{}"));
    let lab = Lab::with_mesh(plan).unwrap();
    let _server = serve(lab.pod("shop/web"), &[7000]);
    let mut open = Open::dial(
        &lab.pod("shop/client").netns,
        both(lab.pod("shop/web"), 7000)[0],
    )
    .unwrap();
    let bad = allow("Inbound", "{peers: [{cidr: 10.0.0.0/33}]}");
    lab.write_manifest("in", &bad).unwrap();
    let line = lab.control().daemon.wait_log("in.yaml:").unwrap();
    println!("{line}");
    assert!(
        line.contains("spec.rules[0].peers[0].cidr"),
        "the field is named: {line}"
    );
    open.ping().unwrap();
    wait_served(&lab, "shop/client", true);
    // What comes with a mistake, even in another file, isn't taken either.
    lab.write_manifest("out", &allow("Outbound", "{ports: [7001]}"))
        .unwrap();
    let mistakes = || {
        let log = std::fs::read_to_string(lab.control().daemon.log()).unwrap();
        log.matches("in.yaml:").count()
    };
    wait::until_true("the folder to be read again", wait::PATIENCE, || {
        Ok(mistakes() > 1)
    })
    .unwrap();
    wait_served(&lab, "shop/client", true);
    open.ping().unwrap();
    // Mended: now both.
    lab.write_manifest("in", &allow("Inbound", "{}")).unwrap();
    wait_served(&lab, "shop/client", false);
    open.wait_reset().unwrap();
}
