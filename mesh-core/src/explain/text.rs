//! Explanations as an operator reads them.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;

use super::{Attempt, Explanation, Outcome, Route, Verdict};

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("the source itself: not captured, no policy is asked"),
            Self::Workload => f.write_str("a workload's own address"),
            Self::Service(key) => write!(f, "the service {key}"),
            Self::Headless(key) => write!(f, "the pods of the headless service {key}"),
            Self::Unknown => f.write_str("an address that discovery doesn't know"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allowed => f.write_str("allowed"),
            Self::Audited => f.write_str("let through for audit, would be refused"),
            Self::Partly => f.write_str("allowed to some endpoints, refused to others"),
            Self::Refused(reason) => {
                write!(f, "refused, {reason}: {}; ", reason.sentence())?;
                f.write_str(reason.remedy())
            }
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.refused {
            None => f.write_str("allowed")?,
            Some(reason) if self.audited => write!(f, "would be refused, {reason}")?,
            Some(reason) => write!(f, "refused, {reason}")?,
        }
        match &self.policy {
            Some(policy) => write!(f, ", by {policy}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.encrypted {
            "mutual TLS"
        } else {
            "plain"
        };
        let to = SocketAddr::new(self.address, self.port);
        match &self.workload {
            Some(workload) => write!(f, "{to} ({}), {how}", workload.uid)?,
            None => write!(f, "{to}, {how}")?,
        }
        for (end, verdict) in [("source", &self.outbound), ("destination", &self.inbound)] {
            let Some(verdict) = verdict else { continue };
            write!(f, "\n    at the {end}: {verdict}")?;
        }
        if self.probed {
            let what = "the pod declares the port for probes, so connections of its node's kubelet pass whatever policy says, and nobody else's";
            write!(f, "\n    {what}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.outcome)?;
        writeln!(f, "dialled: {}", self.route)?;
        if let Some(reason) = self.kernel {
            writeln!(f, "in the kernel: refused at connect (EPERM), {reason}")?;
        }
        for attempt in &self.attempts {
            writeln!(f, "  {attempt}")?;
        }
        let missing: BTreeSet<_> = self
            .attempts
            .iter()
            .flat_map(|attempt| [&attempt.outbound, &attempt.inbound])
            .flatten()
            .filter_map(|verdict| verdict.missing.as_ref())
            .map(ToString::to_string)
            .collect();
        for manifests in missing {
            write!(f, "\nthis would allow it:\n{manifests}")?;
        }
        Ok(())
    }
}
