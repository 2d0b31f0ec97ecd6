//! A universe so small that what policies name and what peers have meet often.

use mesh_core::policy::MESH_NAMESPACE;

pub(crate) const CIDRS: [&str; 14] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/24",
    // With bits beyond its length.
    "10.0.0.7/30",
    "10.0.0.1/32",
    "192.0.2.0/24",
    "::/0",
    "fd00::/8",
    "fd00::/127",
    "fd00::1/128",
    "2001:db8::/32",
    // v4-mapped, and around all that is.
    "::ffff:10.0.0.0/104",
    "::ffff:0:0/96",
    "::ffff:0:0/90",
];

pub(crate) const ADDRESSES: [&str; 8] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.9.9",
    "192.0.2.1",
    "::ffff:10.0.0.1",
    "fd00::1",
    "fd00::2",
    "2001:db8::1",
];

pub(crate) const NAMESPACES: [&str; 3] = ["a", "b", MESH_NAMESPACE];

pub(crate) const SERVICES: [&str; 3] = ["a/s0", "a/s1", "b/s0"];

pub(crate) const LABELS: [&str; 3] = ["app", "tier", "k"];
