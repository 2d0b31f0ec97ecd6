//! Services of three endpoints on two nodes: how calls are spread, and what callers see when
//! an endpoint fails, in numbers.

mod balancing;
mod failures;
mod group;
mod health;
