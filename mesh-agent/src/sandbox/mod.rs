//! How a worker is born: cgroup, network namespace, empty root, own uid, no way back.
