//! Whether a worker died of its own memory limit.

use std::fs;

use super::PodCgroup;

/// Where each version of the hierarchy counts the processes that its memory limit has ended.
const COUNTED_IN: [&str; 2] = ["memory.events", "memory.oom_control"];

impl PodCgroup {
    /// Processes that the kernel has ended since the cgroup exists because it was at its memory
    /// limit. 0 where there is no memory controller.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        let files = self
            .folders
            .iter()
            .flat_map(|folder| COUNTED_IN.map(|file| folder.join(file)));
        let counts = files.filter_map(|file| oom_kills(&fs::read_to_string(file).ok()?));
        counts.max().unwrap_or(0)
    }
}

fn oom_kills(text: &str) -> Option<u64> {
    let mut lines = text.lines();
    lines.find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_count_in_a_line() {
        let v2 = "low 0\nhigh 0\nmax 31\noom 2\noom_kill 2\noom_group_kill 0\n";
        let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n";
        assert_eq!(oom_kills(v2), Some(2));
        assert_eq!(oom_kills(v1), Some(7));
        assert_eq!(oom_kills(""), None);
    }
}
