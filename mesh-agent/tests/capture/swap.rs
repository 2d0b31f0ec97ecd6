//! Policies are swapped in one step, whoever connects meanwhile and whoever dies.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mesh_agent::capture::{Capture, CaptureError, CaptureOptions, SlotPolicy};
use mesh_common::{MAX_PODS, POLICY_ENTRIES_PER_POD};
use mesh_core::policy::kernel::{KernelClass, KernelPolicy, KernelVerdict};
use socket2::{Domain, Socket, Type};

use crate::lab::{Lab, eventually, in_netns};
use crate::names::{accept, address};
use crate::policy::{DENIED, assert_eperm, denials, deny, dial, dial_from};

#[test]
fn a_policy_that_does_not_fit_leaves_the_one_before_in_force() {
    let mut lab = Lab::new();
    lab.set_policy(0, &denials(), false);
    let mut large = KernelPolicy::default();
    for i in 0..2 {
        let verdicts = (1..=u16::MAX).map(|p| ((KernelClass::TcpOut, p), KernelVerdict::Allow));
        let block = format!("2001:db8:{i}::/48").parse().unwrap();
        large.prefixes.insert(block, verdicts.collect());
    }
    let error = lab.capture().set_policy(0, &large, false).unwrap_err();
    assert!(matches!(error, CaptureError::PolicySize { slot: 0, .. }));
    let text = error.to_string();
    assert!(text.contains(&POLICY_ENTRIES_PER_POD.to_string()), "{text}");
    for to in DENIED {
        assert_eperm(dial(&lab, to), to);
    }
}

#[test]
fn several_pods_policies_are_set_at_once_or_not_at_all() {
    let mut lab = Lab::new();
    lab.add_pod();
    lab.enrol(1);
    let (strict, open) = (deny(&[("::/0", 0)]), KernelPolicy::default());
    let set = |lab: &mut Lab, slots: [(u32, &KernelPolicy); 2]| {
        let audit = false;
        let policies = slots.map(|(slot, policy)| SlotPolicy {
            slot,
            policy,
            audit,
        });
        lab.capture().set_policies(&policies)
    };
    let denied = |lab: &Lab| {
        [0, 1].map(|pod: usize| dial_from(&lab.pods[pod].netns, address(DENIED[0])).is_err())
    };
    set(&mut lab, [(0, &strict), (1, &open)]).unwrap();
    assert_eq!(denied(&lab), [true, false]);
    set(&mut lab, [(0, &open), (1, &strict)]).unwrap();
    assert_eq!(denied(&lab), [false, true]);
    let error = set(&mut lab, [(0, &strict), (MAX_PODS, &open)]).unwrap_err();
    assert!(matches!(error, CaptureError::Slot { .. }), "{error}");
    assert_eq!(denied(&lab), [false, true]);
    lab.capture().set_policies(&[]).unwrap();
}

/// While policies are swapped, every connect is decided by one of them and never by a mixture.
#[test]
fn what_every_version_denies_never_passes_and_what_every_version_allows_never_fails() {
    const SWAPS: u32 = 1000;
    let mut lab = Lab::new();
    // Both deny the first address, by different blocks and ports; neither denies the second,
    // which lies in the block that the other version denies for other ports.
    let versions = [
        deny(&[
            ("::ffff:198.51.100.7/128", 443),
            ("::ffff:203.0.113.0/120", 81),
        ]),
        deny(&[("::ffff:198.51.0.0/112", 0), ("::ffff:203.0.113.9/128", 82)]),
    ];
    lab.set_policy(0, &versions[0], false);
    let (denied, allowed) = (address("198.51.100.7:443"), address("203.0.113.9:80"));
    let netns = lab.pod().netns.clone();
    let worker = lab.pods[0].worker.take().unwrap();
    let (done, dials) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let until_done = |dial: &(dyn Fn() + Sync)| {
            in_netns(&netns, || {
                while !done.load(Ordering::Relaxed) {
                    dial();
                    dials.fetch_add(1, Ordering::Relaxed);
                }
            });
        };
        scope.spawn(move || {
            until_done(&|| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                assert_eperm(socket.connect(&denied.into()), "denied");
            });
        });
        scope.spawn(move || {
            until_done(&|| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                // Closed by a reset, so that no port is held in TIME_WAIT.
                socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
                socket.connect(&allowed.into()).unwrap();
                accept(&worker.outbound_v4);
            });
        });
        let swaps = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for version in (0..SWAPS).map(|i| &versions[i as usize % 2]) {
                lab.set_policy(0, version, false);
            }
        }));
        done.store(true, Ordering::Relaxed);
        swaps.unwrap();
    });
    let dials = dials.into_inner();
    assert!(dials > u64::from(SWAPS), "only {dials} dials");
}

