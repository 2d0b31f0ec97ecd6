//! One node: a stream over TLS with the node's own certificate, every response acknowledged.

use std::collections::HashMap;
use std::io::{BufRead, Write, stdin, stdout};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mesh_api::ads::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_api::ads::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_api::workload::{Address, address};
use mesh_api::{ADDRESS_TYPE_URL, OWN_NAME, POLICY_TYPE_URL};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::mesh::{CHANGED, Size};
use crate::{now_ns, runtime};

/// DNS name in the control component's certificate.
const CONTROL_NAME: &str = "nodemesh-control";
/// How long a node waits before it calls a control component again that isn't there.
const RETRY: Duration = Duration::from_millis(100);
/// How long the last changes may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a node needs.
#[derive(Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) number: usize,
    pub(crate) size: Size,
    pub(crate) chain: String,
    pub(crate) key: String,
    pub(crate) root: String,
}

/// What became of it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Fared {
    /// Bytes of the responses, until all had come for the first time and after.
    pub(crate) first_bytes: u64,
    pub(crate) later_bytes: u64,
    pub(crate) later_responses: u64,
    /// Resources held.
    pub(crate) resources: usize,
    /// From a change at its source to its acknowledgement, for each that came.
    pub(crate) latencies_us: Vec<u64>,
    /// Pods whose last change has not come in time.
    pub(crate) behind: usize,
}

/// Reads what it needs, waits for `go <address>`, says when it holds everything; and after `end
/// <JSON>` how it fared, once it holds what that says: when pods were last changed, by name.
pub(crate) fn run() -> Result<()> {
    let mut input = stdin().lock();
    let mut line = String::new();
    input.read_line(&mut line)?;
    let start: Start = serde_json::from_str(&line)?;
    let names = start.size.names_of(start.number);
    say("waiting")?;
    line.clear();
    input.read_line(&mut line)?;
    let address = line
        .trim()
        .strip_prefix("go ")
        .context("no `go`")?
        .to_owned();
    drop(input);
    let (end, ended) = oneshot::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        // Nobody is there any more: that is an end as well.
        let _ = stdin().lock().read_line(&mut line);
        let _ = end.send(line);
    });
    let runtime = runtime()?;
    let fared = runtime.block_on(follow(&start, names, &address, ended))?;
    say(&serde_json::to_string(&fared)?)
}

fn say(line: &str) -> Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

async fn follow(
    start: &Start,
    names: Vec<String>,
    address: &str,
    mut ended: oneshot::Receiver<String>,
) -> Result<Fared> {
    let begun = Instant::now();
    let mut held = Held::default();
    let opened = async {
        let mut stream = open(start, address).await?;
        held.begin(&names, &mut stream).await?;
        anyhow::Ok(stream)
    };
    let mut stream = tokio::select! {
        opened = opened => opened?,
        _ = &mut ended => bail!("told to end before it began"),
    };
    say(&format!("ready {}", begun.elapsed().as_micros()))?;
    let line = loop {
        tokio::select! {
            line = &mut ended => break line?,
            taken = held.next(&mut stream) => taken?,
        }
    };
    let last = line.trim().strip_prefix("end ").context("no `end`")?;
    let wanted: HashMap<String, u64> = serde_json::from_str(last)?;
    let rest = async {
        while held.behind(&wanted) > 0 {
            held.next(&mut stream).await?;
        }
        anyhow::Ok(())
    };
    match tokio::time::timeout(PATIENCE, rest).await {
        // What is missing is told.
        Err(_) => {}
        Ok(rest) => rest?,
    }
    Ok(held.fared(&wanted))
}

struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

async fn open(start: &Start, address: &str) -> Result<Stream> {
    let channel = connect(start, address).await?;
    let (requests, outgoing) = mpsc::channel(16);
    for first in subscriptions(start) {
        requests.send(first).await?;
    }
    let mut client =
        AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(64 << 20);
    let opened = client.delta_aggregated_resources(ReceiverStream::new(outgoing));
    Ok(Stream {
        requests,
        responses: opened.await?.into_inner(),
    })
}

impl Stream {
    async fn response(&mut self) -> Result<DeltaDiscoveryResponse> {
        let response = self.responses.message().await?;
        response.context("control ended the stream")
    }

    async fn acknowledge(&self, response: &DeltaDiscoveryResponse) -> Result<()> {
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        Ok(self.requests.send(ack).await?)
    }
}

