//! Services of several endpoints: how calls are spread, and what callers see when an endpoint
//! fails, in numbers.

mod balancing;
mod failures;
mod group;
mod health;
mod locality;
