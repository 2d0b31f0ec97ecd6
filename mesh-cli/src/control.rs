//! Asks a running control component over its admin socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use mesh_api::admin::{Request, Response};

/// Answers wait for nothing but the processor.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where control is, and how the answer is printed.
#[derive(Args, Debug)]
pub(crate) struct ControlArgs {
    /// Admin socket of mesh-control: control.sock in its --state-dir
    #[arg(
        long,
        value_name = "PATH",
        env = "NODEMESH_CONTROL_SOCKET",
        default_value = "/var/lib/mesh-control/control.sock"
    )]
    pub(crate) control_socket: PathBuf,
    /// How the answer is printed
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskFault {
    /// The socket can't be reached, or breaks.
    #[error(
        "{path}: {error} (is mesh-control running with this --state-dir, and are you root? name its socket with --control-socket)"
    )]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        error: io::Error,
    },
    /// What came back is no answer.
    #[error("{path} does not answer as mesh-control of this version does: {error}")]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        error: String,
    },
    /// Control says why it has none.
    #[error("{0}")]
    Refused(String),
}

/// Asks, and takes the part of the answer that `of` picks.
pub(crate) fn ask<T>(
    socket: &Path,
    request: &Request,
    of: impl FnOnce(Response) -> Option<T>,
) -> Result<T, AskFault> {
    let protocol = |error: String| AskFault::Protocol {
        path: socket.to_owned(),
        error,
    };
    let line = exchange(socket, request).map_err(|error| AskFault::Socket {
        path: socket.to_owned(),
        error,
    })?;
    let response: Response = serde_json::from_str(&line).map_err(|e| protocol(e.to_string()))?;
    if let Some(error) = response.error {
        return Err(AskFault::Refused(error));
    }
    of(response).ok_or_else(|| protocol("the answer is to another question".to_owned()))
}

fn exchange(socket: &Path, request: &Request) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    match answer.is_empty() {
        true => Err(io::ErrorKind::UnexpectedEof.into()),
        false => Ok(answer),
    }
}
