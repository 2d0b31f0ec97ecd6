//! The unprivileged half: one pod, one identity, its listeners and tunnels.
