//! Which budget a workload's worker gets.

use mesh_core::budget::{Budget, FIELDS, Fields, WorkerBudget, resolve};
use mesh_core::identity::Identity;
use mesh_core::model::Workload;
use mesh_core::policy::Target;

fn workload(namespace: &str) -> Workload {
    let identity = Identity::new("cluster.local".parse().unwrap(), namespace, "web").unwrap();
    Workload {
        labels: [("app".to_owned(), "web".to_owned())].into(),
        services: [("shop/web".into(), [(80, 8080)].into())].into(),
        ..Workload::new("u", "web", identity)
    }
}

fn budget(key: &str, target: Target, fields: Fields) -> WorkerBudget {
    let key = key.into();
    WorkerBudget {
        key,
        target,
        fields,
    }
}

fn labels(app: &str) -> Target {
    Target::Labels([("app".to_owned(), app.to_owned())].into())
}

#[test]
fn the_nearest_that_says_a_field_wins_each_field_by_itself() {
    let fields = |weight, connections, tunnels| Fields {
        cpu_weight: weight,
        connections,
        tunnels,
        ..Fields::default()
    };
    let all = [
        budget(
            "nodemesh-system/all",
            Target::Mesh,
            fields(Some(10), Some(11), Some(12)),
        ),
        budget(
            "shop/all",
            Target::Namespace,
            fields(Some(20), Some(21), None),
        ),
        budget("shop/web", labels("web"), fields(Some(30), None, None)),
        // For others.
        budget(
            "shop/db",
            labels("db"),
            fields(Some(40), Some(41), Some(42)),
        ),
        budget("pay/all", Target::Namespace, fields(Some(50), None, None)),
        // Only the mesh's own namespace speaks for the mesh.
        budget("pay/mesh", Target::Mesh, fields(Some(60), None, Some(62))),
    ];
    assert_eq!(
        resolve(&all, &workload("shop")),
        fields(Some(30), Some(21), Some(12))
    );
    assert_eq!(
        resolve(&all, &workload("pay")),
        fields(Some(50), Some(11), Some(12))
    );
    assert_eq!(resolve(&[], &workload("pay")), Fields::default());
}

#[test]
fn of_equally_near_ones_the_lower_holds_and_no_limit_is_the_highest() {
    let fields = |connections, millicores| Fields {
        connections: Some(connections),
        cpu_max_millicores: Some(millicores),
        ..Fields::default()
    };
    let service = Target::Service("shop/web".into());
    let all = [
        budget("shop/a", labels("web"), fields(100, 0)),
        budget("shop/b", service, fields(50, 500)),
    ];
    for order in [[0, 1], [1, 0]] {
        let all = order.map(|n: usize| all[n].clone());
        assert_eq!(resolve(&all, &workload("shop")), fields(50, 500));
    }
}

#[test]
fn what_may_wait_fits_into_the_memory() {
    let resolved = |memory, buffered| {
        let fields = Fields {
            memory_max_mib: memory,
            buffered_mib: buffered,
            ..Fields::default()
        };
        fields.resolve().buffered_mib
    };
    assert_eq!(resolved(None, None), 384);
    assert_eq!(resolved(Some(64), None), 24);
    assert_eq!(resolved(Some(64), Some(40)), 40);
    assert_eq!(resolved(Some(64), Some(64)), 48);
}

#[test]
fn defaults_may_be_said_and_what_may_not_comes_to_the_nearest() {
    for field in FIELDS {
        assert!(field.takes(field.default), "{field:?}");
        assert!(field.takes(field.low) && field.takes(field.high));
        assert_eq!(field.takes(0), field.takes_none(), "{field:?}");
        assert_eq!(field.nearest(u32::MAX), field.high);
    }
    let wrong = Fields {
        cpu_weight: Some(0),
        cpu_max_millicores: Some(0),
        memory_max_mib: Some(1),
        ..Fields::default()
    };
    let Budget {
        cpu_weight,
        cpu_max_millicores,
        memory_max_mib,
        ..
    } = wrong.in_range().resolve();
    assert_eq!((cpu_weight, cpu_max_millicores, memory_max_mib), (1, 0, 64));
}
