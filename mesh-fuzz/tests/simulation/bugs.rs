//! Mistakes that are put in on purpose, each at a seam between two of the real state machines. A
//! simulation that lets one of them pass would let the real one pass.

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// The agent: each response takes effect by itself.
    HalfAChange,
    /// The agent: what a stream left unfinished takes effect with the next one.
    UnfinishedSurvives,
    /// The agent: says on a new stream that it holds what it was sent, not what is in effect.
    ClaimsWhatIsStaged,
    /// The agent: says that it holds a policy that it could not read, and isn't sent it again when
    /// it can.
    ClaimsWhatItRefused,
    /// The agent: takes a policy that it can't read for one that is gone.
    RefusedIsGone,
    /// The agent: what it keeps on the disk has no policies.
    KeepsNoPolicies,
    /// The agent: a restart leaves out what isn't a pod's.
    RestoresPodsOnly,
    /// Control: a node that comes back is not told what is gone.
    ForgetsRemovals,
    /// Control: a node that comes back is taken to hold the present version of what it names.
    ResumesByName,
    /// Control: a request is answered from a newer state than the stream was shown.
    AnswersAhead,
    /// Control: a change is lost on a stream that is busy.
    LostWhileBusy,
    /// Control: on a stream that is busy the newest goes first.
    Overtaken,
}

impl Bug {
    /// Every one.
    pub(crate) const ALL: [Self; 12] = [
        Self::HalfAChange,
        Self::UnfinishedSurvives,
        Self::ClaimsWhatIsStaged,
        Self::ClaimsWhatItRefused,
        Self::RefusedIsGone,
        Self::KeepsNoPolicies,
        Self::RestoresPodsOnly,
        Self::ForgetsRemovals,
        Self::ResumesByName,
        Self::AnswersAhead,
        Self::LostWhileBusy,
        Self::Overtaken,
    ];
}
