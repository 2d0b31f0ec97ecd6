//! Which pods are to be enrolled: those added here that control says are this node's and in
//! the mesh. Decisions only.

use mesh_core::model::Mesh;

use super::pods::{Goal, Origin, PodKey};
use super::report::PodState;

/// What control says of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Desire {
    /// Discovery is not known yet: whatever is, stays.
    Undecided,
    /// Control knows no such pod (yet).
    Unknown,
    /// The pod is bound to another node.
    Elsewhere(String),
    /// Control knows another pod of that name: an earlier one, or a later one.
    Namesake(String),
    /// Its namespace is not enrolled.
    NotInMesh,
    /// Control has no address of it (yet).
    NoAddress,
    /// It is to be enrolled.
    Enrol(Goal),
}

/// What to do about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// All is as it should be.
    Keep,
    /// Enrol it.
    Start(Goal),
    /// Take it out; if it is to be enrolled in another way, that follows.
    Stop,
}

/// What control says of a pod; `mesh` is `None` while discovery is unknown.
pub(super) fn desire(
    mesh: Option<&Mesh>,
    node: &str,
    cluster: &str,
    key: &PodKey,
    origin: &Origin,
) -> Desire {
    let Some(mesh) = mesh else {
        return Desire::Undecided;
    };
    let Some(workload) = mesh.workload(&key.workload_uid(cluster)) else {
        return Desire::Unknown;
    };
    let (known, here) = (&workload.pod_uid, &origin.pod_uid);
    if !known.is_empty() && !here.is_empty() && known != here {
        return Desire::Namesake(known.clone());
    }
    if workload.node != node {
        return Desire::Elsewhere(workload.node.clone());
    }
    if !workload.enrolled() {
        return Desire::NotInMesh;
    }
    let mut goal = Goal::from(&**workload);
    if !origin.given.is_empty() {
        // Kubelet tells the API none before the pod's first container runs; and where a pod gets a
        // new sandbox, as after a boot, until then those of the sandbox before.
        goal.addresses.clone_from(&origin.given);
    }
    match goal.addresses.is_empty() {
        true => Desire::NoAddress,
        false => Desire::Enrol(goal),
    }
}

/// What follows from that for a pod that is (being) enrolled for `current`, or not at all.
pub(super) fn step(current: Option<&Goal>, desire: &Desire) -> Step {
    match (current, desire) {
        (None, Desire::Enrol(goal)) => Step::Start(goal.clone()),
        (Some(current), Desire::Enrol(goal)) if current.is(goal) => Step::Keep,
        // A pod without an address is one that control is still learning of; one that has given
        // its name to another is about to end, and stays as it is until then.
        (_, Desire::Undecided) | (None, _) | (Some(_), Desire::NoAddress | Desire::Namesake(_)) => {
            Step::Keep
        }
        (Some(_), _) => Step::Stop,
    }
}

