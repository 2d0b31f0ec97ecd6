//! Policy on two nodes: who may call whom, and that each refusal is told alike by the errno,
//! the log, the metric and `meshctl why`.

mod audit;
mod egress;
mod expect;
mod headless;
mod live;
mod rules;
mod scopes;
mod targets;
mod udp;
