//! `meshctl why`: what the mesh would do with a flow, and why.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use mesh_api::admin::{Outcome, Request};
use mesh_core::policy::Protocol;

use crate::control::{AskFault, ControlArgs, Output, ask};
use crate::place::{DestinationArg, SourceArg};

/// Exit status where control can't tell.
pub(crate) const CANT_TELL: u8 = 2;

/// Options of `why`.
#[derive(Args, Debug)]
pub(crate) struct WhyArgs {
    /// Where the flow comes from: namespace/pod, or an IP address
    #[arg(value_name = "SRC")]
    source: SourceArg,
    /// What is dialled: namespace/pod, svc/namespace/service (svc/ may be left out where no pod
    /// has that name), or an IP address. A service with one port needs none here
    #[arg(value_name = "DST[:PORT]")]
    destination: DestinationArg,
    /// Protocol of the flow
    #[arg(long, value_enum, default_value_t)]
    protocol: ProtocolArg,
    #[command(flatten)]
    control: ControlArgs,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum ProtocolArg {
    #[default]
    Tcp,
    Udp,
}

/// Asks, prints the answer, and says by the exit status what becomes of the flow.
pub(crate) fn why(args: &WhyArgs) -> Result<ExitCode, AskFault> {
    let request = Request::Why {
        source: args.source.0.clone(),
        destination: args.destination.place.clone(),
        port: args.destination.port,
        protocol: match args.protocol {
            ProtocolArg::Tcp => Protocol::Tcp,
            ProtocolArg::Udp => Protocol::Udp,
        },
    };
    let why = ask(&args.control.control_socket, &request, |answer| answer.why)?;
    match args.control.output {
        Output::Text => crate::print(&why.text),
        Output::Json => crate::print(&crate::json(&why)),
    }
    Ok(match why.outcome {
        Outcome::Allowed | Outcome::Audited => ExitCode::SUCCESS,
        Outcome::Refused => ExitCode::FAILURE,
        Outcome::Partly => ExitCode::from(CANT_TELL),
    })
}
