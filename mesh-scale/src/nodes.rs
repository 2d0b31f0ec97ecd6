//! All the nodes: a process each.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, stdin};
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use mesh_core::identity::NodeIdentity;
use mesh_lab::Dialogue;
use mesh_lab::tool::raise_descriptor_limit;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::json;
use time::{Duration, OffsetDateTime};

use crate::mesh::{Size, TRUST_DOMAIN};
use crate::node::{Fared, Start};

#[derive(Args)]
pub(crate) struct NodesArgs {
    /// Folder of the PKI, as `meshctl pki init` makes it
    #[arg(long)]
    pki: PathBuf,
    #[command(flatten)]
    size: Size,
}

/// Starts the nodes and says so; then takes `go <address>`, which is answered when each of them
/// holds everything, and `end <file>`, which is answered by how they fared. The file has what
/// `churn` of `control` wrote.
pub(crate) fn run(args: &NodesArgs) -> Result<()> {
    raise_descriptor_limit()?;
    let mut nodes = start(args)?;
    println!("{}", json!({ "waiting": nodes.len() }));
    for line in stdin().lock().lines() {
        let line = line?;
        match line.split_once(' ') {
            Some(("go", _)) => println!("{}", go(&mut nodes, &line)?),
            Some(("end", file)) => {
                println!("{}", end(std::mem::take(&mut nodes), file, args.size)?);
                return Ok(());
            }
            _ => bail!("no command: {line:?}"),
        }
    }
    Ok(())
}

fn start(args: &NodesArgs) -> Result<Vec<Dialogue>> {
    let read = |name: &str| {
        let path = args.pki.join(name);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    let (ca_pem, root) = (read("ca-cert.pem")?, read("root.pem")?);
    let key = KeyPair::from_pem(&read("ca-key.pem")?)?;
    let issuer = Issuer::from_ca_cert_pem(&ca_pem, key)?;
    let mut nodes = Vec::new();
    for number in 0..args.size.nodes {
        let (leaf, key) = certificate(&issuer, &Size::node(number))?;
        let needs = Start {
            number,
            size: args.size,
            chain: format!("{leaf}{ca_pem}"),
            key,
            root: root.clone(),
        };
        let mut command = Command::new(std::env::current_exe()?);
        let mut node = Dialogue::start(command.arg("node"))?;
        node.say(&serde_json::to_string(&needs)?)?;
        nodes.push(node);
    }
    for node in &mut nodes {
        let said = node.line()?;
        if said != "waiting" {
            bail!("a node said {said:?}");
        }
    }
    Ok(nodes)
}

/// One as control would give it.
fn certificate(issuer: &Issuer<'_, KeyPair>, node: &str) -> Result<(String, String)> {
    let identity = NodeIdentity::new(TRUST_DOMAIN.parse()?, node)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = OffsetDateTime::now_utc() - Duration::minutes(5);
    params.not_after = OffsetDateTime::now_utc() + Duration::hours(6);
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let leaf = params.signed_by(&key, issuer)?;
    Ok((leaf.pem(), key.serialize_pem()))
}

fn go(nodes: &mut [Dialogue], line: &str) -> Result<serde_json::Value> {
    let begun = Instant::now();
    for node in &mut *nodes {
        node.say(line)?;
    }
    let mut each_us = Vec::new();
    for node in nodes {
        let said = node.line()?;
        let us = said.strip_prefix("ready ");
        each_us.push(
            us.context("a node ended early; see above")?
                .parse::<u64>()?,
        );
    }
    let all_s = begun.elapsed().as_secs_f64();
    each_us.sort_unstable();
    Ok(json!({
        "ready_s": all_s,
        "first_us": each_us.first(), "median_us": each_us.get(each_us.len() / 2),
    }))
}

fn end(mut nodes: Vec<Dialogue>, file: &str, size: Size) -> Result<serde_json::Value> {
    let text = fs::read(file).with_context(|| file.to_owned())?;
    let last: HashMap<String, u64> = serde_json::from_slice(&text)?;
    for (number, node) in nodes.iter_mut().enumerate() {
        // Each is told of its part: a thousand that look for it in the whole are in the way of
        // the last changes.
        let names = size.names_of(number).into_iter();
        let wanted = names.filter_map(|name| last.get_key_value(&name));
        let wanted: HashMap<_, _> = wanted.collect();
        node.say(&format!("end {}", serde_json::to_string(&wanted)?))?;
    }
    let mut all: Vec<Fared> = Vec::new();
    for mut node in nodes {
        all.push(serde_json::from_str(&node.line()?)?);
        node.finish()?;
    }
    let behind: usize = all.iter().map(|fared| fared.behind).sum();
    let mut latencies: Vec<u64> = all.iter().flat_map(|f| &f.latencies_us).copied().collect();
    latencies.sort_unstable();
    let per_mille = |share: usize| {
        let last = latencies.len().checked_sub(1)?;
        Some(latencies[last * share / 1_000])
    };
    let mean = |of: fn(&Fared) -> u64| all.iter().map(of).sum::<u64>() as f64 / all.len() as f64;
    Ok(json!({
        "nodes": all.len(),
        "deliveries": latencies.len(),
        "behind_at_the_end": behind,
        "p50_us": per_mille(500), "p99_us": per_mille(990), "p999_us": per_mille(999),
        "most_us": latencies.last(),
        "resources_per_node": mean(|f| f.resources as u64),
        "first_bytes_per_node": mean(|f| f.first_bytes),
        "later_bytes_per_node": mean(|f| f.later_bytes),
        "later_responses_per_node": mean(|f| f.later_responses),
    }))
}
