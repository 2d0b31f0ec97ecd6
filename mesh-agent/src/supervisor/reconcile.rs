//! Which pods are to be enrolled: those added here that control says are this node's and in
//! the mesh. Decisions only.

use mesh_core::model::Mesh;

use super::pods::{Goal, PodKey};
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
pub(super) fn desire(mesh: Option<&Mesh>, node: &str, cluster: &str, key: &PodKey) -> Desire {
    let Some(mesh) = mesh else {
        return Desire::Undecided;
    };
    match mesh.workload(&key.workload_uid(cluster)) {
        None => Desire::Unknown,
        Some(workload) if workload.node != node => Desire::Elsewhere(workload.node.clone()),
        Some(workload) if !workload.enrolled() => Desire::NotInMesh,
        Some(workload) if workload.addresses.is_empty() => Desire::NoAddress,
        Some(workload) => Desire::Enrol(Goal::from(&**workload)),
    }
}

/// What follows from that for a pod that is (being) enrolled for `current`, or not at all.
pub(super) fn step(current: Option<&Goal>, desire: &Desire) -> Step {
    match (current, desire) {
        (None, Desire::Enrol(goal)) => Step::Start(goal.clone()),
        (Some(current), Desire::Enrol(goal)) if current == goal => Step::Keep,
        // A pod without an address is one that control is still learning of.
        (_, Desire::Undecided) | (None, _) | (Some(_), Desire::NoAddress) => Step::Keep,
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
        desire(Some(&mesh(change)), "a", "Kubernetes", &key())
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
            desire(Some(&Mesh::default()), "a", "Kubernetes", &key()),
        ] {
            assert_eq!(step(None, &leaving), Step::Keep, "{leaving:?}");
            assert_eq!(step(Some(&goal()), &leaving), Step::Stop, "{leaving:?}");
        }
    }

    #[test]
    fn while_control_is_silent_everything_stays() {
        let silent = desire(None, "a", "Kubernetes", &key());
        assert_eq!(step(Some(&goal()), &silent), Step::Keep);
        assert_eq!(step(None, &silent), Step::Keep);
        assert_eq!(
            step(Some(&goal()), &desired(|w| w.addresses.clear())),
            Step::Keep
        );
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
