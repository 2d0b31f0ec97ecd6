//! Loads by which one tenant may hurt another, each bounded in number and time, and the
//! steady calls of the one that is not to be hurt. Each ends by itself and says in one line of
//! JSON what it has achieved.

mod app;
mod hold;
mod http2;
mod open_loop;
mod short;
mod tally;
mod tls;

use std::io::{self, Error};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use mesh_lab::tool::{self, parse};
use tally::Load;

const USAGE: &str = "usage: mesh-lab-load MODE ADDRESS:PORT AT_ONCE SECONDS [MORE...]
of an app:
  bulk         read streams of `mesh-lab-app flood`; counts bytes
  requests     one small request after the other on each connection to `mesh-lab-app serve`
  churn        connections in a row, closed by this end
  idle         open this many connections, and keep them
  unread       the same to `flood`, one byte of each read
  connects     start this many connections without waiting for any of them
  lookups      connections in a row, each to another address, from ADDRESS on
at a tunnel port, by mutual TLS, with MORE the folder of the credentials:
  handshakes   handshakes in a row
  trickle      connections that send a byte of their handshake at a time
  silent       connections that send nothing
  rapid-reset, continuation, pings, settings, zero-window
               HTTP/2, with MORE also ADDRESS:PORT of the app: what the name says
what is measured:
  short        MORE requests a second to an HTTP server, each on a connection of its own
  open-loop    to `serve`, with MORE requests a second, and from which second to which they count
  hold         MORE connections to an HTTP server, AT_ONCE unanswered: each asks once and is kept";

fn main() -> ExitCode {
    tool::main("mesh-lab-load", run)
}

fn run(words: &[&str]) -> io::Result<()> {
    let [mode, to, at_once, seconds, more @ ..] = words else {
        return Err(Error::other(USAGE));
    };
    let load = Load {
        to: parse(to)?,
        at_once: parse(at_once)?,
        deadline: Instant::now() + Duration::from_secs_f64(parse(seconds)?),
    };
    match (*mode, more) {
        ("bulk", []) => load.run(app::bulk),
        ("requests", []) => load.run(app::requests),
        ("churn", []) => load.run(app::churn),
        ("idle", []) => load.run(app::idle),
        ("unread", []) => load.run(app::unread),
        ("connects", []) => load.run_once(app::connects),
        ("lookups", []) => load.run(app::lookups),
        ("short", [rate]) => short::run(&load, parse(rate)?),
        ("hold", [total]) => hold::run(&load, parse(total)?),
        ("silent", []) => load.run(tls::silent),
        ("trickle", []) => load.run(tls::trickle),
        ("handshakes", [credentials]) => {
            let config = tls::config(&PathBuf::from(credentials))?;
            load.run(|load, tally, _| tls::handshakes(load, tally, &config))
        }
        ("open-loop", [rate, from_s, to_s]) => {
            open_loop::run(&load, parse(rate)?, parse(from_s)?, parse(to_s)?)
        }
        (flood, [credentials, app]) => {
            let flood: http2::Flood = flood.parse()?;
            let config = tls::config(&PathBuf::from(credentials))?;
            let app: SocketAddr = parse(app)?;
            load.run(|load, tally, _| http2::flood(load, tally, &config, flood, app))
        }
        _ => Err(Error::other(USAGE)),
    }
}
