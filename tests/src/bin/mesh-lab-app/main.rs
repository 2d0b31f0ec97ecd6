//! Small apps for pods of the lab: to see what an app sees, and for loads that programs
//! from packages don't make.

mod addresses;
mod dodge;
mod frame;
mod load;
mod volume;
mod xdp;

use std::io::{self, Error};
use std::net::Ipv6Addr;
use std::process::ExitCode;

use mesh_lab::tool::{self, parse};

const USAGE: &str = "usage: mesh-lab-app MODE
  serve PORT[,PORT...] [ADDRESS]  tell each client the addresses seen, then echo
  serve-exclusive PORT            the same, without SO_REUSEADDR
  dial ADDRESS:PORT               connect to `serve`: addresses, then standard input, echoed
  volume-serve PORT               exchange checked streams with `volume`
  volume ADDRESS:PORT BYTES       so many bytes in each direction at once, each checked
  burst ADDRESS:PORT COUNT        so many connections to `serve` open at once, each used
  churn ADDRESS:PORT COUNT        so many connections to `serve` in a row, closed here first
  flood PORT                      send to each client without end
  stall ADDRESS:PORT COUNT        so many connections to `flood` that are never read
  dodge CGROUP WAY OWN TO MAC NONCE  one way past the worker, from a cgroup (\"\": this one)";

fn main() -> ExitCode {
    tool::main("mesh-lab-app", run)
}

fn run(words: &[&str]) -> io::Result<()> {
    match words {
        ["serve", ports] => addresses::serve(ANY.into(), &numbers(ports)?),
        ["serve", ports, address] => addresses::serve(parse(address)?, &numbers(ports)?),
        ["serve-exclusive", port] => addresses::serve_exclusive(parse(port)?),
        ["dial", to] => addresses::dial(to),
        ["volume-serve", port] => volume::serve(parse(port)?),
        ["volume", to, bytes] => volume::call(to, parse(bytes)?),
        ["burst", to, count] => load::burst(to, parse(count)?),
        ["churn", to, count] => load::churn(to, parse(count)?),
        ["flood", port] => load::flood(parse(port)?),
        ["stall", to, count] => load::stall(to, parse(count)?),
        ["dodge", words @ ..] => dodge::run(words),
        _ => Err(Error::other(USAGE)),
    }
}

const ANY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

fn numbers(list: &str) -> io::Result<Vec<u16>> {
    list.split(',').map(parse).collect()
}
