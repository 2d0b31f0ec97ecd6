//! The two ways in which tc programs stand at a device, for the walls and for others' programs.

use std::path::PathBuf;
use std::process::Command;

use mesh_lab::foreign::{self, AttachType, Link, Program, Target};

use crate::lab::Lab;

/// How tc programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By links, since Linux 6.6.
    Tcx,
    /// As filters of a clsact qdisc.
    Clsact,
}

/// A direction of the device on the node's side of the pod's veth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Ingress,
    Egress,
}

pub(crate) const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// Somebody else's program at a device; it stays until the device or this goes.
#[derive(Debug)]
pub(crate) struct Foreign {
    pub(crate) id: u32,
    _link: Option<Link>,
    pin: Option<PathBuf>,
}

impl Drop for Foreign {
    fn drop(&mut self) {
        if let Some(pin) = &self.pin {
            let _ = std::fs::remove_file(pin);
        }
    }
}

impl Direction {
    fn tcx(self) -> AttachType {
        match self {
            Self::Ingress => AttachType::TcxIngress,
            Self::Egress => AttachType::TcxEgress,
        }
    }

    /// Attaches before all others.
    pub(crate) fn attach_tcx(self, lab: &Lab, program: &Program) -> std::io::Result<Link> {
        let target = Target::Ifindex(lab.pod().ifindex);
        lab.in_node(|| program.attach(target, self.tcx(), foreign::BEFORE))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

impl Way {
    /// Those that this kernel has.
    pub(crate) fn all() -> &'static [Self] {
        let has_tcx = foreign::programs_at(Target::Ifindex(1), AttachType::TcxIngress).is_ok();
        if has_tcx {
            &[Self::Tcx, Self::Clsact]
        } else {
            &[Self::Clsact]
        }
    }

    /// A lab whose walls stand in this way; its pod is not enrolled.
    pub(crate) fn lab(self) -> Lab {
        let mut lab = Lab::node();
        if self == Self::Clsact {
            lab.capture().use_clsact();
        }
        lab.add_pod();
        lab
    }

    /// Attaches before all others.
    pub(crate) fn attach(self, lab: &Lab, direction: Direction, program: &Program) -> Foreign {
        let id = program.id().unwrap();
        match self {
            Self::Tcx => {
                let link = direction.attach_tcx(lab, program).unwrap();
                Foreign {
                    id,
                    _link: Some(link),
                    pin: None,
                }
            }
            Self::Clsact => {
                let pin = format!("{}-{}-{id}", lab.prefix, direction.name());
                let pin = lab.options.bpffs.join(pin);
                program.pin(&pin).unwrap();
                // Fails where there is one.
                let _ = try_tc(lab, "qdisc add dev veth0 clsact");
                let way = direction.name();
                tc(
                    lab,
                    &format!(
                        "filter add dev veth0 {way} pref 1 bpf da object-pinned {}",
                        pin.display()
                    ),
                );
                Foreign {
                    id,
                    _link: None,
                    pin: Some(pin),
                }
            }
        }
    }

    /// Ids of the programs there, in the order in which they run.
    pub(crate) fn order(self, lab: &Lab, direction: Direction) -> Vec<u32> {
        match self {
            Self::Tcx => {
                let target = Target::Ifindex(lab.pod().ifindex);
                lab.in_node(|| foreign::programs_at(target, direction.tcx()).unwrap())
            }
            Self::Clsact => {
                let list = tc(
                    lab,
                    &format!("-j filter show dev veth0 {}", direction.name()),
                );
                let list: serde_json::Value = serde_json::from_str(&list).unwrap();
                let ids = list.as_array().unwrap().iter();
                ids.filter_map(|f| f["options"]["prog"]["id"].as_u64())
                    .map(|id| u32::try_from(id).unwrap())
                    .collect()
            }
        }
    }
}

/// Runs `tc` on the node.
pub(crate) fn tc(lab: &Lab, arguments: &str) -> String {
    try_tc(lab, arguments).unwrap_or_else(|e| panic!("tc {arguments}: {e}"))
}

/// Not by `ip netns exec`, which hides the bpf file system. An argument in quotes may have spaces.
fn try_tc(lab: &Lab, arguments: &str) -> Result<String, String> {
    let mut tc = Command::new("tc");
    for (i, part) in arguments.split('\'').enumerate() {
        match i % 2 {
            0 => tc.args(part.split_whitespace()),
            _ => tc.arg(part),
        };
    }
    let output = lab.in_node(|| tc.output()).expect("tc is installed");
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout).unwrap());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}
