//! `meshctl metrics`: the series of mesh-control.

use clap::Args;
use mesh_api::admin::Request;

use crate::control::{AskFault, ControlArgs, Output, ask};

/// Options of `metrics`.
#[derive(Args, Debug)]
pub(crate) struct MetricsArgs {
    #[command(flatten)]
    control: ControlArgs,
}

/// Asks and prints.
pub(crate) fn metrics(args: &MetricsArgs) -> Result<(), AskFault> {
    let socket = &args.control.control_socket;
    let series = ask(socket, &Request::Metrics, |answer| answer.metrics)?;
    match args.control.output {
        Output::Text => crate::print(&series),
        Output::Json => crate::print(&crate::json(&series)),
    }
    Ok(())
}
