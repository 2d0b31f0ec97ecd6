//! One gRPC call without streams, over a Unix socket: HTTP/2 prior knowledge, a message with a
//! length before it, the status in the trailers
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request};
use prost::Message;
use tokio::net::UnixStream;

/// Bytes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// The server's refusal of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// A number of gRPC's list: 2 unknown, 5 not found, 12 unimplemented, …
    pub code: u32,
    /// The server's words.
    pub message: String,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "gRPC status {}: {}", self.code, self.message)
    }
}

impl std::error::Error for Status {}

/// Calls `/<service>/<method>` on a connection of its own.
///
/// # Errors
/// A [`Status`] if the server refuses; otherwise if there is no server, or it does not answer in
/// time.
pub(super) fn call<Answer: Message + Default>(
    socket: &Path,
    method: &str,
    request: &impl Message,
    timeout: Duration,
) -> Result<Answer> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let exchange = async {
        let answer = tokio::time::timeout(timeout, exchange(socket, method, framed(request)?));
        let answer = answer.await;
        answer.with_context(|| format!("{method}: no answer in {timeout:?}"))?
    };
    let body = runtime.block_on(exchange)?;
    let message = body.get(PREFIX..).context("an answer without a message")?;
    Answer::decode(message).with_context(|| format!("the answer to {method}"))
}

fn framed(request: &impl Message) -> Result<Bytes> {
    let mut body = BytesMut::with_capacity(PREFIX + request.encoded_len());
    body.put_u8(0);
    body.put_u32(u32::try_from(request.encoded_len())?);
    request.encode(&mut body)?;
    Ok(body.freeze())
}

async fn exchange(socket: &Path, method: &str, body: Bytes) -> Result<Bytes> {
    let stream = UnixStream::connect(socket).await;
    let stream = stream.with_context(|| format!("connecting to {}", socket.display()))?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    let driver = tokio::spawn(connection);
    let mut sender = sender.ready().await?;
    let request = Request::post(format!("http://localhost/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (answer, mut stream) = sender.send_request(request, false)?;
    stream.send_data(body, true)?;
    let answer = answer.await.with_context(|| method.to_owned())?;
    ensure!(
        answer.status() == 200,
        "{method}: HTTP status {}",
        answer.status()
    );
    refused(answer.headers())?;
    let mut incoming = answer.into_body();
    let mut received = BytesMut::new();
    while let Some(chunk) = incoming.data().await {
        let chunk = chunk?;
        incoming.flow_control().release_capacity(chunk.len())?;
        received.extend_from_slice(&chunk);
    }
    match incoming.trailers().await? {
        Some(trailers) => refused(&trailers)?,
        None => bail!("{method}: an answer without trailers"),
    }
    driver.abort();
    Ok(received.freeze())
}

/// The refusal in headers or trailers, if there is one.
fn refused(headers: &HeaderMap) -> Result<(), Status> {
    let text = |name| headers.get(name).map(http::HeaderValue::as_bytes);
    let code = text("grpc-status").and_then(|code| std::str::from_utf8(code).ok()?.parse().ok());
    match code {
        None | Some(0) => Ok(()),
        Some(code) => Err(Status {
            code,
            message: percent_decoded(text("grpc-message").unwrap_or_default()),
        }),
    }
}

fn percent_decoded(text: &[u8]) -> String {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let digits = tail.get(..2).and_then(|d| std::str::from_utf8(d).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        rest = match (first, byte) {
            (b'%', Some(byte)) => {
                plain.push(byte);
                &tail[2..]
            }
            _ => {
                plain.push(*first);
                tail
            }
        };
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_with_its_words() {
        let mut headers = HeaderMap::new();
        assert_eq!(refused(&headers), Ok(()));
        headers.insert("grpc-status", "2".parse().unwrap());
        headers.insert("grpc-message", "100%25 %22no%22 %zz %".parse().unwrap());
        let status = refused(&headers).unwrap_err();
        assert_eq!(
            (status.code, status.message.as_str()),
            (2, "100% \"no\" %zz %")
        );
    }
}
