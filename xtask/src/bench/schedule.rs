//! What is run in which order, and how long it takes.

use std::time::Duration;

use super::BenchArgs;
use super::crowd::Crowd;
use super::curves::Point;
use super::measure::Measure;
use super::ways::{MESH, Way};

/// Idle connections that are weighed.
const IDLE: u32 = 2_000;
/// About how long that takes by one way.
const IDLE_TAKES: Duration = Duration::from_millis(800);

/// Repetitions and length of the curves' points, of which there are many.
const CURVE_REPS: usize = 3;
const CURVE_SECONDS: u32 = 1;

/// One measurement of one way.
pub(crate) struct Step<T> {
    pub(crate) what: T,
    /// Index of the way.
    pub(crate) way: usize,
}

/// What is taken in each repetition.
pub(crate) struct Schedule {
    pub(crate) steps: Vec<Step<Measure>>,
    pub(crate) reps: usize,
    pub(crate) seconds: u32,
    /// Taken after the steps.
    pub(crate) points: Vec<Step<Point>>,
    pub(crate) curve_reps: usize,
    pub(crate) curve_seconds: u32,
    /// Taken at the end, in labs of its own.
    pub(crate) crowd: Option<Crowd>,
    /// How many idle connections are weighed, if any.
    pub(crate) idle: Option<u32>,
    ways: usize,
}

impl Schedule {
    pub(crate) fn new(ways: &[Way<'_>], args: &BenchArgs) -> Self {
        let wanted = |name: &str| name.contains(&args.only);
        let mut steps = Vec::new();
        for measure in Measure::ALL {
            // Of the others some show that they work.
            let by = |way: &Way<'_>| !args.short || way.name == MESH || measure.is_quick();
            if wanted(&measure.name()) {
                steps.extend(of(measure, ways, by));
            }
        }
        let mut points = Vec::new();
        for point in Point::all(args.short) {
            let by = |way: &Way<'_>| point.concerns(way) && (!args.short || way.name == MESH);
            if wanted(&point.name()) {
                points.extend(of(*point, ways, by));
            }
        }
        let (reps, seconds) = match args.short {
            true => (1, 1),
            false => (args.reps, args.seconds),
        };
        let idle = if args.short { IDLE / 10 } else { IDLE };
        Self {
            steps,
            reps,
            seconds,
            points,
            curve_reps: reps.min(CURVE_REPS),
            curve_seconds: seconds.min(CURVE_SECONDS),
            crowd: wanted("idle pods").then(|| Crowd::new(args.short)),
            idle: wanted("idle connections").then_some(idle),
            ways: ways.len(),
        }
    }

    /// About how long all of it takes.
    pub(crate) fn expected(&self) -> Duration {
        let times = |time: Duration, n: usize| time * u32::try_from(n).unwrap_or(u32::MAX);
        let steps = self.steps.iter();
        let steps: Duration = steps.map(|s| s.what.expected(self.seconds)).sum();
        let points = self.points.iter();
        let points: Duration = points.map(|s| s.what.expected(self.curve_seconds)).sum();
        let idle = self.idle.map_or(Duration::ZERO, |_| IDLE_TAKES);
        let crowd = self.crowd.map_or(Duration::ZERO, Crowd::expected);
        times(steps + times(idle, self.ways), self.reps) + times(points, self.curve_reps) + crowd
    }

    /// Steps and points, with their repetitions.
    pub(crate) fn all(&self) -> usize {
        self.steps.len() * self.reps + self.points.len() * self.curve_reps
    }
}

/// A step for each of the ways that are wanted.
fn of<T: Copy>(
    what: T,
    ways: &[Way<'_>],
    wanted: impl Fn(&Way<'_>) -> bool,
) -> impl Iterator<Item = Step<T>> {
    let ways = ways.iter().enumerate().filter(move |(_, way)| wanted(way));
    ways.map(move |(way, _)| Step { what, way })
}