/// Set where the test below is to play the agent that is killed; it says on what.
const SWAPPER: &str = "NODEMESH_TEST_SWAPPER";

/// Two policies that deny one address in common, and two hundred each has alone.
fn large_versions() -> [KernelPolicy; 2] {
    [1, 2].map(|version| {
        let mut policy = deny(&[("::ffff:198.51.100.7/128", 443)]);
        for i in 0..200 {
            let block = format!("::ffff:10.{version}.0.{i}/128").parse().unwrap();
            let verdicts = [((KernelClass::TcpOut, 80), KernelVerdict::Deny)];
            policy.prefixes.insert(block, verdicts.into());
        }
        policy
    })
}

/// What the agent does that is killed: opens the capture and swaps for ever.
fn swap_for_ever(instance: &str) -> ! {
    let (instance, mesh_cgroup) = instance.split_once(' ').unwrap();
    let root = mesh_cgroup.rsplit_once('/').unwrap().0;
    let mut capture = Capture::open(&CaptureOptions {
        instance: instance.into(),
        bpffs: "/sys/fs/bpf".into(),
        cgroup_root: root.into(),
        mesh_cgroup: mesh_cgroup.into(),
    })
    .unwrap();
    loop {
        for version in &large_versions() {
            capture.set_policy(0, version, false).unwrap();
        }
    }
}

#[test]
fn an_agent_killed_while_it_swaps_leaves_one_policy_whole() {
    if let Ok(instance) = std::env::var(SWAPPER) {
        swap_for_ever(&instance);
    }
    let mut lab = Lab::new();
    let denied = |lab: &Lab, to: &str| {
        let result = dial(lab, to).map_err(|e| e.raw_os_error());
        if result.is_ok() {
            accept(&lab.worker().outbound_v4);
        }
        matches!(result, Err(Some(libc::EPERM)))
    };
    for round in 0..5 {
        lab.capture().prepare_pod(0).unwrap();
        let instance = format!("{} {}", lab.prefix, lab.options.mesh_cgroup.display());
        let mut agent = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "swap::an_agent_killed_while_it_swaps_leaves_one_policy_whole",
            ])
            .env(SWAPPER, instance)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Both versions were seen: it is in its loop. A little later each time it is killed.
        for to in ["10.1.0.0:80", "10.2.0.0:80"] {
            eventually("the other agent swaps", || denied(&lab, to).then_some(()));
        }
        for _ in 0..round * 7 {
            assert!(denied(&lab, "198.51.100.7:443"));
        }
        agent.kill().unwrap();
        agent.wait().unwrap();
        let first = denied(&lab, "10.1.0.0:80");
        for i in [0, 1, 77, 128, 199] {
            assert_eq!(denied(&lab, &format!("10.1.0.{i}:80")), first, "{i}");
            assert_ne!(denied(&lab, &format!("10.2.0.{i}:80")), first, "{i}");
        }
        assert!(denied(&lab, "198.51.100.7:443"));
        lab.set_policy(0, &denials(), false);
        assert!(!denied(&lab, "10.1.0.0:80") && !denied(&lab, "10.2.0.0:80"));
        assert_eperm(dial(&lab, DENIED[0]), DENIED[0]);
    }
}