/// How a pod that is not being enrolled is reported.
pub(super) fn standing(desire: &Desire, node: &str) -> (PodState, String) {
    match desire {
        Desire::Undecided => (
            PodState::Waiting,
            "control was not reached yet, and no earlier discovery is kept".to_owned(),
        ),
        Desire::Unknown => (
            PodState::Waiting,
            "control knows no such pod (yet)".to_owned(),
        ),
        Desire::Elsewhere(other) => (
            PodState::Refused,
            format!("control says that it is bound to node {other:?}; this is {node:?}"),
        ),
        Desire::Namesake(uid) => (
            PodState::Waiting,
            format!("control knows another pod of that name, with UID {uid} (yet)"),
        ),
        Desire::NotInMesh => (
            PodState::NotInMesh,
            "its namespace is not enrolled (label nodemesh.dev/enroll)".to_owned(),
        ),
        Desire::NoAddress => (
            PodState::Waiting,
            "control knows no address of it (yet)".to_owned(),
        ),
        Desire::Enrol(_) => (PodState::Starting, "about to start".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_core::identity::Identity;
    use mesh_core::model::{Enrolment, Workload};
    use std::net::IpAddr;

    fn key() -> PodKey {
        PodKey::new("shop", "cart").unwrap()
    }

    fn mesh(change: impl FnOnce(&mut Workload)) -> Mesh {
        let identity = Identity::new("cluster.local".parse().unwrap(), "shop", "cart").unwrap();
        let mut workload = Workload {
            node: "a".to_owned(),
            addresses: vec!["10.0.0.2".parse().unwrap()],
            enrolment: Enrolment::Enforce,
            ..Workload::new("Kubernetes//v1/Pod/shop/cart", "cart", identity)
        };
        change(&mut workload);
        let mut mesh = Mesh::default();
        mesh.insert_workload(workload);
        mesh
    }

    fn desired(change: impl FnOnce(&mut Workload)) -> Desire {
        desire(
            Some(&mesh(change)),
            "a",
            "Kubernetes",
            &key(),
            &Origin::default(),
        )
    }

    fn goal() -> Goal {
        match desired(|_| {}) {
            Desire::Enrol(goal) => goal,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_this_nodes_pods_of_enrolled_namespaces_are_enrolled() {
        assert_eq!(step(None, &desired(|_| {})), Step::Start(goal()));
        assert_eq!(step(Some(&goal()), &desired(|_| {})), Step::Keep);
        for leaving in [
            desired(|w| w.enrolment = Enrolment::None),
            desired(|w| w.node = "b".to_owned()),
            desire(
                Some(&Mesh::default()),
                "a",
                "Kubernetes",
                &key(),
                &Origin::default(),
            ),
        ] {
            assert_eq!(step(None, &leaving), Step::Keep, "{leaving:?}");
            assert_eq!(step(Some(&goal()), &leaving), Step::Stop, "{leaving:?}");
        }
    }

    #[test]
    fn while_control_is_silent_everything_stays() {
        let silent = desire(None, "a", "Kubernetes", &key(), &Origin::default());
        assert_eq!(step(Some(&goal()), &silent), Step::Keep);
        assert_eq!(step(None, &silent), Step::Keep);
        assert_eq!(
            step(Some(&goal()), &desired(|w| w.addresses.clear())),
            Step::Keep
        );
    }

    #[test]
    fn the_networks_addresses_count_whatever_control_remembers() {
        let given = |addresses: &[&str], change: fn(&mut Workload)| {
            let origin = Origin {
                given: addresses.iter().map(|a| a.parse().unwrap()).collect(),
                ..Origin::default()
            };
            desire(Some(&mesh(change)), "a", "Kubernetes", &key(), &origin)
        };
        let nothing: fn(&mut Workload) = |w| w.addresses.clear();
        assert_eq!(given(&[], nothing), Desire::NoAddress);
        let Desire::Enrol(goal) = given(&["10.0.0.9", "fd00::9"], nothing) else {
            panic!("it has addresses");
        };
        assert_eq!(goal.addresses.len(), 2);
        // Kubelet has the same, in another order; or still those of the sandbox before.
        let same = given(&[], |w| {
            w.addresses = ["fd00::9", "10.0.0.9"]
                .map(|a| a.parse::<IpAddr>().unwrap())
                .into();
        });
        assert_eq!(step(Some(&goal), &same), Step::Keep);
        let remembered = given(&["fd00::9", "10.0.0.9"], |_| {});
        assert_eq!(step(Some(&goal), &remembered), Step::Keep);
    }

    #[test]
    fn a_namesake_is_not_taken_for_the_pod() {
        let with = |here: &str| {
            let origin = Origin {
                pod_uid: here.to_owned(),
                ..Origin::default()
            };
            let mesh = mesh(|w| w.pod_uid = "new".to_owned());
            desire(Some(&mesh), "a", "Kubernetes", &key(), &origin)
        };
        assert_eq!(with("old"), Desire::Namesake("new".to_owned()));
        assert_eq!(step(None, &with("old")), Step::Keep);
        assert_eq!(step(Some(&goal()), &with("old")), Step::Keep);
        for known in ["new", ""] {
            assert!(matches!(with(known), Desire::Enrol(_)), "{known:?}");
        }
    }

    #[test]
    fn another_level_is_the_same_enrolment() {
        for level in [Enrolment::Audit, Enrolment::Enforce] {
            let desire = desired(|w| w.enrolment = level);
            assert_eq!(step(Some(&goal()), &desire), Step::Keep, "{level:?}");
        }
    }

    #[test]
    fn another_identity_or_address_is_another_enrolment() {
        for changed in [
            desired(|w| w.addresses.push("10.0.0.3".parse().unwrap())),
            desired(|w| {
                w.identity =
                    Identity::new("cluster.local".parse().unwrap(), "shop", "pay").unwrap();
            }),
        ] {
            assert_eq!(step(Some(&goal()), &changed), Step::Stop);
        }
    }
}
