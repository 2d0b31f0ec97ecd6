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
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-lab-app {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> io::Result<()> {
    raise_descriptor_limit()?;
    match words {
        ["serve", ports] => addresses::serve(ANY.into(), &numbers(ports)?),
        ["serve", ports, address] => {
            let address = address.parse().map_err(Error::other)?;
            addresses::serve(address, &numbers(ports)?)
        }
        ["serve-exclusive", port] => addresses::serve_exclusive(number(port)?),
        ["dial", to] => addresses::dial(to),
        ["volume-serve", port] => volume::serve(number(port)?),
        ["volume", to, bytes] => volume::call(to, number(bytes)?),
        ["burst", to, count] => load::burst(to, number(count)?),
        ["churn", to, count] => load::churn(to, number(count)?),
        ["flood", port] => load::flood(number(port)?),
        ["stall", to, count] => load::stall(to, number(count)?),
        ["dodge", words @ ..] => dodge::run(words),
        _ => Err(Error::other(USAGE)),
    }
}

const ANY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

fn number<N: std::str::FromStr>(text: &str) -> io::Result<N> {
    let bad = |_| Error::other(format!("no number: {text}"));
    text.parse().map_err(bad)
}

fn numbers(list: &str) -> io::Result<Vec<u16>> {
    list.split(',').map(number).collect()
}

fn raise_descriptor_limit() -> io::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}
