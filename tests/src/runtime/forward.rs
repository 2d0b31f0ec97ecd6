//! A port-forward through the runtime: what is behind `kubectl port-forward`. The runtime tells an
//! address of its own, where a WebSocket carries the pod's connection: two channels a port, the data
//! and what goes wrong, each opened by the server with the port's number (Kubernetes'
//! `k8s.io/kubelet/pkg/cri/streaming/portforward`).

use std::net::TcpStream;

use anyhow::{Context, Result, anyhow, bail};
use tungstenite::client::IntoClientRequest;
use tungstenite::http::{HeaderValue, Uri};
use tungstenite::{Message, WebSocket};

use super::{Runtime, Sandbox};
use crate::node::Host;
use crate::wait;

/// The protocol in which a message is a channel's number and bytes.
const PROTOCOL: &str = "v4.channel.k8s.io";
/// The first port's channels.
const DATA: u8 = 0;
const ERRORS: u8 = 1;

impl Runtime {
    /// Forwards a port of a pod, says `word` and a newline, and returns what has come back when the word
    /// has.
    ///
    /// # Errors
    /// If the runtime does not forward it, or the pod does not answer; with the runtime's words.
    pub fn forward(&self, host: &Host, sandbox: &Sandbox, port: u16, word: &str) -> Result<String> {
        let url = self.cri.port_forward(&sandbox.id, port)?;
        let mut socket = open(host, &url, port).with_context(|| url.clone())?;
        let said = [&[DATA], word.as_bytes(), b"\n"].concat();
        socket.send(Message::binary(said))?;
        let mut channels = [Vec::new(), Vec::new()];
        loop {
            let message = socket.read().with_context(|| {
                let [data, errors] = channels.each_ref().map(|c| String::from_utf8_lossy(c));
                format!("{url}: after {data:?} as data, {errors:?} as errors")
            })?;
            if message.is_close() {
                bail!("{url}: closed without an answer");
            }
            let data = message.into_data();
            let Some((&number, bytes)) = data.split_first() else {
                continue;
            };
            let channel = channels.get_mut(usize::from(number));
            let channel = channel.with_context(|| format!("there is no channel {number}"))?;
            channel.extend_from_slice(bytes);
            // After the port's two bytes.
            let told = channel.get(2..).unwrap_or_default();
            if told.is_empty() {
                continue;
            }
            let text = String::from_utf8_lossy(told).into_owned();
            match number {
                ERRORS => return Err(anyhow!(text).context("the runtime's words")),
                _ if text.lines().any(|line| line == word) => return Ok(text),
                _ => {}
            }
        }
    }
}

fn open(host: &Host, url: &str, port: u16) -> Result<WebSocket<TcpStream>> {
    let url: Uri = url.parse().context("the runtime's address")?;
    let authority = url.authority().context("an address with a server")?;
    let to = authority.as_str().to_owned();
    let stream = host.netns.run(|| TcpStream::connect(to))?;
    stream.set_read_timeout(Some(wait::scaled(wait::PATIENCE)))?;
    let request = format!("ws://{authority}{}?port={port}", url.path());
    let mut request = request.into_client_request()?;
    let protocol = HeaderValue::from_static(PROTOCOL);
    request
        .headers_mut()
        .insert("sec-websocket-protocol", protocol);
    let (socket, _) = tungstenite::client(request, stream).map_err(|e| anyhow!("{e}"))?;
    Ok(socket)
}