async fn connect(start: &Start, address: &str) -> Result<Channel> {
    let tls = ClientTlsConfig::new()
        .domain_name(CONTROL_NAME)
        .ca_certificate(Certificate::from_pem(&start.root))
        .identity(Identity::from_pem(&start.chain, &start.key));
    let endpoint = Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?;
    loop {
        match endpoint.connect().await {
            Ok(channel) => return Ok(channel),
            // It may not be there yet.
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

/// As an agent asks: for what it takes to serve the node's pods, and by address for whom they talk
/// to.
fn subscriptions(start: &Start) -> [DeltaDiscoveryRequest; 2] {
    let asked = start.size.asked_by(start.number).into_iter();
    let asked: Vec<String> = asked.map(|address| format!("/{address}")).collect();
    let own = vec![OWN_NAME.to_owned()];
    let request = |type_url: &str, names| DeltaDiscoveryRequest {
        node: Some(ads::Node {
            id: Size::node(start.number),
        }),
        type_url: type_url.to_owned(),
        resource_names_subscribe: names,
        ..DeltaDiscoveryRequest::default()
    };
    [
        request(ADDRESS_TYPE_URL, [own.clone(), asked].concat()),
        request(POLICY_TYPE_URL, own),
    ]
}

#[derive(Default)]
struct Held {
    first_bytes: u64,
    later_bytes: u64,
    later_responses: u64,
    latencies_us: Vec<u64>,
    /// By name; when a pod was last changed.
    resources: HashMap<String, u64>,
}

impl Held {
    /// Until everything has come that was asked for.
    async fn begin(&mut self, names: &[String], stream: &mut Stream) -> Result<()> {
        let mut answered = [false; 2];
        while !answered.iter().all(|yes| *yes) {
            let response = stream.response().await?;
            self.first_bytes += response.encoded_len() as u64;
            self.take(&response)?;
            let which = usize::from(response.type_url == POLICY_TYPE_URL);
            answered[which] |= !response.more;
            stream.acknowledge(&response).await?;
        }
        match names
            .iter()
            .find(|name| !self.resources.contains_key(*name))
        {
            None => Ok(()),
            Some(missing) => bail!("{missing} did not come"),
        }
    }

    /// The next response, acknowledged.
    async fn next(&mut self, stream: &mut Stream) -> Result<()> {
        let response = stream.response().await?;
        self.later_responses += 1;
        self.later_bytes += response.encoded_len() as u64;
        let changed = self.take(&response)?;
        stream.acknowledge(&response).await?;
        let now = now_ns();
        let latencies = changed.iter().map(|at| now.saturating_sub(*at) / 1_000);
        self.latencies_us.extend(latencies);
        Ok(())
    }

    /// How many of the wanted changes have not come.
    fn behind(&self, wanted: &HashMap<String, u64>) -> usize {
        let missing = |(name, at): &(&String, &u64)| self.resources.get(*name) != Some(*at);
        wanted.iter().filter(missing).count()
    }

    /// Takes a response; the times of the changes in it.
    fn take(&mut self, response: &DeltaDiscoveryResponse) -> Result<Vec<u64>> {
        for name in &response.removed_resources {
            self.resources.remove(name);
        }
        let mut changed = Vec::new();
        for resource in &response.resources {
            let at = changed_ns(resource)?;
            changed.extend(at);
            let at = at.unwrap_or_default();
            self.resources.insert(resource.name.clone(), at);
        }
        Ok(changed)
    }

    fn fared(self, wanted: &HashMap<String, u64>) -> Fared {
        Fared {
            behind: self.behind(wanted),
            first_bytes: self.first_bytes,
            later_bytes: self.later_bytes,
            later_responses: self.later_responses,
            resources: self.resources.len(),
            latencies_us: self.latencies_us,
        }
    }
}

/// When a pod was last changed; `None` for what is no pod.
fn changed_ns(resource: &ads::Resource) -> Result<Option<u64>> {
    let any = resource.resource.as_ref().context("no body")?;
    if any.type_url != ADDRESS_TYPE_URL {
        return Ok(None);
    }
    let message = Address::decode(any.value.as_slice())?;
    let Some(address::Type::Workload(workload)) = message.r#type else {
        return Ok(None);
    };
    let at = workload
        .labels
        .get(CHANGED)
        .context("a pod without a time")?;
    Ok(Some(at.parse()?))
}
